# %% [markdown]
# # Finding mislabelled data
#
# **Description:** Find suspected wrong labels by a recorded training, see why
# they are suspected and how many there are, put them right, and train again.
#
# A wrong label contradicts the rest of the data, so a network learns it late,
# if at all. A training that was recorded therefore tells which labels are
# suspicious.
#
# To be able to count them, we make a tenth of the labels wrong on purpose.

# %%
import warnings

import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_tracin as kt

# %matplotlib inline
# %config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight","dpi":72}

# %%
digits = load_digits()
images = digits.images[..., None].astype("float32") / 16
x_train, x_test, true_labels, y_test = train_test_split(
    images, digits.target, test_size=500, random_state=0
)
y_train = kt.evaluation.flip_labels(true_labels, share=0.1, seed=0)
is_wrong = y_train != true_labels
print(f"{is_wrong.sum()} of {len(y_train)} labels are wrong now.")


# %% [markdown]
# ## Train on what we have
#
# The callback `kt.TracInCheckpoint` is all that is added to the training. It
# saves the weights after each epoch. Twenty epochs are enough for this network
# to learn many of the wrong labels by heart.


# %%
def train(x, y, callbacks=()):
    """Trains a new network on these labels."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        keras.optimizers.Adam(0.005),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(x, y, epochs=20, verbose=0, callbacks=list(callbacks))
    return model


# %%
record = kt.TracInCheckpoint("runs/noisy_digits", overwrite=True)
model = train(x_train, y_train, [record])
print(f"Accuracy: {model.evaluate(x_test, y_test, verbose=0)[1]:.1%}")

# %% [markdown]
# ## Find the suspects
#
# One forward pass at each checkpoint ranks all examples, the most suspicious
# first, and estimates how many labels are wrong. It says how.

# %%
issues = kt.find_label_issues(
    model, (x_train, y_train), "runs/noisy_digits", verbose=0
)
print(f"{issues.num_issues} labels are suspected:")
for reason in issues.reasons:
    print("-", reason)

# %%
issues.to_dataframe().head()

# %% [markdown]
# These come first, each with its label and the suggested one. Titles are red
# where we made the label wrong. `kt.report.write_html("review.html",
# train=(x_train, y_train), label_issues=issues)` writes a page to decide on
# them one by one, with a keyboard or on a phone.

# %%
figure, axes = plt.subplots(2, 10, figsize=(9, 2.6))
for rank, axis in enumerate(axes.flat):
    example = issues.ids[rank]
    axis.imshow(x_train[example, ..., 0], cmap="gray")
    axis.set_title(
        f"{issues.given_labels[rank]} → {issues.suggested_labels[rank]}",
        color="firebrick" if is_wrong[example] else "black",
        fontsize=10,
    )
    axis.axis("off")

# %% [markdown]
# ## Why are they suspected?
#
# Because they contradict other examples. `explain` asks a method which
# examples raised a suspect's loss under the label that it has: its opponents.
# Influence functions of the last layer are fast, and with `relative=` wrong
# labels, whose gradients are large, do not lead every ranking. They warn that
# this network has not converged, which matters little to the order.

# %%
warnings.filterwarnings("ignore", message="The model has not converged")
influence = kt.InfluenceFunctions(
    model,
    (x_train, y_train),
    damping=0.1,
    solver=kt.EKFAC(),
    relative="loss",
    layers=model.layers[-1].name,
)
top = issues.explain(influence, (x_train, y_train), k=5, count=3, verbose=0)
kt.plots.proponents_and_opponents(
    top,
    x_train[top.query_ids],
    x_train,
    query_labels=y_train[top.query_ids],
    train_labels=y_train,
    is_mislabeled=is_wrong,
)

# %% [markdown]
# Each row is a suspect. Its first proponent, on the left, is itself, and other
# wrong labels follow. Its opponents, on the right, look like it and have
# another label: the one that it should have.
#
# ## How many are there, really?
#
# Here we know the truth.

# %%
found = is_wrong[issues.issue_ids]
print(f"Suspected: {issues.num_issues}, wrong: {is_wrong.sum()}")
print(f"Of the suspected, {found.mean():.0%} are wrong.")
print(f"Of the wrong, {found.sum() / is_wrong.sum():.0%} are suspected.")

# %% [markdown]
# The usual way is to sort by the loss that the trained network has. How much
# does a person find by inspecting a part of the digits in either order?

# %%
dynamics = kt.training_dynamics(
    model, (x_train, y_train), "runs/noisy_digits", verbose=0
)
rankings = {"find_label_issues": issues, "loss": dynamics.loss[-1]}
kt.plots.recall_curve(rankings, dict(enumerate(is_wrong)))

# %% [markdown]
# ## Put them right, and train again
#
# A person who looks at the suspects corrects the labels that are wrong.
# Without a person, the suspects can be left out, or take the suggested labels.
# (A percent either way is chance: there are 500 test digits.)

# %%
suspects = issues.issue_ids
corrected, suggested = y_train.copy(), y_train.copy()
corrected[suspects] = true_labels[suspects]
suggested[suspects] = issues.suggested_labels[: issues.num_issues]
data = {
    "suspects left out": (
        np.delete(x_train, suspects, axis=0),
        np.delete(y_train, suspects),
    ),
    "suggested labels": (x_train, suggested),
    "corrected by a person": (x_train, corrected),
    "all labels right": (x_train, true_labels),
}
for name, (x, y) in data.items():
    retrained = train(x, y)
    accuracy = retrained.evaluate(x_test, y_test, verbose=0)[1]
    print(f"{name:>21}: accuracy {accuracy:.1%}")

# %% [markdown]
# ## A map of the training
#
# Each point is a digit: how probable the network found its label, on average
# over the epochs, and how much that changed. Wrong labels, with red circles,
# gather at the bottom, where the network never comes to believe the label.

# %%
kt.plots.data_map(dynamics, is_wrong)

# %% [markdown]
# ## In your own work
#
# - Record from the first epoch on: the number is estimated there, before wrong
#   labels are learnt by heart.
# - `folds=3` also trains copies of the network on parts of the data, each of
#   which judges what it has not seen. It finds somewhat more, and takes as
#   long as two more trainings.
# - Rare examples are suspicious too, though their labels are right. They are
#   worth a look as well.
# - `keras_tracin-label_issues --help` does this from the command line;
#   [docs/mislabeled.md](../../docs/mislabeled.md) says how far to trust it.
