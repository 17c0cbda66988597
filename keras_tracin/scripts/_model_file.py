"""A saved model, and what its inputs and its loss take.

Synopsis:

    model = load_model("model.keras")
    form = ModelForm.of(model)
    form.only_input.shape                  # (28, 28, 1), without examples
    form.labels.encode(np.array([3, 7]))   # one-hot, if the loss takes that
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.losses.expected_outputs import ExpectedOutputs, unwrap
from keras_tracin.models.compiled import losses_of
from keras_tracin.models.errors import brief

_TASK = "describe the model and its data by --task (--helpfull shows how)"


class FilesError(ValueError):
    """A file of a model or of data that a program cannot use."""


def load_model(path: str) -> keras.Model:
    """The compiled model in a `.keras` file.

    Raises:
        FilesError: if there is none, or Keras alone cannot load it.
    """
    if not path.endswith(".keras"):
        raise FilesError(
            "--model should be a .keras file, as `model.save('model.keras')` "
            f"writes it. Received: '{path}'. For any other form, {_TASK}."
        )
    if not Path(path).is_file():
        raise FilesError(
            f"--model='{path}' is no file. Expected what "
            "`model.save('model.keras')` wrote."
        )
    try:
        model = keras.models.load_model(path)
    except Exception as error:  # Keras raises whatever a config makes it raise
        raise FilesError(
            f"--model='{path}' cannot be loaded by Keras alone. It said: "
            f"{brief(error)} Expected layers, losses and functions that Keras "
            f"itself has. For a model with others, {_TASK}; its `model()` "
            "builds or loads it."
        ) from error
    if not losses_of(model):
        raise FilesError(
            f"--model='{path}' has no compiled loss. Expected a model that was "
            "saved after `compile` and `fit`. Compile it as for training and "
            f"save it again, or {_TASK}."
        )
    return model


@dataclasses.dataclass(frozen=True)
class Input:
    """An input of a model.

    Attributes:
        name: its name, or its key where inputs are a dict.
        shape: its shape without the axis of examples.
        dtype: its dtype.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str

    @property
    def is_text(self) -> bool:
        """Whether it takes texts."""
        return self.dtype == "string"


@dataclasses.dataclass(frozen=True)
class Labels:
    """The form that a loss takes labels in.

    Attributes:
        kind: "index", "one-hot", "binary" (0 or 1), "numbers", or "unknown".
        classes: number of classes, 0 where there are none.
        loss: the name of the loss, for errors.
    """

    kind: str
    classes: int
    loss: str

    def check(self, names: list[str], where: str) -> None:
        """Refuses classes that the model has no outputs for.

        Args:
            names: the names of the classes.
            where: what has these classes, for errors.

        Raises:
            FilesError: if there are more or fewer, or if the loss takes none.
        """
        if not self.classes:
            raise FilesError(
                f"{where} has classes, expected what the model's loss "
                f"'{self.loss}' takes with its outputs, which are no classes. "
                "For labels in another form, " + _TASK + "."
            )
        if len(names) != self.classes:
            raise FilesError(
                f"The model tells {self.classes} classes apart. Received "
                f"{len(names)} of {where}: {_few(names)}. Name the classes in "
                "the order of the training by --class_names, or pass the data "
                "that the model was trained on."
            )

    def encode(self, indices: Any) -> Any:
        """Class indices `[n]` in the form that the loss takes."""
        if self.kind == "one-hot":
            return tf.one_hot(indices, self.classes)
        return indices

    def check_indices(self, indices: np.ndarray, where: str) -> None:
        """Refuses class indices that the model has no output for.

        Raises:
            FilesError: naming the first of them.
        """
        bad = np.flatnonzero((indices < 0) | (indices >= self.classes))
        if len(bad):
            raise FilesError(
                f"Labels of {where} should be whole numbers from 0 to "
                f"{self.classes - 1}. Received: {indices[bad[0]]} in row "
                f"{bad[0]}. Correct them, or pass the data that the model was "
                "trained on."
            )


@dataclasses.dataclass(frozen=True)
class ModelForm:
    """What a model takes.

    Attributes:
        inputs: its inputs.
        nested: whether they are a dict, a list, or None for one alone.
        labels: the form of its labels.
    """

    inputs: tuple[Input, ...]
    nested: type | None
    labels: Labels

    @classmethod
    def of(cls, model: keras.Model) -> ModelForm:
        """The form that a built model takes.

        Raises:
            FilesError: if the model does not tell.
        """
        # Sequential models have `inputs` alone.
        taken: Any = getattr(model, "input", None)
        taken = _inputs_of(model) if taken is None else taken
        if isinstance(taken, dict):
            inputs = [_input(key, tensor) for key, tensor in taken.items()]
            nested: type | None = dict
        else:
            tensors = tf.nest.flatten(taken)
            inputs = [_input(tensor.name, tensor) for tensor in tensors]
            nested = list if isinstance(taken, list | tuple) else None
            if len(inputs) == 1:
                nested = None
        return cls(tuple(inputs), nested, _labels_of(model))

    @property
    def only_input(self) -> Input:
        """The only input.

        Raises:
            FilesError: if there are several.
        """
        if self.nested is not None:
            names = [each.name for each in self.inputs]
            raise FilesError(
                f"The model has the inputs {names}. Expected one for data of "
                "this form; a .csv or .npz file has a column or an array for "
                f"each of several, by its name. Or {_TASK}."
            )
        return self.inputs[0]

    def fit(self, x: Any, where: str) -> Any:
        """An array or tensor `[n, ...]` in the shape of the only input.

        Axes of length 1 come or go at the end, and several axes become one,
        row by row.

        Args:
            x: the values.
            where: what they are of, for errors.

        Raises:
            FilesError: if they do not fit.
        """
        wanted, given = self.only_input.shape, tuple(x.shape)[1:]
        if _matches(given, wanted):
            return x
        known = None not in given and None not in wanted
        if known and _same_values(given, wanted):
            return tf.reshape(x, [-1, *wanted])
        raise FilesError(
            f"Examples of {where} have the shape {given}, expected the model's "
            f"{wanted}. Pass the data that the model was trained on, or "
            f"{_TASK}."
        )


def _input(name: str, tensor: Any) -> Input:
    return Input(name, tuple(tensor.shape)[1:], str(tensor.dtype))


def _inputs_of(model: keras.Model) -> Any:
    inputs: Any = getattr(model, "inputs", None)
    if not inputs:
        raise FilesError(
            f"The model, a {type(model).__name__}, does not tell what inputs "
            "it takes. Expected a functional or sequential model that was "
            f"built before it was saved. For others, {_TASK}."
        )
    return inputs


def _labels_of(model: keras.Model) -> Labels:
    expected = ExpectedOutputs.of(model)
    losses, outputs = losses_of(model), tf.nest.flatten(model.outputs)
    if len(losses) != 1 or len(outputs) != 1:
        return Labels("unknown", 0, ", ".join(map(str, losses)))
    (loss,), (output,) = losses, outputs
    function, _ = unwrap(keras.losses.get(loss))
    classes = output.shape[-1] or 0
    of_example = len(output.shape) == 2
    if expected.choice == "classes" and of_example and classes > 1:
        sparse = function is keras.losses.sparse_categorical_crossentropy
        return Labels("index" if sparse else "one-hot", classes, expected.name)
    if expected.choice == "sides" and of_example and classes == 1:
        return Labels("binary", 2, expected.name)
    kind = "numbers" if expected.choice == "numbers" else "unknown"
    return Labels(kind, 0, expected.name)


def _matches(given: tuple, wanted: tuple) -> bool:
    return len(given) == len(wanted) and all(
        a is not None and b in (None, a)
        for a, b in zip(given, wanted, strict=True)
    )


def _same_values(given: tuple, wanted: tuple) -> bool:
    if len(wanted) == 1:
        return int(np.prod(given)) == wanted[0]
    short, long = sorted((given, wanted), key=len)
    return long[: len(short)] == short and set(long[len(short) :]) == {1}


def _few(names: list[str]) -> str:
    more = len(names) - 10
    return ", ".join(names[:10]) + (f" and {more} more" if more > 0 else "")
