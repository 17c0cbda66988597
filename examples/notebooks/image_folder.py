# %% [markdown]
# # Photographs in folders: which are in the wrong one?
#
# **Description:** Train an image classifier from a folder of files, see which
# photographs made it misread another, and find the files that lie in the wrong
# folder.
#
# Install from a clone: `pip install ".[examples]"`.
#
# `keras.utils.image_dataset_from_directory` takes the label of a photograph
# from the folder that it lies in. A file in the wrong folder is a wrong label.
# Here some files are put into a wrong folder on purpose, so that what is found
# can be counted.

# %%
import os
import pathlib
import shutil
import textwrap
import warnings

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow_datasets as tfds

import keras_tracin as kt

# %matplotlib inline
# %config InlineBackend.figure_formats = ["jpeg"]
# %config InlineBackend.print_figure_kwargs = {"bbox_inches": "tight","dpi":90}
# Keras says so whenever it trains on a `tf.data.Dataset`.
warnings.filterwarnings("ignore", message="`shuffle=True` was passed")

# %% [markdown]
# ## A folder of photographs
#
# Three classes of CIFAR-10 as PNG files: `photos/train/horse/00012.png`.
# TensorFlow Datasets downloads CIFAR-10 the first time. One of twelve training
# files goes into the folder of another class. With photographs of your own,
# begin at the next heading.

# %%
CLASSES = {1: "automobile", 7: "horse", 8: "ship"}
data = os.environ.get("KERAS_TRACIN_DATA")
cifar10 = tfds.load("cifar10", data_dir=data and f"{data}/tfds")

rng = np.random.default_rng(0)
misplaced = {}  # path: the folder where it belongs
for part, count in (("train", 7_000), ("test", 1_000)):
    for name in CLASSES.values():
        pathlib.Path("photos", part, name).mkdir(parents=True, exist_ok=True)
    photos = [
        (example["image"].numpy(), CLASSES[int(example["label"])])
        for example in cifar10[part].take(count)
        if int(example["label"]) in CLASSES
    ]
    for number, (pixels, name) in enumerate(photos):
        folder = name
        if part == "train" and rng.random() < 1 / 12:
            folder = rng.choice([n for n in CLASSES.values() if n != name])
        path = f"photos/{part}/{folder}/{number:05}.png"
        keras.utils.save_img(path, pixels, scale=False)
        if folder != name:
            misplaced[path] = name
print(f"{len(misplaced)} files are in the wrong folder.")

# %% [markdown]
# ## Read, train, record
#
# This is Keras as usual, with one more callback. The folder may shuffle, as it
# does by default: an example is known by the name of its file. Augmentation is
# a layer of the model, so scores are of the photographs as they are in the
# files.

# %%
train = keras.utils.image_dataset_from_directory(
    "photos/train", image_size=(32, 32), seed=0
)
test = keras.utils.image_dataset_from_directory(
    "photos/test", image_size=(32, 32), shuffle=False
)
names = train.class_names


# %%
def train_on(data, callbacks=()):
    """Trains a new network; prints its accuracy on the test photographs."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.RandomFlip("horizontal"),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(len(names), activation="softmax", name="class"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(2e-3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(data, epochs=12, callbacks=list(callbacks), verbose=0)
    print(f"Accuracy: {model.evaluate(test, verbose=0)[1]:.1%}")
    return model


# %%
model = train_on(train, [kt.TracInCheckpoint("runs/photos", overwrite=True)])

# %% [markdown]
# ## Why was this photograph misread?
#
# The queries are the test photographs with the highest loss. `test` does not
# shuffle, so predictions have the order of its files.

# %%
predictions = model.predict(test, verbose=0)
labels = np.concatenate([y for _, y in test])
confidence = predictions[np.arange(len(labels)), labels]
worst = np.argsort(confidence)[:2]
x_test = np.concatenate([x for x, _ in test])
queries = x_test[worst], labels[worst]
captions = [
    f"{names[label]} (taken for {names[predictions[at].argmax()]})"
    for at, label in zip(worst, labels[worst], strict=True)
]

tracin = kt.TracIn(model, train, "runs/photos")
top = tracin.top_k(queries, k=3, verbose=0)
kt.plots.proponents_and_opponents(
    top, queries, train, query_labels=captions, class_names=names
)

# %% [markdown]
# To the left are photographs that pulled the network towards the right answer,
# to the right those that pulled it away. Each is a file:

# %%
top.to_dataframe().head(4)

# %% [markdown]
# ## Which files are in the wrong folder?
#
# All files are ranked by how the training dealt with them. The number of wrong
# ones is estimated as well.

# %%
issues = kt.find_label_issues(model, train, "runs/photos", verbose=0)
found = np.isin(issues.issue_ids, list(misplaced))
print(f"{issues.num_issues} files are suspected, {found.mean():.0%} rightly.")
print(f"{found.sum() / len(misplaced):.0%} of the misplaced are among them.")
for reason in issues.reasons:
    print(textwrap.fill(reason, 80))
issues.to_dataframe().drop(columns="is_issue").head()

# %% [markdown]
# The first sixteen suspects. Above each are its folder and the class that is
# suggested, in red where we had moved the file.

# %%
figure, axes = plt.subplots(2, 8, figsize=(8, 3.2))
for rank, axis in enumerate(axes.flat):
    file = issues.ids[rank]
    axis.imshow(keras.utils.load_img(file))
    given, other = issues.given_labels[rank], issues.suggested_labels[rank]
    axis.set_title(
        f"{names[given]}\n→ {names[other]}",
        color="firebrick" if file in misplaced else "black",
        fontsize=9,
    )
    axis.axis("off")

# %% [markdown]
# ## A page to decide on
#
# A person who knows the data decides. The report shows each suspect beside the
# photographs that contradict its label, those that agree with it, and those
# that look alike to the network. It is one file that opens in any browser,
# without a network connection.

# %%
# The network was not trained to the end, as networks seldom are.
warnings.filterwarnings("ignore", message="The model has not converged")
by_loss = kt.InfluenceFunctions(model, train, relative="loss", layers="class")
alike = kt.evaluation.EmbeddingSimilarity(model, train)
kt.report.write_html(
    "photos.html",
    train=train,
    test=queries,
    top_k=top,
    label_issues=issues,
    explanation=issues.explain(by_loss, train, k=6, count=200, verbose=0),
    neighbours=issues.explain(alike, train, k=6, count=200, verbose=0),
    dynamics=kt.training_dynamics(model, train, "runs/photos", verbose=0),
    test_predictions=predictions[worst],
    class_names=names,
    overwrite=True,
)

# %% [markdown]
# ## Afterwards
#
# The page exports decisions as CSV, with the names of the files. Move the
# files, or let `kt.report.apply_decisions(train, "photos-decisions.csv")`
# return the dataset without the removed photographs and with the new labels.
#
# Here a person who looks at all suspects would find these. Put back in a copy
# of the folder, they give:

# %%
shutil.copytree("photos/train", "photos/corrected", dirs_exist_ok=True)
for path in issues.issue_ids[found]:
    _, _, folder, name = pathlib.Path(path).parts
    os.replace(
        pathlib.Path("photos/corrected", folder, name),
        pathlib.Path("photos/corrected", misplaced[path], name),
    )

corrected = keras.utils.image_dataset_from_directory(
    "photos/corrected", image_size=(32, 32), seed=0
)
corrected_model = train_on(corrected)

# %% [markdown]
# [Finding wrong labels](../../docs/mislabeled.md) says how far to trust the
# number, and how to find more: `folds=3` trains copies that judge what they
# have not seen.
