"""Models in files, with their runs and the data that they were trained on."""

import csv
import dataclasses
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import flags
from PIL import Image

import keras_tracin as kt
from keras_tracin.scripts import _flags
from keras_tracin.scripts._files_task import FilesTask

layers = keras.layers
CLASSES = ("ant", "bee", "cat")
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model that was trained and saved.

    Attributes:
        name: `NAME.keras` is its file, `runs/NAME` its run.
        model: the model.
    """

    name: str
    model: keras.Model

    @property
    def run(self) -> str:
        return f"runs/{self.name}"

    @property
    def flags(self) -> tuple[str, ...]:
        return f"--model={self.name}.keras", f"--run={self.run}"


def train(name, model, data, loss=SPARSE, epochs=4, rate=0.1) -> Trained:
    """Trains a model in the current directory, and saves it."""
    model.compile(keras.optimizers.SGD(rate), loss)
    if isinstance(data, tuple):
        data = tf.data.Dataset.from_tensor_slices(data).batch(16)
    record = kt.TracInCheckpoint(f"runs/{name}", overwrite=True)
    model.fit(data, epochs=epochs, verbose=0, callbacks=[record])
    model.save(f"{name}.keras")
    return Trained(name, model)


def images(folder, scale=255.0):
    """The images of a folder, as a user reads them by Keras."""
    data = keras.utils.image_dataset_from_directory(
        folder,
        color_mode="grayscale",
        image_size=(6, 6),
        batch_size=16,
        shuffle=False,
        verbose=False,
    )
    return data.map(lambda x, y: (x / scale, y))


def write_images(folder, counts, seed=0):
    """PNG files 6 × 6 of each class, one row of which is brighter."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        directory = Path(folder) / name
        directory.mkdir(parents=True)
        for at in range(count):
            pixels = rng.integers(0, 150, [6, 6])
            pixels[2 * CLASSES.index(name)] += 105
            image = Image.fromarray(pixels.astype("uint8"))
            image.save(directory / f"{at:02}.png")


def write_csv(path, **columns):
    """A table of these columns."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def files_task(*arguments) -> FilesTask:
    """The task that flags describe, settled."""
    values = flags.FlagValues()
    _flags.define_task(values)
    _flags.define_run(values)
    _flags.define_quiet(values)
    values(["test", *arguments])
    task = FilesTask(values)
    task.model()
    task.settle()
    return task
