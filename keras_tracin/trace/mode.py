"""Training mode with what can be taken apart example by example.

Where real training is replayed, Dropout drops what it dropped: its seeds are
weights of the model, and the caller puts them back to where they stood. Two
kinds of layers stay in inference mode all the same: those that keep statistics
of their batches (BatchNormalization), in which every example moves every
other's output; and those whose gradients are found by running the layer again
in inference mode (recurrent layers with dropout, a user's own layer with
weights). What training does differently there has no share per example.

Synopsis:

    placement = place(model, x)
    with training_mode(apart(model, placement.sites)):
        capture(model, loss, batch, placement, training=True)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import keras

from keras_tracin.gradients.sites import Site, intercepted


def apart(model: keras.Model, sites: Iterable[Site]) -> list[keras.Layer]:
    """The layers that stay in inference mode while the others train."""
    found = {
        id(layer): layer
        for layer in model._flatten_layers()
        if layer._non_trainable_variables
    }
    for site in sites:
        if site.rule is None or _drops_inside(site.layer):
            found[id(site.layer)] = site.layer
    return [layer for layer in found.values() if _knows_training(layer)]


@contextlib.contextmanager
def training_mode(kept_out: Sequence[keras.Layer]) -> Iterator[None]:
    """A block in which these layers take `training=True` for False."""
    with contextlib.ExitStack() as stack:
        for layer in kept_out:
            stack.enter_context(intercepted(layer, _inference(layer)))
        yield


def _inference(layer: keras.Layer):
    def instead(original, *args, **kwargs):
        if "training" in kwargs:
            kwargs["training"] = False
        # Layers in this one ask the context.
        context = layer._get_call_context()
        before = context.get_value("training")
        context.set_value("training", False)
        try:
            return original(*args, **kwargs)
        finally:
            context.set_value("training", before)

    return instead


def _knows_training(layer: keras.Layer) -> bool:
    """Whether it, or a layer in it, may act otherwise in training."""
    return any(each._call_has_training_arg for each in layer._flatten_layers())


def _drops_inside(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.RNN) and any(
        vars(inside).get(name)
        for inside in layer.cell._flatten_layers()
        for name in ("dropout", "recurrent_dropout")
    )
