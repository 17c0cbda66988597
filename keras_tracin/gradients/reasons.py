"""Likely reasons why a captured gradient differs from that of plain TensorFlow.

Synopsis:

    likely_reason(model, loss, data, variable, owner)
    # "The loss reads this variable itself: ..."
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.gradients.rules import rule_for
from keras_tracin.gradients.sites import intercept
from keras_tracin.models.state import preserved, value_of

_LEAVE_OUT = "or leave the layer out by naming the others in `layers=`."


def likely_reason(
    model: keras.Model,
    loss: Callable[[Any, Any, Any], tf.Tensor],
    data: Any,
    variable: keras.Variable,
    owner: keras.Layer,
) -> str:
    """The likely reason, and what to do about it.

    Args:
        model: the model.
        loss: `(y, y_pred, sample_weight) -> [n]`.
        data: examples with wrong gradients.
        variable: the variable whose gradient is wrong.
        owner: the layer that owns it.
    """
    x, y, *weight = data
    with preserved(model), _record_outputs(model) as returned:
        y_pred = model(x, training=False)
        hidden = list(_hidden_tensors(model, returned))
    with tf.GradientTape() as tape:
        losses = loss(y, y_pred, weight[0] if weight else None)
    if tape.gradient(losses, value_of(variable)) is not None:
        return (
            "The likely reason: the loss reads this variable itself, beside "
            "what the model returns. Make it part of the model's outputs, "
            f"{_LEAVE_OUT}"
        )
    if hidden:
        return (
            f"The likely reason: {' and '.join(hidden[:3])}, and what else "
            "uses it cannot be returned from outside. Pass tensors on as "
            f"arguments and return them in tuples, lists or dicts, {_LEAVE_OUT}"
        )
    if rule_for(owner) is not None:
        return (
            "The likely reason: something outside of this layer uses the "
            "variable, or the layer computes something else than its class "
            f"does. Use a subclass that redefines `call`, {_LEAVE_OUT}"
        )
    return (
        "The likely reason: the layer's output reaches the loss by another way "
        "than what it returns, or its gradient is a custom one that differs "
        f"from call to call. Return it, {_LEAVE_OUT}"
    )


_Returned = tuple[keras.Layer, Any]


@contextlib.contextmanager
def _record_outputs(model: keras.Model) -> Iterator[list[_Returned]]:
    """Records the outputs of each layer."""
    returned: list[_Returned] = []

    def note(layer, original, *args, **kwargs):
        outputs = original(*args, **kwargs)
        returned.append((layer, outputs))
        return outputs

    with contextlib.ExitStack() as stack:
        for layer in model._flatten_layers():
            noting = functools.partial(note, layer)
            stack.enter_context(intercept(layer, noting))
        yield returned


def _hidden_tensors(
    model: keras.Model, returned: list[_Returned]
) -> Iterator[str]:
    """Describes tensors stored on layers, and outputs that are not tensors."""
    for layer, outputs in returned:
        for leaf in tf.nest.flatten(outputs):
            if leaf is not None and not tf.is_tensor(leaf):
                yield (
                    f"layer '{layer.path or layer.name}' returns a "
                    f"{type(leaf).__name__}"
                )
    for layer in model._flatten_layers():
        for name, value in list(vars(layer).items()):
            if name.startswith("_"):
                continue
            leaves = tf.nest.flatten(value) if _is_plain(value) else []
            if any(
                tf.is_tensor(leaf) and not _is_variable(leaf) for leaf in leaves
            ):
                yield (
                    f"layer '{layer.path or layer.name}' keeps a tensor in its "
                    f"attribute '{name}'"
                )


def _is_plain(value: Any) -> bool:
    return tf.is_tensor(value) or isinstance(value, (list, tuple, dict))


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, tf.Variable | keras.Variable)
