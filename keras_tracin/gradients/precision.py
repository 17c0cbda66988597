"""What half precision needs: wider sums, and scaled backward passes.

float16 holds nothing between 0 and 2⁻²⁴ and nothing from 2¹⁶ on, so a backward
pass in it loses the gradients of examples that are already learnt, and
overflows on others. Since examples do not interact, each has a scale of its
own, a power of two: its loss's gradient at the model's output is brought to
about 2¹⁰ and, where something overflows on the way back, the pass is repeated
with a lower scale for those examples. What comes back is divided in float32.
Within one example, gradients 2³⁴ times smaller than that at the output are
still lost. bfloat16 has the range of float32 and needs none of this.

Synopsis:

    if computes_in_float16(model):
        grads = scaled_gradients(tape, losses, y_pred, watched)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

HIGH = 2.0**10  # of the gradient at the output: far from either end
_LOWER = 2.0**8
# Three times lower, 2⁻¹⁴ is left: were it zero, infinite slopes would be, too.
_ATTEMPTS = 3
_LIMIT = 2.0**100  # of a scale, which is float32
# The distance from 1 to the next number.
_LAST_PLACES = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float64": 2.0**-52}
_SINGLE = 2.0**-23


def last_place(dtype: str) -> float:
    """The distance from 1 to the next number; of float32, if it is no float."""
    return _LAST_PLACES.get(dtype, _SINGLE)


def coarsest_place(model: keras.Model) -> float:
    """The largest `last_place` of what the layers of a model compute in."""
    return max(last_place(x.compute_dtype) for x in model._flatten_layers())


def computes_in_float16(layer: keras.Layer) -> bool:
    """Whether a model or layer, or any layer in it, computes in float16."""
    return any(
        inside.compute_dtype == "float16" for inside in layer._flatten_layers()
    )


def widen(structure: Any) -> Any:
    """The same with tensors of half precision in float32."""

    def wide(leaf):
        if not tf.is_tensor(leaf) or not _is_half(leaf):
            return leaf
        return copy_notes(leaf, tf.cast(leaf, tf.float32))

    return tf.nest.map_structure(wide, structure)


def copy_notes(source: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Gives `target` what Keras noted on `source`: its mask, its logits."""
    for note in ("_keras_mask", "_keras_logits"):
        if hasattr(source, note):
            setattr(target, note, getattr(source, note))
    return target


def scaled(tensor: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Multiplies each example of `[n, ...]` by its own number of `[n]`."""
    shape = [-1] + [1] * (tensor.shape.rank - 1)
    return tensor * tf.cast(tf.reshape(scale, shape), tensor.dtype)


def scaled_gradients(
    tape: tf.GradientTape, losses: tf.Tensor, outputs: Any, watched: Any
) -> Any:
    """Each example's gradients at the watched tensors, in float32 or wider.

    Args:
        tape: a persistent tape, no longer recording.
        losses: per-example losses `[n]`, of no less than float32.
        outputs: what the losses were computed from, in no less than float32.
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

    found = in_range(attempt, HIGH, slopes(tape, losses, outputs))
    return tf.nest.pack_sequence_as(watched, found)


def slopes(
    tape: tf.GradientTape, losses: tf.Tensor, outputs: Any
) -> list[tf.Tensor]:
    """The losses' gradients at the model's outputs, and at their logits."""
    ends = []
    for output in tf.nest.flatten(outputs):
        # Losses from logits go round the softmax or sigmoid at the end.
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
    """A computation in float16 whose results are divided in float32.

    Args:
        attempt: `scale [n] -> [[n, ...], ...]`, linear in each example's
            scale.
        height: where to bring the largest of an example's `like`; lower
            where this makes its results overflow.
        like: tensors `[n, ...]` to scale by.

    Returns:
        What `attempt` returns for a scale of one.
    """
    largest = tf.reduce_max(
        [tf.cast(_by_row(tf.reduce_max, tf.abs(t)), tf.float32) for t in like],
        axis=0,
    )

    def is_low(scale, *found):
        return tf.reduce_any(_overflows(found))

    def lower(scale, *found):
        scale = tf.where(_overflows(found), scale / _LOWER, scale)
        again = attempt(scale)
        return scale, *[
            # Gradients of loops come without their shapes.
            tf.ensure_shape(new, old.shape)
            for new, old in zip(again, found, strict=True)
        ]

    scale = _scale_to(height, largest)
    scale, *found = tf.while_loop(
        is_low,
        lower,
        (scale, *attempt(scale)),
        maximum_iterations=_ATTEMPTS,
    )
    return [_divided(tensor, scale) for tensor in found]


def _is_half(tensor: tf.Tensor) -> bool:
    return tensor.dtype.is_floating and tensor.dtype.size < 4


def _scale_to(height: float, largest: tf.Tensor) -> tf.Tensor:
    """The power of two that brings `largest` to `height`, or half of it."""
    wanted = tf.clip_by_value(height / largest, 1 / _LIMIT, _LIMIT)
    # Nothing to go by: no gradient, or one that is broken already.
    usual = tf.math.is_finite(largest) & (largest > 0)
    wanted = tf.where(usual, wanted, height)
    # A float32 without its mantissa is a power of two.
    exponent = tf.bitwise.bitwise_and(
        tf.bitcast(wanted, tf.int32), tf.constant(0x7F800000, tf.int32)
    )
    return tf.bitcast(exponent, tf.float32)


def _by_row(reduce: Callable, tensor: tf.Tensor) -> tf.Tensor:
    """Reduces all axes but the first."""
    return reduce(tensor, axis=list(range(1, tensor.shape.rank)))


def _overflows(found) -> tf.Tensor:
    """Which examples have infinite or undefined results, `[n]`."""
    return tf.reduce_any(
        [_by_row(tf.reduce_any, ~tf.math.is_finite(t)) for t in found], axis=0
    )


def _divided(tensor: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    wide = widen(tensor)
    tf.debugging.assert_equal(
        tf.shape(wide)[0],
        tf.shape(scale)[0],
        "A layer's output does not have the examples as its first axis.",
    )
    return scaled(wide, 1.0 / scale)
