"""Tables of positions, of which every example takes the same rows.

The gradient of a row is that at the position where it is added. The classes are
KerasHub's.
"""

from __future__ import annotations

import inspect
from typing import Any

import tensorflow as tf

from keras_tracin.gradients.factors import (
    DenseGradients,
    LookupFactors,
    PositionGradients,
    materialize,
)
from keras_tracin.gradients.rules.normalization import (
    layer_normalization,
    normalize,
)
from keras_tracin.gradients.rules.registry import (
    LayerUse,
    Part,
    register_by_name,
)
from keras_tracin.gradients.rules.trial import (
    Arguments,
    normal,
    on_examples,
)


def _at_the_start(layer) -> Arguments:
    length, width = layer.position_embeddings.shape
    return (normal(2, max(1, length - 1), width),), {}


def _further_on(layer) -> Arguments:
    length, width = layer.position_embeddings.shape
    return (normal(2, 1, width),), {"start_index": length - 1}


def _in_any_order(layer) -> Arguments:
    length, width = layer.position_embeddings.shape
    positions = tf.constant([[length - 1, 0], [0, 0]])
    return (normal(2, 2, width),), {"positions": positions}


@register_by_name(
    "keras_hub.src.layers.modeling.position_embedding.PositionEmbedding",
    variables=("position_embeddings",),
    holds=on_examples(_at_the_start, _further_on, _in_any_order),
)
def position_embedding(layer, use: LayerUse) -> list[Part]:
    """The rule of `keras_hub.layers.PositionEmbedding`.

    Inputs `[n, ..., t, width]` give gradients of the rows from the start index
    on, or of those of the positions that the call names.
    """
    length, width = layer.position_embeddings.shape
    arguments = inspect.signature(layer.call).bind(*use.args, **use.kwargs)
    start = arguments.arguments.get("start_index", 0)
    positions = arguments.arguments.get("positions")
    sizes = tf.shape(use.grad)
    if positions is not None:
        ids = tf.broadcast_to(tf.cast(positions, tf.int32), sizes[:-1])
        factors = LookupFactors(
            tf.reshape(ids, [sizes[0], -1]),
            tf.reshape(use.grad, [sizes[0], -1, width]),
            length,
        )
        return [((layer.position_embeddings,), materialize(factors))]
    between = list(range(1, use.grad.shape.rank - 2))
    grads = tf.reduce_sum(use.grad, between) if between else use.grad
    gradients = PositionGradients((grads,), rows=(start, length))
    return [((layer.position_embeddings,), gradients)]


def _images(layer) -> Arguments:
    shape = *layer.image_size, layer.num_channels
    if layer.data_format == "channels_first":
        shape = layer.num_channels, *layer.image_size
    return (normal(2, *shape),), {}


@register_by_name(
    "keras_hub.src.models.vit.vit_layers.ViTPatchingAndEmbedding",
    variables=("class_token", "position_embedding._embeddings"),
    holds=on_examples(_images),
)
def patches_and_positions(layer, use: LayerUse) -> list[Part]:
    """The rule of KerasHub's patches of an image, with their positions.

    It covers the class token, which is the first position, and the table of
    positions, which an embedding inside looks up once for the whole batch.
    """
    variables = layer.position_embedding._embeddings, layer.class_token
    gradients = _flat(use.grad, variables[0]), use.grad[:, 0]
    return [(variables, DenseGradients(gradients))]


def _nothing_but_a_batch(layer) -> Arguments:
    return (tf.zeros([2, 1]),), {}


@register_by_name(
    "keras_hub.src.models.deberta_v3.relative_embedding.RelativeEmbedding",
    variables=("rel_embeddings", "layer_norm.gamma", "layer_norm.beta"),
    holds=on_examples(_nothing_but_a_batch),
)
def relative_embedding(layer, use: LayerUse) -> list[Part]:
    """The rule of DeBERTa's table of relative positions.

    The table `[r, width]` is normalized by a layer inside, and returned for
    every example. The normalization treats rows alone, so a copy of the table
    for each example has that example's gradient.
    """
    grads, norm = use.grad, layer.layer_norm
    table = tf.cast(tf.convert_to_tensor(layer.rel_embeddings), grads.dtype)
    copies = tf.broadcast_to(table, tf.shape(grads))
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(copies)
        normalized = normalize(norm, copies)
    scale = tf.cast(tf.convert_to_tensor(norm.gamma), grads.dtype)
    of_table = tape.gradient(normalized, copies, grads * scale)
    ((variables, gradients),) = layer_normalization(
        norm, LayerUse((copies,), {}, (grads,), ())
    )
    parts = *materialize(gradients).parts, _flat(of_table, layer.rel_embeddings)
    return [((*variables, layer.rel_embeddings), DenseGradients(parts))]


def _flat(grads: tf.Tensor, table: Any) -> tf.Tensor:
    """Gradients `[n, rows, width]` of a table as rows `[n, p]`."""
    return tf.reshape(grads, [-1, table.shape[0] * table.shape[1]])
