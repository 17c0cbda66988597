# %% [markdown]
# # Explaining a prediction three ways
#
# **Description:** TracIn, influence functions and representer points explain
# the same prediction by the same call. Their answers differ, since they measure
# different things. Removing the examples that they name and training again
# shows how good they are.
#
# | method | what a score measures |
# |---|---|
# | TracIn | decrease of the loss by training steps on the example |
# | Influence functions | rise of the loss without it, after convergence |
# | Representer points | contribution to the logit, in the last layer |

# %%
import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_tracin as kt

# %matplotlib inline

# %%
digits = load_digits()
images = digits.images[..., None].astype("float32") / 16
x_train, x_test, y_train, y_test = train_test_split(
    images, digits.target, train_size=600, random_state=0
)


def build(seed=0, **options):
    """A compiled network with initial weights of this seed."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="tanh", name="hidden"),
            keras.layers.Dense(10, name="logits"),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **options,
    )
    return model


record = kt.TracInCheckpoint("runs/three_ways", epochs=5, overwrite=True)
model = build()
model.fit(
    x_train, y_train, epochs=40, batch_size=64, callbacks=[record], verbose=0
)
print(
    f"Loss of the test digits: {model.evaluate(x_test, y_test, verbose=0):.3f}"
)

# %% [markdown]
# ## The prediction
#
# A hard test digit: among those that the network classifies right, the one with
# the highest loss.

# %%
logits = model.predict(x_test, verbose=0)
losses = np.asarray(
    keras.losses.sparse_categorical_crossentropy(
        y_test, logits, from_logits=True
    )
)
is_right = logits.argmax(axis=1) == y_test
query = np.argmax(np.where(is_right, losses, 0))
question = x_test[[query]], y_test[[query]]
runner_up = logits[query].argsort()[-2]
print(f"A {y_test[query]}, nearly taken for a {runner_up}.")

# %% [markdown]
# ## Three methods, one call
#
# Each takes the model and the training data. TracIn also needs the recorded
# run. Influence functions need a damping λ, which is added to the curvature of
# the loss: the Hessian of a network has eigenvalues that are zero or negative.
# Those of the Gauss-Newton matrix are not negative, and EK-FAC inverts it layer
# by layer. Representer points need a regularised last layer, and retune it.

# %%
train_data = (x_train, y_train)
methods = {
    "TracIn": kt.TracIn(model, train_data, "runs/three_ways"),
    "influence functions": kt.InfluenceFunctions(
        model, train_data, curvature="ekfac", damping=0.01
    ),
    "representer points": kt.RepresenterPoints(
        model, train_data, l2=1e-3, verbose=0
    ),
}
scores = {
    name: method.influence(question, verbose=0)
    for name, method in methods.items()
}

# %%
kt.plots.proponents_and_opponents(
    kt.TopK.concat([attribution.top_k(5) for attribution in scores.values()]),
    x_test[[query] * 3],
    x_train,
    query_labels=list(scores),
    train_labels=y_train,
)

# %% [markdown]
# The sizes of scores have different meanings and cannot be compared from row to
# row. Their signs can: positive is always a proponent.
#
# TracIn and influence functions name digits that look like the query, on both
# sides. Representer points use only the 32 inputs of the last layer. A score is
# the product of their similarity to those of the query and of the misfit of the
# training digit, so a few digits with a bad fit appear for many queries.
#
# How similar are the rankings over all training digits?

# %%
table = pd.DataFrame(
    {name: values.scores[0] for name, values in scores.items()}
)
table.corr("spearman").round(2)

# %% [markdown]
# ## Which one is right?
#
# Retraining decides. Leave out the 20 strongest proponents of each method,
# train from the same initial weights, and measure the rise of the query's loss;
# for comparison, leave out 20 random digits of the same class. Since trainings
# vary by chance, each is repeated with three seeds.

# %%
rng = np.random.default_rng(0)
same_class = np.flatnonzero(y_train == y_test[query])
left_out = {
    "none": np.array([], int),
    "20 at random, same class": rng.choice(same_class, 20, replace=False),
}
for name, values in scores.items():
    left_out[f"20 by {name}"] = values.top_k(20).proponents.ids[0]
print(f"{len(same_class)} training digits are an {y_test[query]}.")

# %%
retrained = build(steps_per_execution=20)  # 20 steps in a call


def loss_without(ids, seed):
    """The query's loss after 40 epochs without these digits."""
    keep = np.setdiff1d(np.arange(len(y_train)), ids)
    data = tf.data.Dataset.from_tensor_slices((x_train[keep], y_train[keep]))
    data = data.shuffle(600, seed=seed).repeat(40).batch(64)
    retrained.set_weights(build(seed).get_weights())
    retrained.fit(data, shuffle=False, verbose=0)
    logits = retrained(question[0])
    return float(
        keras.losses.sparse_categorical_crossentropy(
            question[1], logits, from_logits=True
        )[0]
    )


seeds = range(3)
results = pd.DataFrame(
    [[loss_without(ids, seed) for seed in seeds] for ids in left_out.values()],
    index=list(left_out),
    columns=[f"loss, seed {seed}" for seed in seeds],
)
results["mean"] = results.mean(axis=1)
results.round(2)

# %% [markdown]
# Without 20 of the 50 digits of the class, the loss rises in any case. It rises
# far more without those that TracIn and influence functions name: the
# prediction depends on them. Leaving out those of representer points has
# slightly more effect than leaving out random digits: they use nothing below
# the last layer, where the digits of a class look alike.
#
# ## Which one to use
#
# - **TracIn** assumes least: no convergence, any layer, any loss. Begin with
#   it.
# - **Influence functions** describe leaving an example out at a minimum. The
#   closer training is to one, the better; the library warns if it is not close.
# - **Representer points** explain the *prediction*, not its loss, through the
#   last layer alone, and add up to the logit exactly:

# %%
points = methods["representer points"]
total = scores["representer points"].scores[0].sum()
logit = points.logits(question, verbose=0)[0, y_test[query]]
print(f"The scores add up to {total:.3f}, the logit is {logit:.3f}.")
print(points.faithfulness())
