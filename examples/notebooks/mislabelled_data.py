# %% [markdown]
# # Finding mislabelled data
#
# **Description:** Rank training examples by self-influence, inspect the first,
# correct them, and measure the benefit, with the training loss as the baseline.
#
# A training example whose label contradicts the rest of the data is hard to
# learn: the network has to adapt to it alone. Its influence on its *own* loss,
# the self-influence, is then large. So, to find wrong labels, sort by
# self-influence and inspect the top.
#
# To be able to count them, we make a tenth of the labels wrong on purpose.

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
    """Trains a new network on these labels."""
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
# gradient. It is never negative, and takes a single pass over the data at each
# checkpoint.

# %%
tracin = kt.TracIn(model, (x_train, y_train), "runs/noisy_digits")
self_influence = tracin.self_influence(verbose=0)
first = self_influence.ranking().ids[:20]

# %% [markdown]
# These twenty come first, with their labels, in red if we made them wrong: all
# of them. It is visible at a glance.

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
# How many of the wrong labels are found after inspecting a share of the digits?
# The obvious baseline is to sort by the training loss.

# %%
logits = model.predict(x_train, verbose=0)
loss = np.asarray(
    keras.losses.sparse_categorical_crossentropy(
        y_train, logits, from_logits=True
    )
)
suspicion = {"self-influence": self_influence.scores, "loss": loss}
for name, scores in suspicion.items():
    detection = kt.evaluation.mislabel_detection(scores, is_wrong)
    print(
        f"{name:>14}: {detection.recall_at(0.1):.0%} of them in the first 10%, "
        f"{detection.recall_at(0.2):.0%} in the first 20%, "
        f"AUC {detection.auc:.3f}"
    )

# %%
kt.plots.recall_curve(suspicion, is_wrong)

# %% [markdown]
# Both find nearly everything. If labels are wrong **at random**, as here, a
# wrong label surprises the model, and the loss shows this as well or better, at
# less cost. Look at the loss first.
#
# But the loss does not say *why* an example is surprising, nor which
# predictions it affects. The next step does.
#
# ## Effects of wrong labels
#
# Take test digits with wrong predictions, and find the examples that hurt them.

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
# Most of the opponents, on the right, are mislabelled: similar digits with
# another label. So are some proponents: other digits with the test digit's
# label. A model learns from its labels, right or wrong.
#
# ## Does it help?
#
# Let a person inspect the first 15% of the ranking and correct wrong labels.
# Then train again, from the same initial weights.

# %%
inspected = self_influence.ranking().ids[: int(0.15 * len(y_train))]
corrected = y_train.copy()
corrected[inspected] = true_labels[inspected]
for name, labels in {
    "labels as they were": y_train,
    "15% inspected": corrected,
    "all labels right": true_labels,
}.items():
    retrained = model if labels is y_train else train(labels)
    accuracy = retrained.evaluate(x_test, y_test, verbose=0)[1]
    remaining = (labels != true_labels).sum()
    print(f"{name:>20}: {remaining:>3} wrong labels, accuracy {accuracy:.1%}")

# %% [markdown]
# ## In your own work
#
# - Use checkpoints from the part of training in which the loss falls;
# `kt.select_checkpoints` selects them. After a network has memorized its wrong
# labels, they are no longer hard for its last checkpoint. - Rare examples also
# come first, whether their labels are right or wrong. They   are worth
# inspecting as well. - `python -m keras_tracin.scripts.self_influence --help`
# does this from the   command line.
