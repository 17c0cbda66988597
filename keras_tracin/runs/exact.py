"""The weights that a Keras weights file does not hold as they are.

What Keras saves of a layer, the layer decides. `Dense` with LoRA saves its
kernel with the low-rank product added, and nothing of that product; a layer of
one's own may leave out what it likes. Such weights lie in a second file beside
the first, and are put over what Keras reads.

Synopsis:

    save_weights(model, path)
    indices = unheld_weights(model, path)   # most models have none
    write(path_beside(path), model, indices)

    model.load_weights(path)
    assign(model, path_beside(path))
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf

from keras_tracin.models.kinds import marked_as_built
from keras_tracin.storage.arrays import load_arrays, save_arrays

ENDING = ".exact.npz"

_KERAS_ENDINGS = (".weights.h5", ".keras")
_REMEDY = "Copy the run directory again."
_LIST = "weights"  # the array that says what the others are


def path_beside(weights_file: Path) -> Path:
    """The name of the second file."""
    name = weights_file.name
    for ending in _KERAS_ENDINGS:
        name = name.removesuffix(ending)
    return weights_file.with_name(name + ENDING)


def save_weights(model: keras.Model, file: Any) -> None:
    """Calls `model.save_weights(file)`, and leaves the model as before.

    Some layers assign a weight as they are saved.
    """
    before = [
        (weight, keras.ops.convert_to_numpy(weight))
        for layer in model._flatten_layers()
        if not _saves_plainly(layer)
        for weight in layer.weights
    ]
    try:
        with marked_as_built(model):
            model.save_weights(file)
    finally:
        for weight, value in before:
            if not np.array_equal(keras.ops.convert_to_numpy(weight), value):
                weight.assign(value)


def unheld_weights(model: keras.Model, weights_file: Path) -> list[int]:
    """Positions in `model.weights` of what loading would not bring back.

    A weight counts as held if Keras's own code saves and loads it as it is,
    and the file has these very bytes at a place of its layer's.

    Args:
        model: A model like the one that the file was written from.
        weights_file: A `.weights.h5` file.
    """
    weights = {id(weight): i for i, weight in enumerate(model.weights)}
    held: set[int] = set()
    lost: set[int] = set()
    with h5py.File(weights_file) as file:
        groups = list(_groups_of_arrays(file))
        # Layers of one name and with the same values share their groups: if
        # these are too few, one of the layers has been left out.
        claims: dict[frozenset[str], list[set[int]]] = {}
        for layer in model._flatten_layers():
            own = _own_weights(layer, weights)
            stored = _stored_as_they_are(layer, weights)
            places = _equal_groups(groups, layer, model, stored)
            # All or none of a layer: where one is missing, Keras loads none.
            if places and own <= set(stored.values()):
                claims.setdefault(places, []).append(own)
            else:
                lost |= own
    for places, layers in claims.items():
        target = held if len(layers) <= len(places) else lost
        target.update(*layers)
    # A weight of two layers is loaded twice; the second must not change it.
    return [i for i in weights.values() if i not in held or i in lost]


def merging_layers(model: keras.Model) -> list[str]:
    """Names of layers whose low-rank product Keras merges as it saves."""
    return [
        layer.name
        for layer in model._flatten_layers()
        if getattr(layer, "lora_enabled", False) and not _saves_plainly(layer)
    ]


def unusual_layers(model: keras.Model) -> list[str]:
    """Names of layers with weights whose saving is not Keras's usual."""
    return [
        layer.name
        for layer in model._flatten_layers()
        if layer.weights and not _saves_plainly(layer)
    ]


def write(path: Path, model: keras.Model, indices: Sequence[int]) -> None:
    """Writes these of `model.weights`, bit by bit, whole or not at all.

    Raises:
        OSError: The file cannot be written.
    """
    listed: list[list[Any]] = []
    arrays: dict[str, np.ndarray] = {}
    weights = model.weights
    for index in indices:
        value = keras.ops.convert_to_numpy(weights[index])
        listed.append(
            [index, weights[index].path, list(value.shape), value.dtype.name]
        )
        # NumPy's files know nothing of bfloat16, which is bytes to them.
        arrays[str(index)] = _bytes_of(value)
    text = np.frombuffer(json.dumps(listed).encode(), np.uint8)
    save_arrays(path, {_LIST: text, **arrays})


def assign(model: keras.Model, path: Path) -> None:
    """Gives a model the weights in such a file.

    Raises:
        ValueError: The file is missing or damaged, or is of a model whose
            weights have other shapes. The model is unchanged then.
    """
    weights = model.weights
    values = _read(path)
    for index, (name, value) in values.items():
        shape = tuple(weights[index].shape) if index < len(weights) else None
        if shape != value.shape:
            raise ValueError(
                f"{path} is of another model: its weight {name} has the shape "
                f"{value.shape}, expected {shape}. Pass the model that was "
                "trained, or one built by the same code."
            )
    for index, (_, value) in values.items():
        weights[index].assign(keras.ops.cast(value, weights[index].dtype))
    refresh(model)


def refresh(model: keras.Model) -> None:
    """Computes anew what layers keep that was made from their weights."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


def _read(path: Path) -> dict[int, tuple[str, np.ndarray]]:
    """Name and value of each weight in the file, by position."""
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist, expected the weights that Keras's own "
            "file lacks. Copy the run directory again."
        )
    arrays = load_arrays(path, _REMEDY)
    try:
        listed = json.loads(arrays[_LIST].tobytes())
        return {
            index: (
                name,
                arrays[str(index)].view(_dtype(dtype)).reshape(shape),
            )
            for index, name, shape, dtype in listed
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged, it does not hold weights: {error}. {_REMEDY}"
        ) from error


def _dtype(name: str) -> np.dtype:
    return np.dtype(tf.as_dtype(name).as_numpy_dtype)


def _bytes_of(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _saves_plainly(layer: keras.layers.Layer) -> bool:
    """Whether Keras's own code saves and loads the layer, and merges nothing.

    Its code then assigns what it saved to where it was.
    """
    methods = [layer.save_own_variables, layer.load_own_variables]
    functions = [getattr(method, "__func__", method) for method in methods]
    if functions == _DEFAULT:
        return True
    by_keras = all(
        str(function.__module__).split(".")[0] == "keras"
        for function in functions
    )
    return by_keras and not getattr(layer, "lora_enabled", False)


_DEFAULT = [
    keras.layers.Layer.save_own_variables,
    keras.layers.Layer.load_own_variables,
]


def _own_weights(
    layer: keras.layers.Layer, weights: Mapping[int, int]
) -> set[int]:
    """Positions of the weights that the layer itself added."""
    own: dict[str, Any] = {}
    keras.layers.Layer.save_own_variables(layer, own)
    return {weights[id(v)] for v in own.values() if id(v) in weights}


def _stored_as_they_are(
    layer: keras.layers.Layer, weights: Mapping[int, int]
) -> dict[str, int]:
    """Positions of the weights that Keras stores unchanged, by their key."""
    if not _saves_plainly(layer):
        return {}
    stored: dict[str, Any] = {}
    layer.save_own_variables(stored)
    return {
        key: weights[id(value)]
        for key, value in stored.items()
        if id(value) in weights
    }


def _groups_of_arrays(file: h5py.File) -> Iterator[h5py.Group]:
    """The groups that hold what layers saved, anywhere in the file."""
    groups: list[h5py.Group] = []

    def visit(name, item):
        is_group = isinstance(item, h5py.Group)
        if is_group and name.split("/")[-1] == "vars" and len(item):
            groups.append(item)

    file.visititems(visit)
    return iter(groups)


def _equal_groups(
    groups: Sequence[h5py.Group],
    layer: keras.layers.Layer,
    model: keras.Model,
    stored: Mapping[str, int],
) -> frozenset[str]:
    """Names of the groups that hold these weights of the layer."""
    if not stored:
        return frozenset()
    weights = model.weights
    values = {
        key: keras.ops.convert_to_numpy(weights[index])
        for key, index in stored.items()
    }
    return frozenset(
        group.name
        for group in groups
        if group.attrs.get("name", layer.name) == layer.name
        and all(_holds(group, key, value) for key, value in values.items())
    )


def _holds(group: h5py.Group, key: str, value: np.ndarray) -> bool:
    dataset = group.get(key)
    if not isinstance(dataset, h5py.Dataset) or dataset.shape != value.shape:
        return False
    if dataset.dtype.itemsize != value.dtype.itemsize:
        return False
    stored = np.asarray(dataset[()])
    return np.array_equal(_bytes_of(stored), _bytes_of(value))
