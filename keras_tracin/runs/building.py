"""Building a model before its first step, as that step would build it.

The weights before training belong to a run, so they must exist before.

Synopsis:

    build(model, iterator)      # before the first batch
"""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.models.kinds import has_call, has_weights


def build(model: keras.Model, iterator: Any) -> None:
    """Builds a model that Keras would build in its first step.

    Args:
        model: the model that is trained.
        iterator: of its data, whose `element_spec` says what a batch is.

    Raises:
        ValueError: neither the model's `call` nor its `train_step` can be run
            with the shapes of the data alone.
    """
    own_step = type(model).train_step is not keras.Model.train_step
    if has_weights(model) and not (own_step and _unbuilt_layers(model)):
        return
    batch = getattr(iterator, "element_spec", None)
    was_built, errors = model.built, []
    if not was_built and has_call(model):
        errors.append(_error_of(_call, model, batch))
        if errors[-1] is not None:
            model.built = False  # Keras says so before it calls it.
    if own_step and (errors != [None] or _unbuilt_layers(model)):
        errors.append(_error_of(_trace_step, model, batch))
    if not was_built and errors and None not in errors:
        raise ValueError(
            f"The model {model.name!r} is not built, and its weights before "
            "training belong to the run, but it could not be built from the "
            "shapes of the data. Call it on a batch of data before model.fit."
        ) from errors[0]


def _unbuilt_layers(model: keras.Model) -> list[keras.Layer]:
    layers = model._flatten_layers(include_self=False)
    return [layer for layer in layers if not layer.built]


def _error_of(function, model: keras.Model, batch: Any) -> Exception | None:
    """Calls a function; returns the exception that it raised, if any."""
    try:
        function(model, batch)
    except Exception as error:
        return error
    return None


def _call(model: keras.Model, batch: Any) -> None:
    x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
    model(
        keras.tree.map_structure(
            lambda spec: keras.KerasTensor(spec.shape, spec.dtype.name), x
        )
    )


def _trace_step(model: keras.Model, batch: Any) -> None:
    """Traces the train step, which creates what it uses and runs nothing."""
    data = keras.tree.map_structure(
        lambda spec: None if isinstance(spec, tf.OptionalSpec) else spec, batch
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(model.distribute_strategy.scope())
        step = tf.function(model.train_step, autograph=False)
        step.get_concrete_function(data)
