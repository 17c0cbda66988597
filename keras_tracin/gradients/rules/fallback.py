"""Any other layer: its own vector-Jacobian product, one example at a time.

A layer's gradient for one example needs only what went into the layer and the
loss's gradient at what came out. That small computation is repeated over the
batch; the rest of the model is not touched. Exact for
LSTM, GRU, a user's own layer, and whatever else treats examples one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.gradients import precision
from keras_tracin.gradients.factors import DenseGradients
from keras_tracin.gradients.rules.registry import LayerUse
from keras_tracin.gradients.rules.repeating import repeat


def layer_local(
    layer: keras.Layer,
    use: LayerUse,
    variables: Sequence[keras.Variable],
    nested: bool = False,
) -> DenseGradients:
    """Gradients `[n, p]` of `variables` from one use of `layer`.

    Args:
        layer: any layer whose output for an example depends on that example
            alone.
        use: what it was called with, and the gradients at what it returned.
        variables: those to differentiate by; the layer's, or of layers in it.
        nested: whether it loops, branches or calls functions.

    Raises:
        ValueError: if the layer cannot be repeated for one example, or no
            input has an open batch size.
    """
    leaves = tf.nest.flatten((use.args, use.kwargs))
    moving = {
        place: _with_mask(leaf, mask)
        for place, (leaf, mask) in enumerate(
            zip(leaves, use.masks, strict=True)
        )
        if has_examples(leaf)
    }
    if not moving and tf.config.functions_run_eagerly():
        raise ValueError(
            f"The gradient of layer '{layer.name}' ({type(layer).__name__}) "
            "is taken one example at a time, and only a trace tells examples "
            "from other axes. Received `tf.config.run_functions_eagerly` "
            "switched on, expected it to be off: call "
            "`tf.config.run_functions_eagerly(False)` first."
        )
    if not moving:
        raise ValueError(
            f"The gradient of layer '{layer.name}' ({type(layer).__name__}) "
            "is taken one example at a time, which needs an open batch size "
            f"to tell examples from other axes. Received inputs of shapes "
            f"{[getattr(leaf, 'shape', leaf) for leaf in leaves]}. Capture "
            "inside a `tf.function` whose input signature has None first."
        )
    used = [k for k, grad in enumerate(use.grads) if grad is not None]

    def one_example(inputs):
        args, kwargs = tf.nest.pack_sequence_as(
            (use.args, use.kwargs),
            [
                _batch_of_one(inputs[place]) if place in moving else leaf
                for place, leaf in enumerate(leaves)
            ],
        )
        # Layers in this one take the `training` of the layer around them.
        outputs = layer(*args, **{"training": False, **kwargs})
        outputs = list(outputs_of(outputs))
        return [outputs[k] for k in used]

    grads = [tf.expand_dims(use.grads[k], 1) for k in used]
    return gradients_by_example(
        layer, one_example, moving, grads, variables, nested=nested
    )


def gradients_by_example(
    layer: keras.Layer,
    function: Callable[[Any], Any],
    inputs: Any,
    grads: Sequence[tf.Tensor],
    variables: Sequence[keras.Variable],
    *,
    nested: bool = False,
    subject: str | None = None,
) -> DenseGradients:
    """Gradients `[n, p]` of `variables` from a function of one example.

    Args:
        layer: named where the function cannot be repeated.
        function: computes one example's outputs from its inputs.
        inputs: a nest of tensors of `n` examples, `[n, ...]` each.
        grads: the gradients at the function's outputs, `[n, ...]` each.
        variables: those to differentiate by.
        nested: whether the function loops, branches or calls functions.
        subject: what the function is, in words; by default the layer.

    Raises:
        ValueError: if the function cannot be repeated for one example.
    """
    if subject is None:
        subject = f"layer '{layer.name}' ({type(layer).__name__})"
    values = [variable.value for variable in variables]

    def gradient(example):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            outputs = tf.nest.flatten(function(example[0]))
            outputs = [t for t in outputs if is_differentiable(t)]
        _check_alike(outputs, example[1])
        found = tape.gradient(
            outputs,
            values,
            output_gradients=[
                tf.cast(grad, output.dtype)
                for grad, output in zip(example[1], outputs, strict=True)
            ],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return [tf.convert_to_tensor(grad) for grad in found]

    try:
        found = repeat(
            gradient,
            (inputs, list(grads)),
            [tf.TensorSpec(v.shape, v.dtype) for v in values],
            subject,
            nested=nested,
            in_turn=_has_attention(layer),
        )
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise ValueError(
            f"The gradient of {subject} cannot be split into examples: "
            f"repeating it for a single example failed with: {error}\n"
            "Leave the layer out by naming the others in `layers=`."
        ) from error
    return DenseGradients(
        tuple(
            tf.reshape(part, [-1, part.shape[1:].num_elements()])
            for part in found
        )
    )


def _has_attention(layer: keras.Layer) -> bool:
    """Whether examples must be taken in turn.

    Vectorized, attention's products in float32 corrupt memory in oneDNN's
    kernels (TensorFlow 2.21).
    """
    attention = (
        keras.layers.MultiHeadAttention,
        keras.layers.GroupQueryAttention,
    )
    return any(isinstance(x, attention) for x in layer._flatten_layers())


def _check_alike(
    outputs: Sequence[tf.Tensor], grads: Sequence[tf.Tensor]
) -> None:
    """Refuses outputs of one example that are not of its gradients' shapes.

    TensorFlow would broadcast the one to the other.
    """
    for output, grad in zip(outputs, grads, strict=True):
        if not output.shape.is_compatible_with(grad.shape):
            raise ValueError(
                f"it returns outputs of shape {output.shape}, where "
                f"{grad.shape} is expected of one example."
            )


def outputs_of(outputs: Any) -> Iterator[tf.Tensor]:
    """What a loss can have a gradient at, of what a layer returned.

    The logits that Keras notes on what a softmax or sigmoid returns are among
    it: Keras's losses start from them and leave out what they are noted on.
    """
    for leaf in tf.nest.flatten(outputs):
        if is_differentiable(leaf):
            yield leaf
            logits = getattr(leaf, "_keras_logits", None)
            if logits is not None:
                yield logits


def with_probes(outputs: Any, watch: Callable[[tf.Tensor], tf.Tensor]) -> Any:
    """The same, once each of `outputs_of(outputs)` went through `watch`."""

    def probed(leaf):
        if not is_differentiable(leaf):
            return leaf
        probe = precision.copy_notes(leaf, watch(leaf))
        logits = getattr(leaf, "_keras_logits", None)
        if logits is not None:
            probe._keras_logits = watch(logits)
        return probe

    return tf.nest.map_structure(probed, outputs)


def is_differentiable(tensor: Any) -> bool:
    """Whether a loss can have a gradient at it."""
    return (
        tf.is_tensor(tensor)
        and not isinstance(tensor, tf.__internal__.CompositeTensor)
        and tf.as_dtype(tensor.dtype).is_floating
    )


def has_examples(leaf) -> bool:
    """Whether the first axis is the batch: the one size a trace leaves open."""
    return (
        tf.is_tensor(leaf)
        and leaf.shape.rank is not None
        and leaf.shape.rank > 0
        and leaf.shape[0] is None
    )


def _with_mask(leaf, mask) -> tuple[tf.Tensor, ...]:
    """The tensor and, if its mask has examples as well, the mask."""
    tensor = tf.convert_to_tensor(leaf)
    return (tensor, mask) if has_examples(mask) else (tensor,)


def _batch_of_one(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    tensor, *mask = (tf.expand_dims(t, 0) for t in tensors)
    if mask:
        # The layers in this one find the mask where Keras put it.
        (tensor._keras_mask,) = mask
    return tensor
