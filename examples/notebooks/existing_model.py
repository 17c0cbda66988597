# %% [markdown]
# # An existing model and its checkpoint files
#
# **Description:** Take a `.keras` file and the weights that `ModelCheckpoint`
# saved, and ask which training examples are behind a prediction, without
# training again.
#
# Install from a clone: `pip install ".[examples]"`.
#
# The model here was trained without keras_tracin. What is left of the training
# are its files and its data. That is enough.

# %%
import pathlib

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_tracin as kt

# %matplotlib inline
# %config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight","dpi":72}

# %% [markdown]
# ## The training of the past
#
# Somebody trained a classifier of digits like this, and saved the weights after
# each epoch. If you have such files already, begin at the next heading.

# %%
digits = load_digits()
images = digits.images[..., None].astype("float32") / 16
x_train, x_test, y_train, y_test = train_test_split(
    images, digits.target, test_size=500, random_state=0
)


def train_as_usual():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(
        "adam", "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    save = keras.callbacks.ModelCheckpoint(
        "saved/epoch-{epoch:02d}.weights.h5", save_weights_only=True
    )
    model.fit(x_train, y_train, epochs=10, callbacks=[save], verbose=0)
    model.save("saved/digits.keras")


train_as_usual()

# %% [markdown]
# ## Load what there is
#
# The files are given in the order of training. What they do not tell is the
# learning rate: here it is the optimizer's, the same in all epochs. With a
# schedule, pass the mean rate of each epoch.

# %%
model = keras.models.load_model("saved/digits.keras")
files = sorted(pathlib.Path("saved").glob("epoch-*.weights.h5"))
rate = float(model.optimizer.learning_rate)
run = kt.TrainingRun.from_weights(files, learning_rates=rate)
print(run)

loss, accuracy = model.evaluate(x_test, y_test, verbose=0)
print(f"Accuracy on test digits: {accuracy:.1%}, learning rate {rate:.3g}")

# %% [markdown]
# Files that are years old may not belong to the data that you found. So look
# first: `kt.check` loads the files into the model, computes gradients of some
# examples and says what stands in the way.

# %%
report = kt.check(
    model, (x_train, y_train), run, (x_test, y_test), max_examples=500
)

# %% [markdown]
# The loss of the training data should fall from file to file. Pixels in another
# scale, or classes in another order, would show here.

# %%
dynamics = kt.training_dynamics(model, (x_train, y_train), run, verbose=0)
for epoch, losses in zip(dynamics.epochs, dynamics.loss, strict=True):
    print(f"epoch {epoch:2}: mean loss {losses.mean():.3f}")

# %% [markdown]
# ## Why this prediction?
#
# TracIn adds up, over the files, how much a step on a training digit lowered or
# raised the loss of the test digit.

# %%
predictions = model.predict(x_test, verbose=0)
confidence = predictions[np.arange(len(y_test)), y_test]
worst = np.argsort(confidence)[:3]
queries = x_test[worst], y_test[worst]
captions = [
    f"{label} (taken for {predictions[at].argmax()})"
    for at, label in zip(worst, y_test[worst], strict=True)
]

tracin = kt.TracIn(model, (x_train, y_train), run)
top = tracin.top_k(queries, k=5, verbose=0)
kt.plots.proponents_and_opponents(
    top, queries, (x_train, y_train), query_labels=captions
)

# %% [markdown]
# ## With the `.keras` file alone
#
# Influence functions need no checkpoints, only the trained model: they ask how
# the loss of the test digit would change if a training digit counted a little
# more.

# %%
influence = kt.InfluenceFunctions(model, (x_train, y_train))
alone = influence.top_k(queries, k=5, verbose=0)
kt.plots.proponents_and_opponents(
    alone, queries, (x_train, y_train), query_labels=captions
)

# %% [markdown]
# The digits are others, since the question is another: TracIn follows the
# training, and influence functions look at its end.

# %% [markdown]
# ## Which labels are wrong?
#
# The files say this too: one forward pass with each of them.

# %%
issues = kt.find_label_issues(model, (x_train, y_train), run, verbose=0)
print(f"{issues.num_issues} of {len(y_train)} labels are suspected.")
issues.to_dataframe().head()

# %% [markdown]
# ## A page to look at
#
# The report is one file for a browser. It shows the queries, the suspected
# labels with the digits that contradict them, and a map of the training.

# %%
by_loss = kt.InfluenceFunctions(model, (x_train, y_train), relative="loss")
why = issues.explain(by_loss, (x_train, y_train), k=6, verbose=0)
kt.report.write_html(
    "digits.html",
    train=(x_train, y_train),
    test=queries,
    top_k=top,
    label_issues=issues,
    explanation=why,
    dynamics=dynamics,
    train_predictions=model.predict(x_train, verbose=0),
    test_predictions=predictions[worst],
    overwrite=True,
)

# %% [markdown]
# ## The next training
#
# With `callbacks=[kt.TracInCheckpoint("runs/digits")]` beside
# `ModelCheckpoint`, the next training records what these files lack: the
# learning rate of each step, which variables it changed, and the losses to
# check the data against. [Trainings of every kind](../../docs/trainings.md)
# says what is recorded.
