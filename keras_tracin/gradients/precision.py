"""Half precision: sums in float32, and backward passes with loss scaling.

float16 represents nothing between 0 and 2⁻²⁴ and nothing above 2¹⁶, so a
backward pass loses the gradients of examples that are already learnt, and
overflows for others. Since examples do not interact, each has its own scale, a
power of two: it brings the gradient at the model's output to about 2¹⁰. If the
backward pass overflows, it is repeated with a lower scale for those examples.
The results are divided by the scale in float32. Within one example, gradients
2³⁴ times smaller than that at the output are still lost. bfloat16 has the range
of float32 and needs no scaling.

Synopsis:

    if computes_in_float16(model):
        grads = scaled_gradients(tape, losses, y_pred, watched)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

HIGH = 2.0**10  # size of gradients at the output: far from both limits
_LOWER = 2.0**8
# Lowered three times, 2⁻¹⁴ remains. At zero, infinite gradients would vanish.
_ATTEMPTS = 3
_LIMIT = 2.0**100  # largest scale, which is float32
# The distance from 1 to the next number.
_LAST_PLACES = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float64": 2.0**-52}
_SINGLE = 2.0**-23


def last_place(dtype: str) -> float:
    """Distance from 1 to the next number; for integers, that of float32."""
    return _LAST_PLACES.get(dtype, _SINGLE)


def coarsest_place(model: keras.Model) -> float:
    """The largest `last_place` of the layers' compute types."""
    return max(last_place(x.compute_dtype) for x in model._flatten_layers())


def computes_in_float16(layer: keras.Layer) -> bool:
    """Whether a model or layer, or any layer in it, computes in float16."""
    return any(
        inside.compute_dtype == "float16" for inside in layer._flatten_layers()
    )


def widen(structure: Any) -> Any:
    """Casts tensors of half precision in a structure to float32."""

    def wide(leaf):
        if not tf.is_tensor(leaf) or not _is_half(leaf):
            return leaf
        return copy_notes(leaf, tf.cast(leaf, tf.float32))

    return tf.nest.map_structure(wide, structure)


def copy_notes(source: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Copies Keras's mask and logits from `source` to `target`."""
    for note in ("_keras_mask", "_keras_logits"):
        if hasattr(source, note):
            setattr(target, note, getattr(source, note))
    return target


def scale_examples(tensor: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Multiplies each example of `[n, ...]` by its scale `[n]`."""
    shape = [-1] + [1] * (tensor.shape.rank - 1)
    return tensor * tf.cast(tf.reshape(scale, shape), tensor.dtype)


def scaled_gradients(
    tape: tf.GradientTape, losses: tf.Tensor, outputs: Any, watched: Any
) -> Any:
    """Each example's gradients at the watched tensors, in float32 or wider.

    Args:
        tape: a persistent tape, no longer recording.
        losses: per-example losses `[n]`, in float32 or wider.
        outputs: outputs of the model, in float32 or wider.
        watched: a nest of tensors `[n, ...]`.
    """
    flat = tf.nest.flatten(watched)

    def attempt(scale):
        return tape.gradient(
            losses,
            flat,
            output_gradients=tf.cast(scale, losses.dtype),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )

    grads = in_range(attempt, HIGH, output_gradients(tape, losses, outputs))
    return tf.nest.pack_sequence_as(watched, grads)


def output_gradients(
    tape: tf.GradientTape, losses: tf.Tensor, outputs: Any
) -> list[tf.Tensor]:
    """The losses' gradients at the model's outputs, and at their logits."""
    ends = []
    for output in tf.nest.flatten(outputs):
        # Losses from logits bypass the softmax or sigmoid at the end.
        for end in (output, getattr(output, "_keras_logits", None)):
            if end is not None and end.dtype.is_floating:
                ends.append(end)
    return tape.gradient(
        losses, ends, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )


def in_range(
    attempt: Callable[[tf.Tensor], list[tf.Tensor]],
    height: float,
    like: list[tf.Tensor],
) -> list[tf.Tensor]:
    """Runs a computation in float16 with a scale for each example.

    Args:
        attempt: `scale [n] -> [[n, ...], ...]`, linear in each example's
            scale.
        height: size to bring the largest entry of an example's `like` to; it
            is lowered if results overflow.
        like: tensors `[n, ...]` that determine the scales.

    Returns:
        The result of `attempt` for a scale of one, in float32 or wider.
    """
    largest = tf.reduce_max(
        [tf.cast(_by_row(tf.reduce_max, tf.abs(t)), tf.float32) for t in like],
        axis=0,
    )

    def is_low(scale, *results):
        return tf.reduce_any(_overflows(results))

    def lower(scale, *results):
        scale = tf.where(_overflows(results), scale / _LOWER, scale)
        again = attempt(scale)
        return scale, *[
            # Gradients of loops have no static shapes.
            tf.ensure_shape(new, old.shape)
            for new, old in zip(again, results, strict=True)
        ]

    scale = _scale_to(height, largest)
    scale, *results = tf.while_loop(
        is_low,
        lower,
        (scale, *attempt(scale)),
        maximum_iterations=_ATTEMPTS,
    )
    return [_unscale(tensor, scale) for tensor in results]


def _is_half(tensor: tf.Tensor) -> bool:
    return tensor.dtype.is_floating and tensor.dtype.size < 4


def _scale_to(height: float, largest: tf.Tensor) -> tf.Tensor:
    """The power of two that brings `largest` to `height`, or half of it."""
    scale = tf.clip_by_value(height / largest, 1 / _LIMIT, _LIMIT)
    # Without a finite, non-zero gradient there is nothing to scale by.
    is_usable = tf.math.is_finite(largest) & (largest > 0)
    scale = tf.where(is_usable, scale, height)
    # Without its mantissa, a float32 is a power of two.
    exponent = tf.bitwise.bitwise_and(
        tf.bitcast(scale, tf.int32), tf.constant(0x7F800000, tf.int32)
    )
    return tf.bitcast(exponent, tf.float32)


def _by_row(reduce: Callable, tensor: tf.Tensor) -> tf.Tensor:
    """Reduces all axes but the first."""
    return reduce(tensor, axis=list(range(1, tensor.shape.rank)))


def _overflows(results) -> tf.Tensor:
    """Booleans `[n]`: True for examples with infinite or NaN results."""
    return tf.reduce_any(
        [_by_row(tf.reduce_any, ~tf.math.is_finite(t)) for t in results], axis=0
    )


def _unscale(tensor: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    wide = widen(tensor)
    tf.debugging.assert_equal(
        tf.shape(wide)[0],
        tf.shape(scale)[0],
        "A layer's output does not have the examples as its first axis.",
    )
    return scale_examples(wide, 1.0 / scale)
