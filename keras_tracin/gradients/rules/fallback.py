"""Any other layer: its vector-Jacobian product, one example at a time.

A layer's gradient for one example needs only the layer's inputs and the loss's
gradient at its outputs. This small computation is repeated over the batch; the
rest of the model is not involved. It is exact for custom layers and all others
that treat examples one by one.
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
        use: arguments of its call, and gradients at its outputs.
        variables: variables of the layer, or of layers in it, to
            differentiate by.
        nested: True if it has control flow or calls functions.

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
        # Sublayers inherit `training` from the layer around them.
        outputs = layer(*args, **{"training": False, **kwargs})
        outputs = list(differentiable_outputs(outputs))
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
        layer: the layer, for errors.
        function: computes one example's outputs from its inputs.
        inputs: a nest of tensors `[n, ...]` of `n` examples.
        grads: gradients at the function's outputs, `[n, ...]` each.
        variables: variables to differentiate by.
        nested: True if the function has control flow or calls functions.
        subject: description of the function, for errors; by default the
            layer.

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
        _check_shapes(outputs, example[1])
        gradients = tape.gradient(
            outputs,
            values,
            output_gradients=[
                tf.cast(grad, output.dtype)
                for grad, output in zip(example[1], outputs, strict=True)
            ],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return [tf.convert_to_tensor(grad) for grad in gradients]

    try:
        rows = repeat(
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
            for part in rows
        )
    )


def _has_attention(layer: keras.Layer) -> bool:
    """Whether a layer has attention, whose examples must be taken in turn.

    Vectorized products of attention in float32 corrupt memory in oneDNN's
    kernels (TensorFlow 2.21).
    """
    attention = (
        keras.layers.MultiHeadAttention,
        keras.layers.GroupQueryAttention,
    )
    return any(isinstance(x, attention) for x in layer._flatten_layers())


def _check_shapes(
    outputs: Sequence[tf.Tensor], grads: Sequence[tf.Tensor]
) -> None:
    """Refuses outputs of one example whose shapes differ from its gradients.

    TensorFlow would broadcast them.
    """
    for output, grad in zip(outputs, grads, strict=True):
        if not output.shape.is_compatible_with(grad.shape):
            raise ValueError(
                f"it returns outputs of shape {output.shape}, where "
                f"{grad.shape} is expected of one example."
            )


def differentiable_outputs(outputs: Any) -> Iterator[tf.Tensor]:
    """Differentiable tensors among a layer's outputs.

    They include logits that Keras attaches to outputs of a softmax or sigmoid,
    because Keras's losses use these in place of the outputs.
    """
    for leaf in tf.nest.flatten(outputs):
        if is_differentiable(leaf):
            yield leaf
            logits = getattr(leaf, "_keras_logits", None)
            if logits is not None:
                yield logits


def add_probes(outputs: Any, watch: Callable[[tf.Tensor], tf.Tensor]) -> Any:
    """Passes each of `differentiable_outputs(outputs)` through `watch`."""

    def probe_leaf(leaf):
        if not is_differentiable(leaf):
            return leaf
        probe = precision.copy_notes(leaf, watch(leaf))
        logits = getattr(leaf, "_keras_logits", None)
        if logits is not None:
            probe._keras_logits = watch(logits)
        return probe

    return tf.nest.map_structure(probe_leaf, outputs)


def is_differentiable(tensor: Any) -> bool:
    """Whether a loss can have a gradient at this tensor."""
    return (
        tf.is_tensor(tensor)
        and not isinstance(tensor, tf.__internal__.CompositeTensor)
        and tf.as_dtype(tensor.dtype).is_floating
    )


def has_examples(leaf) -> bool:
    """Whether the first axis is the batch, whose size a trace leaves open."""
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
        # Sublayers read the mask from this attribute.
        (tensor._keras_mask,) = mask
    return tensor
