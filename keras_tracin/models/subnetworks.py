"""Networks in which the units that Dropout leaves out are always the same.

Dropout trains a network for every mask of its units. One of them, at the
trained weights, is a network like any other: what Dropout would do at random
is done by a fixed mask, the same for all examples.

Synopsis:

    network = subnetwork(model, number=0, seed=0)   # a copy, compiled as model
    network.set_weights(model.get_weights())
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras.src.models.functional import Functional

from keras_tracin.models.compiled import compiled_loss

# Which of them are left out together: the axes beside that of the channels.
_SPATIAL = (
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)
_KINDS = (keras.layers.Dropout, *_SPATIAL)
_REMEDY = (
    "Average over several trainings, `kt.Ensemble`, or over checkpoints, `run=`"
)
_LENGTH = 8  # of axes of any length, in the inputs that copies are compared on


class FixedDropout(keras.layers.Layer):
    """Multiplies by the same mask at each call, in every mode.

    Axes of no fixed length, as the positions of texts, have the same mask at
    all of their places.

    Args:
        rate: the share of the units that are left out; others are multiplied
            by 1 / (1 - rate).
        shape: that of the mask, without the axis of the examples; None for an
            entry that is as in the inputs; None for all of them.
        seed: of the mask.
    """

    def __init__(
        self,
        rate: float,
        shape: Sequence[int | None] | None = None,
        seed: Sequence[int] = (0,),
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.rate, self.shape, self.mask_seed = rate, shape, list(seed)
        self.supports_masking = True
        self.is_active = True

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Draws the mask."""
        given = self.shape or [None] * (len(input_shape) - 1)
        shape = [
            (size or 1) if own is None else own
            for own, size in zip(given, input_shape[1:], strict=True)
        ]
        kept = np.random.default_rng(self.mask_seed).random(shape) >= self.rate
        # Of a rate of 1, none is kept.
        self.values = kept / (1.0 - self.rate if self.rate < 1 else 1.0)
        # What later inputs have to have in common with the first ones.
        self._own_shape = [
            size if own is None else None
            for own, size in zip(given, input_shape[1:], strict=True)
        ]

    def call(self, inputs: Any) -> Any:
        """The inputs times the mask."""
        pairs = zip(self._own_shape, inputs.shape[1:], strict=True)
        if any(own and size and own != size for own, size in pairs):
            raise ValueError(
                f"The layer {self.name!r} is used on inputs of two shapes, "
                "which one mask does not fit. Received: shape "
                f"{tuple(inputs.shape)}; the mask is of {self._own_shape}. "
                f"{_REMEDY}."
            )
        if not self.is_active:
            return inputs
        return inputs * keras.ops.cast(self.values, inputs.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the inputs."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor."""
        return {
            **super().get_config(),
            "rate": self.rate,
            "shape": self.shape,
            "seed": self.mask_seed,
        }


def subnetwork(
    model: keras.Model, number: int, seed: int, rate: float | None = None
) -> keras.Model:
    """A copy of a model with a fixed mask in place of each Dropout layer.

    It has the model's weights and is compiled with the same loss, and with an
    optimizer of the same options that has made no step.

    Args:
        model: a built functional or sequential model.
        number: of the mask.
        seed: of all masks.
        rate: the share of the units to leave out, in place of that of the
            layers.

    Raises:
        ValueError: if the model is not functional, has no Dropout layer, or
            its copy does not compute what it does where nothing is left out.
    """
    if not isinstance(model, Functional | keras.Sequential) or not model.built:
        raise ValueError(
            "Masks of Dropout are fixed in a copy of the model, which needs a "
            "built functional or sequential model. Received a "
            f"`{type(model).__name__}`. {_REMEDY}."
        )
    masks: list[FixedDropout] = []

    def copied(layer: keras.Layer) -> keras.Layer:
        if type(layer) in _KINDS and layer.rate > 0:
            used = layer.rate if rate is None else rate
            own = [seed, number, len(masks)]
            masks.append(_fixed(layer, used, own))
            return masks[-1]
        return type(layer).from_config(layer.get_config())

    network = keras.models.clone_model(
        model, clone_function=copied, recursive=True
    )
    if not masks:
        raise ValueError(
            "There is nothing to leave out: the model has no layer `Dropout` "
            "of a rate above 0, itself or in models inside it. Those inside of "
            f"other layers are not fixed. Received: {model.name!r}. {_REMEDY}."
        )
    _check_same_weights(model, network)
    _copy_state(model, network)
    _check_same_outputs(model, network, masks)
    compiled = compiled_loss(model)
    if compiled is not None:
        optimizer = model.optimizer
        network.compile(
            type(optimizer).from_config(optimizer.get_config()),
            compiled.loss,
            loss_weights=compiled.weights,
        )
    return network


def _fixed(layer: keras.Layer, rate: float, seed: list[int]) -> FixedDropout:
    """The mask that stands for a Dropout layer."""
    shape = None
    if isinstance(layer, _SPATIAL):
        axes = _SPATIAL.index(type(layer)) + 1
        last = getattr(layer, "data_format", None) != "channels_first"
        shape = [1] * axes + [None] if last else [None] + [1] * axes
    elif layer.noise_shape is not None:
        shape = list(layer.noise_shape[1:])
    dtype = layer.dtype_policy
    return FixedDropout(rate, shape, seed, name=layer.name, dtype=dtype)


def _copy_state(model: keras.Model, network: keras.Model) -> None:
    """Gives a copy the weights, what is frozen of them, and vocabularies."""
    pairs = list(
        zip(network._flatten_layers(), model._flatten_layers(), strict=True)
    )
    for own, layer in pairs:
        own.trainable = layer.trainable
        if hasattr(layer, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                layer.save_assets(folder)
                own.load_assets(folder)
    network.set_weights(model.get_weights())
    for weight, of_model in zip(network.weights, model.weights, strict=True):
        weight.trainable = of_model.trainable
    for own, _ in pairs:
        if isinstance(own, keras.layers.Normalization):
            own.finalize_state()


def _check_same_weights(model: keras.Model, network: keras.Model) -> None:
    received, expected = (
        [(weight.path, tuple(weight.shape)) for weight in each.weights]
        for each in (network, model)
    )
    # Not the paths: a layer that was built by itself has none of the model.
    if [shape for _, shape in received] != [shape for _, shape in expected]:
        raise ValueError(
            "A copy of the model, made of its layers' `get_config`, has other "
            f"weights. Received: {received}; expected: {expected}. {_REMEDY}."
        )


def _check_same_outputs(
    model: keras.Model, network: keras.Model, masks: Sequence[FixedDropout]
) -> None:
    """Compares a model and its copy, on arbitrary inputs, without the masks."""
    rng = np.random.default_rng(0)

    def some(tensor: keras.KerasTensor) -> Any:
        shape = [2, *(size or _LENGTH for size in tensor.shape[1:])]
        if "float" not in tensor.dtype:
            return keras.ops.zeros(shape, tensor.dtype)
        return keras.ops.cast(rng.normal(size=shape), tensor.dtype)

    is_functional = isinstance(model, Functional)
    given = model.input if is_functional else model.inputs[0]
    inputs = keras.tree.map_structure(some, given)
    for mask in masks:
        mask.is_active = False
    pairs = zip(
        *(
            keras.tree.flatten(each(inputs, training=False))
            for each in (model, network)
        ),
        strict=True,
    )
    for mask in masks:
        mask.is_active = True
    for expected, received in pairs:
        if not np.allclose(expected, received, 1e-3, 1e-5, equal_nan=True):
            raise ValueError(
                "A copy of the model, made of its layers' `get_config`, does "
                "not compute what the model does: a layer has options that its "
                f"`get_config` leaves out. {_REMEDY}."
            )
