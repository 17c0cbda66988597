"""Training mode for layers whose gradients split into examples.

Where real training is replayed, Dropout drops the same units again: its seeds
are weights of the model, which the caller restores. Two kinds of layers stay in
inference mode even so: layers with statistics of their batches
(BatchNormalization), in which every example changes the outputs of the others;
and layers whose gradients are computed by running the layer again in inference
mode (recurrent layers with dropout, custom layers with weights). The difference
that training mode makes there belongs to no example.

Synopsis:

    placement = place(model, x)
    with inference_mode(find_inference_layers(model, placement.sites)):
        capture(model, loss, batch, placement, training=True)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import keras

from keras_tracin.gradients.sites import Site, intercept


def find_inference_layers(
    model: keras.Model, sites: Iterable[Site]
) -> list[keras.Layer]:
    """The layers that stay in inference mode while the others train."""
    layers = {
        id(layer): layer
        for layer in model._flatten_layers()
        if layer._non_trainable_variables
    }
    for site in sites:
        if site.rule is None or _has_inner_dropout(site.layer):
            layers[id(site.layer)] = site.layer
    return [layer for layer in layers.values() if _has_training_mode(layer)]


@contextlib.contextmanager
def inference_mode(layers: Sequence[keras.Layer]) -> Iterator[None]:
    """For a `with` block, these layers treat `training=True` as False."""
    with contextlib.ExitStack() as stack:
        for layer in layers:
            call = _call_in_inference_mode(layer)
            stack.enter_context(intercept(layer, call))
        yield


def _call_in_inference_mode(layer: keras.Layer):
    def call(original, *args, **kwargs):
        if "training" in kwargs:
            kwargs["training"] = False
        # Sublayers read the mode from the context.
        context = layer._get_call_context()
        before = context.get_value("training")
        context.set_value("training", False)
        try:
            return original(*args, **kwargs)
        finally:
            context.set_value("training", before)

    return call


def _has_training_mode(layer: keras.Layer) -> bool:
    """Whether it, or a sublayer, may act differently in training mode."""
    return any(x._call_has_training_arg for x in layer._flatten_layers())


def _has_inner_dropout(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.RNN) and any(
        vars(part).get(name)
        for part in layer.cell._flatten_layers()
        for name in ("dropout", "recurrent_dropout")
    )
