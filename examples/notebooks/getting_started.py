# %% [markdown]
# # Getting started: which training examples made the model say this?
#
# **Description:** Record one training, take a wrong prediction, and see which
# training examples pushed the model towards it.
#
# A model's prediction comes from its training data, one gradient step at a
# time. TracIn traces it back: it saves a few checkpoints of the training, and
# computes for every training example how much a step on it would have lowered
# or raised the loss of the prediction in question.
#
# The model here is a small convolutional network, and the data are
# scikit-learn's handwritten digits, so that everything runs in seconds. The
# same code works for your own Keras model.

# %%
import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_tracin as kt

# %matplotlib inline

keras.utils.set_random_seed(0)

# %% [markdown]
# ## Data and model
#
# 1,297 digits of 8×8 pixels to train on, 500 to test.

# %%
digits = load_digits()
images = digits.images[..., None].astype("float32") / 16
x_train, x_test, y_train, y_test = train_test_split(
    images, digits.target, test_size=500, random_state=0
)

# %%
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

# %% [markdown]
# ## Train, and record it
#
# Training needs one callback. It saves the weights after every epoch and
# records the learning rate of every step.

# %%
model.fit(
    x_train,
    y_train,
    epochs=12,
    verbose=0,
    callbacks=[kt.TracInCheckpoint("runs/digits", overwrite=True)],
)
loss, accuracy = model.evaluate(x_test, y_test, verbose=0)
print(f"Accuracy on test digits: {accuracy:.1%}")

# %% [markdown]
# Any length of training works, and any optimizer. The record is a sequence of
# checkpoints:

# %%
run = kt.TrainingRun("runs/digits")
print(run)
for checkpoint in run[::4]:
    print(
        f"epoch {checkpoint.epoch}: mean learning rate "
        f"{checkpoint.learning_rate:.3f}, loss {checkpoint.logs['loss']:.3f}"
    )

# %% [markdown]
# ## Three wrong predictions
#
# We take the test digits with the highest loss, where the network is confident
# of another class than the label.

# %%
logits = model.predict(x_test, verbose=0)
losses = np.asarray(
    keras.losses.sparse_categorical_crossentropy(
        y_test, logits, from_logits=True
    )
)
worst = np.argsort(-losses)[:3]
x_query, y_query = x_test[worst], y_test[worst]
taken_for = logits[worst].argmax(axis=1)
for label, other in zip(y_query, taken_for, strict=True):
    print(f"a {label}, taken for a {other}")

# %% [markdown]
# ## Explain
#
# `kt.TracIn` takes the data of `fit` and the recorded run. `top_k` returns each
# query's strongest *proponents* and *opponents*.

# %%
tracin = kt.TracIn(model, (x_train, y_train), "runs/digits")
top = tracin.top_k((x_query, y_query), k=5, verbose=0)

# %%
kt.plots.proponents_and_opponents(
    top,
    x_query,
    x_train,
    query_labels=[
        f"{a} (taken for {b})" for a, b in zip(y_query, taken_for, strict=True)
    ],
    train_labels=y_train,
)

# %% [markdown]
# On the left of each row is the test digit. Then come its proponents, with
# **positive** scores: training on them *lowered* the loss of this test digit.
# Most have its label and are written like it. (The 4s in the first row do not:
# they help because they are not 1s, the predicted class of the test digit.) The
# opponents have **negative** scores: training on them *raised* the loss. They
# look like the test digit as well, but have another label, mostly the predicted
# one.
#
# So the question "why did the model say this?" has an answer that one can look
# at.

# %% [markdown]
# ## Are scores right?
#
# This can be tested. From the weights of a checkpoint in the middle of
# training, take one step of gradient descent on a single training digit and
# measure the first query's loss. We do this for the proponents and opponents of
# this one checkpoint, with a step a hundred times smaller than in training, so
# that the loss should fall by a hundredth of the score.

# %%
middle = run.select([5])
x_one, y_one = x_query[:1], y_query[:1]
scores = kt.TracIn(model, (x_train, y_train), middle).influence(
    (x_one, y_one), verbose=0
)
best = scores.top_k(4)
strongest = np.concatenate(
    [best.proponents.ids[0], best.opponents.ids[0][::-1]]
)


# %%
loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
twin = keras.models.clone_model(model)


def change_of_loss(example, rate=0.05 / 100):
    """Change of the query's loss by a small step on this training digit."""
    twin.load_weights(middle[0].path)
    before = loss_of(y_one, twin(x_one))
    with tf.GradientTape() as tape:
        loss = loss_of(y_train[[example]], twin(x_train[[example]]))
    gradients = tape.gradient(loss, twin.trainable_variables)
    for variable, gradient in zip(
        twin.trainable_variables, gradients, strict=True
    ):
        variable.assign_sub(rate * gradient)
    return float(loss_of(y_one, twin(x_one)) - before)


for example in strongest:
    print(
        f"digit {example:>4}, a {y_train[example]}: "
        f"the score says {-scores.scores[0, example] / 100:+.3f}, "
        f"the loss changed by {change_of_loss(example):+.3f}"
    )

# %% [markdown]
# For a positive score the loss falls, and by nearly as much. With steps as
# large as in training, the amounts differ more: a score is a linear
# approximation, and the loss is curved. So use scores for ranking and
# comparing.
#
# ## Before long computations
#
# With large models and data, first check for errors and estimate the time:

# %%
report = kt.check(
    model, (x_train, y_train), run, (x_test, y_test), max_examples=500
)

# %% [markdown]
# ## Next steps
#
# - `tracin.influence(test)` returns the scores of all training examples, an
#   array `[num_test, num_train]` with the ids of both.
# - `tracin.self_influence()` ranks training examples by how much the model had
#   to memorize them, which finds wrong labels: see the notebook *Finding
#   mislabelled data*.
# - Datasets that shuffle need ids:
#   `kt.with_ids((x, y)).shuffle(1000).batch(32)`.
# - The notebook *Explaining a prediction three ways* compares TracIn with
#   influence functions and representer points, and *Low-latency lookup* answers
#   a query in milliseconds.
