"""Recognises the axis of the examples by its size, in a dry run.

Synopsis:

    may_have_examples(tf.zeros([EXAMPLES, 3]))   # True
    first_axis(tf.zeros([4, 3]))                 # 4
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

# Number of examples in a dry run. It is a prime, so that an axis of a multiple
# of this size has examples folded with something else.
EXAMPLES = 1009


def takes_examples(arguments: Any) -> bool:
    """Whether some tensors have the axis of examples first, and none folded."""
    tensors = [t for t in tf.nest.flatten(arguments) if tf.is_tensor(t)]
    return any(map(may_have_examples, tensors)) and not any(
        map(_examples_folded, tensors)
    )


def names_of_examples(
    arguments: Any, notes: Sequence[str] = ("_keras_mask",)
) -> frozenset[str]:
    """Names of tensors of examples, and of Keras's notes on them."""
    return frozenset(
        tensor.name
        for leaf in tf.nest.flatten(arguments)
        for tensor in (leaf, *(getattr(leaf, note, None) for note in notes))
        if is_symbolic(tensor) and may_have_examples(tensor)
    )


def logits_behind(outputs: Any) -> list[tf.Tensor]:
    """The logits that Keras's crossentropies use in place of probabilities.

    For accuracy, they look for the softmax in the graph and use its input.
    """
    return [
        output.op.inputs[0]
        for output in tf.nest.flatten(outputs)
        if is_symbolic(output) and output.op.type in ("Softmax", "Sigmoid")
    ]


def is_symbolic(value: Any) -> bool:
    return isinstance(value, tf.Tensor) and tf.is_symbolic_tensor(value)


def first_axis(tensor: tf.Tensor) -> int | None:
    """Size of the first axis; 0 without an axis, None if unknown."""
    shape = tf.TensorShape(tensor.shape)
    return shape[0] if shape.rank else 0


def may_have_examples(tensor: tf.Tensor) -> bool:
    """Whether the first axis may be that of the examples."""
    return first_axis(tensor) in (EXAMPLES, None)


def _examples_folded(tensor: tf.Tensor) -> bool:
    """Whether the first axis combines examples with another axis."""
    size = first_axis(tensor) or 0
    return size > EXAMPLES and size % EXAMPLES == 0
