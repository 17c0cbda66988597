# %% [markdown]
# # Low-latency lookup
#
# **Description:** Sketch all training gradients once, keep them on disk, and
# answer "which training examples does this prediction rest on?" in
# milliseconds.
#
# `TracIn.top_k` goes through all training data for each call. That is right for
# a study of a thousand queries, and too slow for a service that shows, beside
# each prediction, what it rests on. `kt.InfluenceIndex` does the work
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
# Four checkpoints were kept. `dim` is how many numbers stand for a gradient of
# 18,954 at each. The larger, the better the estimates, and the larger the
# index. A build that was interrupted goes on where it was when the same call is
# made again.

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
# An index says how good it is. While it was built, it took some training digits
# as queries and compared what it finds with exact scores: that is the recall.
#
# ## Ask
#
# The first query compiles a step. From then on:

# %%
index.query((x_test[:1], y_test[:1]), k=10)
times = []
for i in range(1, 101):
    start = time.perf_counter()
    index.query((x_test[i : i + 1], y_test[i : i + 1]), k=10)
    times.append(1e3 * (time.perf_counter() - start))
print(f"{np.median(times):.1f} ms for a query, in the median of {len(times)}")

# %% [markdown]
# A service has no label for what it is asked about. Then the question is what
# supports the class that the model *predicts*: pass that as the label.

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
# Exact TracIn is at hand here, so let us compare on all 500 test digits: what
# share of the ten strongest proponents does the index name?

# %%
exact = tracin.top_k((x_test, y_test), k=10, verbose=0)
found = index.query((x_test, y_test), k=10)


def recall(found):
    """The share of the exact ten that are among these."""
    pairs = zip(exact.proponents.ids, found.proponents.ids, strict=True)
    return np.mean([np.isin(best, some).mean() for best, some in pairs])


print(f"recall of the ten strongest proponents: {recall(found):.2f}")

# %% [markdown]
# Where that is not enough, let the index propose more candidates and score
# those exactly. This reads the training examples that it names, so the index is
# opened with the method it came from.

# %%
exactly = kt.InfluenceIndex("index/digits", model, method=tracin)
reranked = exactly.query((x_test[:50], y_test[:50]), k=10, rerank=50)
best = exact.proponents.ids[:50]
pairs = zip(best, reranked.proponents.ids, strict=True)
share = np.mean([np.isin(one, other).mean() for one, other in pairs])
print(f"recall after scoring 50 candidates exactly: {share:.2f}")

# %% [markdown]
# ## In your own work
#
# - New training examples join by `index.append((x, y))`.
# - With 60,000 MNIST digits and five checkpoints a query takes about ten
#   milliseconds on two cores; `examples/low_latency.py` measures it.
# - An index of influence functions is made the same way, from
#   `kt.InfluenceFunctions` with `solver=kt.RandomizedSketch(dim)`.
# - `keras_tracin-index` and `keras_tracin-query` do this from the command line.
