# %% [markdown]
# # Choosing data: what to keep, and what to drop
#
# **Description:** Fine-tune a network on the tenth of the data that matters
# for a purpose, chosen by influence; then find and drop the examples that harm.
# Both times training again shows what it was worth.

# %%
import keras
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

import keras_tracin as kt

# %matplotlib inline

# %% [markdown]
# ## Two scanners
#
# Digits come from two scanners, and the second turns them on their side. A
# network has learnt from the first alone. There are 900 more digits with
# labels, one in six of them from the second, and nobody has written down which.
# The network is to read the second scanner now, and there is time to train on
# 90 digits.

# %%
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images = digits.images[order, :, :, None].astype("float32") / 16
labels = digits.target[order]


def turned(images):
    """The digits as the second scanner has them."""
    return np.rot90(images, axes=(1, 2))


known = images[:400], labels[:400]
pool_images, pool_labels = images[400:1300].copy(), labels[400:1300]
is_second = np.arange(900) % 6 == 0
pool_images[is_second] = turned(pool_images[is_second])
pool = pool_images, pool_labels
queries = turned(images[1300:1360]), labels[1300:1360]  # of the second scanner
test = turned(images[1360:]), labels[1360:]


def build(seed=0):
    """A compiled network with initial weights of this seed."""
    keras.utils.set_random_seed(seed)
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
        keras.optimizers.SGD(0.2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=10,
    )
    return model


model = build()
record = kt.TracInCheckpoint("runs/first_scanner", epochs=10, overwrite=True)
model.fit(*known, epochs=30, verbose=0, callbacks=[record])
before = model.evaluate(*test, verbose=0)[1]
print(f"Second scanner, before: {before:.0%} of {len(test[1])} digits.")

# %% [markdown]
# Sixty digits of the second scanner are at hand as queries. Which of the 900
# would help them? `normalize="both"` makes scores the cosines of gradients, so
# that no query counts more than another, and the queries take turns: each takes
# the digit with its highest score that is still there.

# %%
tracin = kt.TracIn(model, pool, "runs/first_scanner", normalize="both")
selection = kt.select_examples(tracin, 0.1, test=queries, verbose=0)
print(selection)
print(f"From the second scanner: {is_second[selection.ids].mean():.0%}")
selection.to_dataframe().head()

# %% [markdown]
# Is the tenth that was chosen better than a tenth at random? The same network
# is trained on both. The first line is what knowing the scanner would bring.

# %%
weights = model.get_weights()
tuned = build()


def accuracy_after(ids):
    """Accuracy for the second scanner after training on these digits."""
    tuned.set_weights(weights)
    tuned.fit(pool_images[ids], pool_labels[ids], epochs=20, verbose=0)
    return tuned.evaluate(*test, verbose=0)[1]


def random_ids(ids, seed):
    """A tenth of the pool out of these digits."""
    return np.random.default_rng(seed).choice(ids, 90, replace=False)


chosen = {
    "at random, second scanner": lambda s: random_ids(
        np.flatnonzero(is_second), s
    ),
    "chosen": lambda s: selection.ids,
    "at random": lambda s: random_ids(np.arange(900), s),
}
pd.DataFrame(
    {
        name: [accuracy_after(ids(seed)) for seed in range(3)]
        for name, ids in chosen.items()
    }
).agg(["mean", "min", "max"]).T.round(3)

# %% [markdown]
# ## What harms
#
# Now a fifth of the labels of 900 digits is wrong. `find_label_issues` ranks
# them by how suspicious their labels are, from the recorded run alone.

# %%
clean = images[400:1300], labels[400:1300]
rng = np.random.default_rng(1)
is_wrong = np.isin(np.arange(900), rng.choice(900, 180, replace=False))
wrong = (labels[400:1300] + rng.integers(1, 10, 900)) % 10
noisy = clean[0], np.where(is_wrong, wrong, clean[1])

trained = build()
record = kt.TracInCheckpoint("runs/noisy", epochs=4, overwrite=True)
trained.fit(*noisy, epochs=40, verbose=0, callbacks=[record])
issues = kt.find_label_issues(trained, noisy, "runs/noisy", verbose=0)
dynamics = kt.training_dynamics(trained, noisy, "runs/noisy", verbose=0)
found = is_wrong[issues.ids[:180]].mean()
print(f"Wrong among the 180 most suspicious: {found:.0%}")

# %% [markdown]
# What does dropping them bring? `removal_curve` trains without the examples of
# the highest scores, and without as many at random. Outcomes are kept in a
# directory: a call that is stopped goes on when it is made again.


# %%
trained_again = build()


def fit(data, seed):
    """A network trained on some of the digits."""
    trained_again.set_weights(build(seed).get_weights())
    trained_again.fit(*data, epochs=40, verbose=0)
    return trained_again


upright = images[1360:], labels[1360:]
curves = kt.evaluation.removal_curve(
    fit,
    noisy,
    upright,
    {"label issues": issues, "loss at the end": dynamics.loss[-1]},
    "retrained/noisy",
    shares=(0.1, 0.2),
    seeds=(0, 1, 2),
    verbose=0,
)
kt.plots.retraining_curves(curves)

# %%
right = np.mean(
    [fit(clean, seed).evaluate(*upright, verbose=0)[1] for seed in range(3)]
)
noise = curves.everything.mean()
without = curves.mean("label issues")[1]
print(f"Labels as given {noise:.3f}, all of them right {right:.3f}")
print(f"Without the fifth that is most suspicious: {without:.3f}")
print(f"That brings back {(without - noise) / (right - noise):.0%}.")
curves.difference("label issues", "loss at the end")

# %% [markdown]
# ## Before you trust a selection
#
# - **Hold it against random examples**, of the same classes where labels are
#   known: often they are hard to beat.
# - **Look at it**: `selection.to_dataframe()` has the reasons, and
#   `kt.report.write_html(label_issues=issues)` makes a page of the suspects.
# - What was measured elsewhere is on the page *Choosing data* of the
#   documentation, with what did not work.
