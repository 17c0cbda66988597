# %% [markdown]
# # Finding mislabelled data
#
# **Description:** Rank training examples by self-influence, look at the first
# few, correct them, and see what that is worth. With the training loss as the
# baseline that it should be compared with.
#
# A training example whose label contradicts the rest of the data is hard to
# learn: the network has to bend for it alone. Its influence on its *own* loss,
# the self-influence, is then large. So the way to wrong labels is to sort by
# self-influence and to look at the top.
#
# To be able to count what is found, we make a tenth of the labels wrong on
# purpose.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_tracin as kt

# %matplotlib inline

keras.utils.set_random_seed(0)

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


# %%
def train(y, callbacks=()):
    """A network, trained from the start on these labels."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.05),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(x_train, y, epochs=15, verbose=0, callbacks=list(callbacks))
    return model


# %%
record = kt.TracInCheckpoint("runs/noisy_digits", overwrite=True)
model = train(y_train, [record])
print(f"Accuracy: {model.evaluate(x_test, y_test, verbose=0)[1]:.1%}")

# %% [markdown]
# ## Rank
#
# Self-influence is a sum over checkpoints of the squared length of an example's
# gradient. It is never negative, and one pass over the data is all it takes.

# %%
tracin = kt.TracIn(model, (x_train, y_train), "runs/noisy_digits")
self_influence = tracin.self_influence(verbose=0)
first = self_influence.ranking().ids[:20]

# %% [markdown]
# These twenty come first, each with the label that it bears, in red where we
# made it wrong: all of them. Without knowing that, one would see it at a
# glance.

# %%
figure, axes = plt.subplots(2, 10, figsize=(9, 2.4))
for axis, example in zip(axes.flat, first, strict=True):
    axis.imshow(x_train[example, ..., 0], cmap="gray")
    axis.set_title(
        y_train[example], color="firebrick" if is_wrong[example] else "black"
    )
    axis.axis("off")

# %% [markdown]
# ## Count, and compare with the loss
#
# How many of the wrong labels has one met after looking at so many digits? The
# obvious baseline is to sort by the training loss itself.

# %%
logits = model.predict(x_train, verbose=0)
loss = np.asarray(
    keras.losses.sparse_categorical_crossentropy(
        y_train, logits, from_logits=True
    )
)
suspicion = {"self-influence": self_influence.scores, "loss": loss}
for name, scores in suspicion.items():
    found = kt.evaluation.mislabel_detection(scores, is_wrong)
    print(
        f"{name:>14}: {found.recall_at(0.1):.0%} of them in the first 10%, "
        f"{found.recall_at(0.2):.0%} in the first 20%, AUC {found.auc:.3f}"
    )

# %%
kt.plots.recall_curve(suspicion, is_wrong)

# %% [markdown]
# Both find nearly everything. Where labels are wrong **at random**, as here, a
# wrong label is a surprise to the model, and the loss says so as well or
# better, for less work. Look at it first.
#
# What the loss cannot say is *why* an example is surprising, and where the
# surprise goes. The next step can.
#
# ## What does a wrong label do?
#
# Take a test digit that the network gets wrong, and look for what hurt it.

# %%
test_loss = np.asarray(
    keras.losses.sparse_categorical_crossentropy(
        y_test, model.predict(x_test, verbose=0), from_logits=True
    )
)
worst = np.argsort(-test_loss)[:3]
top = tracin.top_k((x_test[worst], y_test[worst]), k=5, verbose=0)
kt.plots.proponents_and_opponents(
    top,
    x_test[worst],
    x_train,
    query_labels=y_test[worst],
    train_labels=y_train,
    is_mislabeled=is_wrong,
)

# %% [markdown]
# Of the opponents, on the right, most are mislabelled: look-alikes of the test
# digit that say something else. And some proponents are too: digits of another
# kind that bear the test digit's label. A model learns from its labels, right
# or wrong.
#
# ## Is it worth the work?
#
# Have someone look at the first 15% of the ranking and correct what is wrong
# there. Then train again, from the same start.

# %%
inspected = self_influence.ranking().ids[: int(0.15 * len(y_train))]
corrected = y_train.copy()
corrected[inspected] = true_labels[inspected]
for name, labels in {
    "labels as they were": y_train,
    "15% inspected": corrected,
    "all labels right": true_labels,
}.items():
    again = model if labels is y_train else train(labels)
    accuracy = again.evaluate(x_test, y_test, verbose=0)[1]
    left = (labels != true_labels).sum()
    print(f"{name:>20}: {left:>3} wrong labels, accuracy {accuracy:.1%}")

# %% [markdown]
# ## In your own work
#
# - Use checkpoints from where the loss falls; `kt.select_checkpoints` chooses
#   them. Once a network has learned its wrong labels by heart, its last
#   checkpoint no longer finds them hard.
# - Rare examples come first too, rightly labelled or not. That is a list worth
#   reading for its own sake.
# - `python -m keras_tracin.scripts.self_influence --help` does this from the
#   command line.
