"""Embeddings: the gradient of the table is `δ` at the rows looked up."""

from __future__ import annotations

import keras
import tensorflow as tf

from keras_tracin.gradients.factors import LookupFactors
from keras_tracin.gradients.rules.dense import by_position
from keras_tracin.gradients.rules.registry import LayerUse, Part, register


@register(keras.layers.Embedding, variables=("embeddings",))
def embedding(layer: keras.layers.Embedding, use: LayerUse) -> list[Part]:
    """The rule of `keras.layers.Embedding`.

    Ids of any rank: `[n]`, `[n, t]`, `[n, a, b]` become `[n, t]`. A masked
    position has a zero `δ` already where the model heeds the mask.
    """
    grads = by_position(use.grad)
    ids = tf.cast(use.inputs, tf.int32)
    ids = tf.reshape(ids, tf.shape(grads)[:2])
    return [
        ((layer.embeddings,), LookupFactors(ids, grads, layer.input_dim)),
    ]
