"""T5's attention, whose first layer adds a bias for relative positions.

The bias `[1, heads, q, k]` is computed from a table, once for the whole batch,
and later layers add it too. It is repeated for every example, so that the
backward pass gives each example's gradient at it; the table's follows.
"""

from __future__ import annotations

import contextlib
import inspect

import tensorflow as tf

from keras_tracin.gradients.factors import DenseGradients
from keras_tracin.gradients.rules.registry import (
    LayerUse,
    Part,
    Watch,
    attributes,
    register_by_name,
)
from keras_tracin.gradients.rules.trial import (
    Arguments,
    normal,
    on_examples,
)

_TABLE = "relative_attention_bias"


@contextlib.contextmanager
def _watch_bias(layer, watch: Watch):
    """For a `with` block, watches the bias, repeated for every example."""
    project, compute_bias = layer.query_projector, layer.compute_bias
    queries: list[tf.Tensor] = []

    def project_and_note(states):
        queries[:] = [states]
        return project(states)

    def biases(*args, **kwargs):
        bias = compute_bias(*args, **kwargs)
        (states,) = queries
        sizes = tf.concat([tf.shape(states)[:1], tf.shape(bias)[1:]], axis=0)
        repeated = tf.broadcast_to(bias, sizes)
        shape = [states.shape[0], *bias.shape[1:]]
        return watch(tf.ensure_shape(repeated, shape))

    instead = {"query_projector": project_and_note, "compute_bias": biases}
    with attributes(layer, instead):
        yield


def _sequences(layer) -> Arguments:
    mask = tf.constant([[[1, 1, 1]] * 3, [[1, 1, 0]] * 3])
    return (normal(2, 3, layer.hidden_dim),), {"mask": mask}


@register_by_name(
    "keras_hub.src.models.t5.t5_multi_head_attention.T5MultiHeadAttention",
    variables=(_TABLE,),
    watching=_watch_bias,
    holds=on_examples(_sequences),
)
def relative_bias(layer, use: LayerUse) -> list[Part]:
    """The rule of the attention layers that own a table of biases.

    With the unit matrix for a table, `compute_bias` says which row of the table
    is added where.
    """
    call = inspect.signature(layer.call).bind(*use.args, **use.kwargs)
    start = call.arguments.get("cache_update_index")
    table, grads = getattr(layer, _TABLE), use.grad  # [rows, h], [n, h, q, k]
    sizes = tf.shape(grads)
    with attributes(layer, {_TABLE: tf.eye(table.shape[0], dtype=grads.dtype)}):
        rows = layer.compute_bias(
            sizes[2],
            sizes[3],
            query_start_index=0 if start is None else start,
        )  # [1, rows, q, k]
    gradients = tf.einsum("nhqk,rqk->nrh", grads, rows[0])
    size = table.shape[0] * table.shape[1]
    flat = tf.reshape(gradients, [-1, size])
    return [((table,), DenseGradients((flat,)))]
