"""Embeddings: the gradient of the table is `δ` at the rows looked up.

An embedding that also projects back, by its transposed table, has outer
products for that use.
"""

from __future__ import annotations

import inspect
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.gradients.factors import LookupFactors, OuterFactors
from keras_tracin.gradients.rules import low_rank
from keras_tracin.gradients.rules.dense import by_position
from keras_tracin.gradients.rules.registry import (
    LayerUse,
    Part,
    present,
    register,
)
from keras_tracin.gradients.rules.trial import once_for_each_layer


@once_for_each_layer
def _projects_back(layer: keras.layers.Embedding) -> bool:
    """Whether a custom embedding computes what the rule below assumes.

    A small twin of it is tried.
    """
    if "reverse" not in inspect.signature(layer.call).parameters:
        return False
    if layer.lora_enabled or layer.quantization_mode is not None:
        return False
    config = layer.get_config()
    small = {"input_dim": 5, "output_dim": 3, "dtype": "float32"}
    if "reverse_dtype" in config:
        small["reverse_dtype"] = None
    # The default initializer would use the user's random generator.
    small["embeddings_initializer"] = "zeros"
    twin = type(layer).from_config(config | small)
    twin.build((None, None))
    rng = np.random.default_rng(0)
    for weight in twin.weights:
        weight.assign(rng.normal(size=weight.shape))
    ids, x = tf.constant([[0, 3, 3]]), rng.normal(size=(2, 4, 3))
    x = tf.constant(x, tf.float32)

    def expected():
        table = tf.convert_to_tensor(twin.embeddings)
        back = tf.transpose(table)
        if not getattr(twin, "tie_weights", True):
            back = tf.convert_to_tensor(twin.reverse_embeddings)
        logits = x @ back
        soft_cap = getattr(twin, "logit_soft_cap", None)
        if soft_cap is not None:
            logits = tf.tanh(logits / soft_cap) * soft_cap
        return tf.gather(table, ids), logits

    def actual():
        return twin(ids), twin(x, reverse=True)

    values = [variable.value for variable in twin.trainable_variables]
    results = [_with_gradients(f, values) for f in (expected, actual)]
    return all(
        np.allclose(a, b, rtol=1e-4, atol=1e-5)
        for a, b in zip(*results, strict=True)
    )


def _with_gradients(function, values) -> list[tf.Tensor]:
    """Outputs of a function, and the gradients of their squared length."""
    with tf.GradientTape() as tape:
        outputs = function()
        length = tf.add_n([tf.reduce_sum(tf.square(y)) for y in outputs])
    return [*outputs, *map(tf.convert_to_tensor, tape.gradient(length, values))]


@register(
    keras.layers.Embedding,
    *present("ReversibleEmbedding"),
    variables=(*low_rank.EMBEDDINGS, "reverse_embeddings"),
    fits=_projects_back,
)
def embedding(layer: keras.layers.Embedding, use: LayerUse) -> list[Part]:
    """The rule of `keras.layers.Embedding` and `ReversibleEmbedding`.

    Ids of any rank, `[n]`, `[n, t]` or `[n, a, b]`, become `[n, t]`. A masked
    position has a zero `δ` if the model uses the mask.
    """
    if is_reverse(use.args, use.kwargs):
        return _projection(layer, use)
    grads = by_position(use.grad)
    ids = tf.cast(use.inputs, tf.int32)
    ids = tf.reshape(ids, tf.shape(grads)[:2])
    factors = LookupFactors(ids, grads, layer.input_dim)
    return low_rank.of_table(layer, factors)


def is_reverse(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call with these arguments projects back."""
    if "reverse" in kwargs:
        return bool(kwargs["reverse"])
    return len(args) > 1 and bool(args[1])


def _projection(layer, use: LayerUse) -> list[Part]:
    """The parts of a call with `reverse=True`.

    Vectors `x [n, t, o]` become logits `[n, t, vocabulary]`. The tied table is
    that product's kernel transposed, so the two sides change places: the
    gradients at the logits are the table's inputs.
    """
    if layer.quantization_mode is not None:
        return []  # the quantized table is not trained
    inputs, grads = tf.convert_to_tensor(use.inputs), use.grad
    soft_cap = getattr(layer, "logit_soft_cap", None)
    if soft_cap is not None:
        # c tanh(z/c) has the derivative 1 - tanh²(z/c) at the logits z.
        (logits,) = use.outputs
        grads *= 1.0 - tf.square(logits / soft_cap)
    dtype = max(inputs.dtype, grads.dtype, key=lambda dtype: dtype.size)
    inputs, grads = (
        by_position(tf.cast(side, dtype)) for side in (inputs, grads)
    )
    if getattr(layer, "tie_weights", True):
        return low_rank.of_table(layer, OuterFactors(grads, inputs))
    return [((layer.reverse_embeddings,), OuterFactors(inputs, grads))]
