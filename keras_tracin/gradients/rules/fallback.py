"""Any other layer: its own vector-Jacobian product, one example at a time.

A layer's gradient for one example needs only what went into the layer and the
loss's gradient at what came out. `tf.vectorized_map` repeats that small
computation over the batch; the rest of the model is not touched. Exact for
LSTM, GRU, a user's own layer, and whatever else treats examples one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_tracin.gradients.factors import DenseGradients
from keras_tracin.gradients.rules.registry import LayerUse


def layer_local(
    layer: keras.Layer, use: LayerUse, variables: Sequence[keras.Variable]
) -> DenseGradients:
    """Gradients `[n, p]` of `variables` from one use of `layer`.

    Args:
        layer: any layer whose output for an example depends on that example
            alone.
        use: what it was called with, and the gradients at what it returned.
        variables: those to differentiate by; the layer's, or of layers in it.

    Raises:
        ValueError: if the layer cannot be repeated for one example, or no
            input has an open batch size.
    """
    leaves = tf.nest.flatten((use.args, use.kwargs))
    batched = [_has_examples(leaf) for leaf in leaves]
    per_example = [
        tf.convert_to_tensor(leaf)
        for leaf, moves in zip(leaves, batched, strict=True)
        if moves
    ]
    if not per_example:
        raise ValueError(
            f"The gradient of layer '{layer.name}' ({type(layer).__name__}) "
            "is taken one example at a time, which needs an open batch size "
            f"to tell examples from other axes. Received inputs of shapes "
            f"{[getattr(leaf, 'shape', leaf) for leaf in leaves]}. Capture "
            "inside a `tf.function` whose input signature has None first."
        )
    values = [variable.value for variable in variables]

    def gradient(inputs):
        moving, grads = inputs
        feed = iter([tf.expand_dims(leaf, 0) for leaf in moving])
        args, kwargs = tf.nest.pack_sequence_as(
            (use.args, use.kwargs),
            [
                next(feed) if moves else leaf
                for leaf, moves in zip(leaves, batched, strict=True)
            ],
        )
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            outputs = tf.nest.flatten(layer(*args, **kwargs))
        return tape.gradient(
            outputs,
            values,
            output_gradients=[tf.expand_dims(grad, 0) for grad in grads],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )

    try:
        found = tf.vectorized_map(gradient, (per_example, list(use.grads)))
    except (ValueError, TypeError, tf.errors.OpError) as error:
        raise ValueError(
            f"The gradient of layer '{layer.name}' "
            f"({type(layer).__name__}) cannot be split into examples: "
            f"repeating the layer for a single example failed with: {error}\n"
            "Leave the layer out by naming the others in `layers=`."
        ) from error
    return DenseGradients(
        tuple(
            tf.reshape(part, [-1, part.shape[1:].num_elements()])
            for part in found
        )
    )


def _has_examples(leaf) -> bool:
    """Whether the first axis is the batch: the one size a trace leaves open."""
    return (
        tf.is_tensor(leaf)
        and leaf.shape.rank is not None
        and leaf.shape.rank > 0
        and leaf.shape[0] is None
    )
