# %% [markdown]
# # Low-latency lookup
#
# **Description:** Sketch all training gradients once, store them on disk, and
# find the training examples that influence a prediction in milliseconds.
#
# `TracIn.top_k` reads all training data in each call. That is right for a study
# of a thousand queries, and too slow for a service that explains each of its
# predictions. `kt.InfluenceIndex` does the work
# beforehand: each training example's gradient at each checkpoint becomes a
# short random *sketch*, whose inner products are unbiased estimates of those of
# the gradients. A query is then sketched as well, and looked up among its
# nearest neighbours.

# %%
import time

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_tracin as kt

# %matplotlib inline

keras.utils.set_random_seed(0)

# %%
digits = load_digits()
images = digits.images[..., None].astype("float32") / 16
x_train, x_test, y_train, y_test = train_test_split(
    images, digits.target, test_size=500, random_state=0
)
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
record = kt.TracInCheckpoint("runs/lookup", epochs=3, overwrite=True)
model.fit(x_train, y_train, epochs=12, verbose=0, callbacks=[record])
print(f"{model.count_params():,} weights, {len(x_train):,} training digits")

# %% [markdown]
# ## Build
#
# There are four checkpoints. At each, a gradient of 18,954 numbers is replaced
# by a sketch of `dim` numbers. The larger `dim`, the better the estimates, and
# the larger the index. The same call continues a build that was interrupted.

# %%
tracin = kt.TracIn(model, (x_train, y_train), "runs/lookup")
start = time.perf_counter()
kt.InfluenceIndex.build(
    tracin, "index/digits", projection=kt.TensorSketch(dim=1024)
)
print(f"built in {time.perf_counter() - start:.1f} s")

# %% [markdown]
# ## Open, as a service would
#
# It needs the model and the directories of the index and the run, not the
# training data.

# %%
index = kt.InfluenceIndex("index/digits", model)
print(index)

# %% [markdown]
# An index measures its quality. When it was built, it used several training
# digits as queries and compared its results with exact scores: that is the
# recall.
#
# ## Query
#
# The first query compiles a step. After that:

# %%
index.query((x_test[:1], y_test[:1]), k=10)
times = []
for i in range(1, 101):
    start = time.perf_counter()
    index.query((x_test[i : i + 1], y_test[i : i + 1]), k=10)
    times.append(1e3 * (time.perf_counter() - start))
print(f"{np.median(times):.1f} ms for a query, in the median of {len(times)}")

# %% [markdown]
# A service has no labels for its queries. To explain the class that the model
# *predicts*, pass it as the label.

# %%
queries = x_test[[7, 42, 99]]
predicted = model.predict(queries, verbose=0).argmax(axis=1)
top = index.query((queries, predicted), k=5)
kt.plots.proponents_and_opponents(
    top,
    queries,
    x_train,
    query_labels=[f"predicted {label}" for label in predicted],
    train_labels=y_train,
)

# %% [markdown]
# ## How good are the answers?
#
# Exact TracIn is available here, so let us compare on all 500 test digits: what
# share of the ten strongest proponents does the index find?

# %%
exact = tracin.top_k((x_test, y_test), k=10, verbose=0)
approximate = index.query((x_test, y_test), k=10)


def recall(top):
    """Share of the ten strongest that are in `top`."""
    pairs = zip(exact.proponents.ids, top.proponents.ids, strict=True)
    return np.mean([np.isin(best, ids).mean() for best, ids in pairs])


print(f"recall of the ten strongest proponents: {recall(approximate):.2f}")

# %% [markdown]
# If that is not enough, let the index propose more candidates and score them
# exactly. This reads the candidates from the training data, so the index is
# opened with the method that it was built from.

# %%
exact_index = kt.InfluenceIndex("index/digits", model, method=tracin)
reranked = exact_index.query((x_test[:50], y_test[:50]), k=10, rerank=50)
best = exact.proponents.ids[:50]
pairs = zip(best, reranked.proponents.ids, strict=True)
share = np.mean([np.isin(left, right).mean() for left, right in pairs])
print(f"recall after scoring 50 candidates exactly: {share:.2f}")

# %% [markdown]
# ## In your own work
#
# - `index.append((x, y))` adds new training examples.
# - With 60,000 MNIST digits and five checkpoints a query takes about ten
#   milliseconds on two cores; `examples/low_latency.py` measures it.
# - An index of influence functions is built the same way, from
#   `kt.InfluenceFunctions` with `solver=kt.RandomizedSketch(dim)`.
# - `keras_tracin-index` and `keras_tracin-query` do this from the command line.
