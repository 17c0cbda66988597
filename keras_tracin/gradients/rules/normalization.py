"""Normalisations: `y = γ x̂ + β`, so γ has `Σ_t δ_t x̂_t` and β has `Σ_t δ_t`.

The sums are over the axes along which γ and β are shared. That over the axis
behind the examples, the positions of a sequence, is made last, by
`keras_tracin.gradients.factors.summed`.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from keras_tracin.gradients.factors import DenseGradients, summed_over
from keras_tracin.gradients.rules.registry import (
    LayerUse,
    Part,
    present,
    register,
    register_by_name,
)
from keras_tracin.gradients.rules.trial import (
    Arguments,
    normal,
    on_examples,
)


@register(keras.layers.LayerNormalization, variables=("gamma", "beta"))
def layer_normalization(layer, use: LayerUse) -> list[Part]:
    """The rule of `keras.layers.LayerNormalization`."""
    normalized = normalize(layer, tf.convert_to_tensor(use.inputs))
    return _scale_and_offset(layer, use, normalized, _axes(layer.axis))


def normalize(
    layer: keras.layers.LayerNormalization, inputs: tf.Tensor
) -> tf.Tensor:
    """What the layer multiplies by its scale."""
    mean, variance = tf.nn.moments(inputs, _axes(layer.axis), keepdims=True)
    # Keras's scaling by the root mean square is by this deviation too.
    centered = inputs if layer.rms_scaling else inputs - mean
    return centered * tf.math.rsqrt(variance + layer.epsilon)


@register(keras.layers.BatchNormalization, variables=("gamma", "beta"))
def batch_normalization(layer, use: LayerUse) -> list[Part]:
    """The rule of `keras.layers.BatchNormalization` in inference mode.

    `x̂` uses the statistics of the checkpoint, so the examples of a batch do not
    interact.
    """
    inputs = tf.convert_to_tensor(use.inputs)
    shared = _shared_axes(inputs, _axes(layer.axis))
    offset = _sum_to_rows(use.grad, shared)
    variables, parts = [], []
    if layer.gamma is not None:
        mean, variance = (
            tf.cast(tf.convert_to_tensor(statistic), inputs.dtype)
            for statistic in (layer.moving_mean, layer.moving_variance)
        )
        # Σ_t δ_t (x_t - μ)/σ, with the statistics taken out of the sum, so
        # that only a product is computed at every position. For |μ| » σ, the
        # network's output has the same rounding error.
        products = _sum_to_rows(use.grad * inputs, shared)
        scale = tf.math.rsqrt(variance + layer.epsilon)
        variables.append(layer.gamma)
        parts.append((products - mean * offset) * scale)
    if layer.beta is not None:
        variables.append(layer.beta)
        parts.append(offset)
    return [(tuple(variables), DenseGradients(tuple(parts)))] if parts else []


@register(keras.layers.GroupNormalization, variables=("gamma", "beta"))
def group_normalization(layer, use: LayerUse) -> list[Part]:
    """The rule of `keras.layers.GroupNormalization`."""
    inputs = tf.convert_to_tensor(use.inputs)
    axis = layer.axis % inputs.shape.rank
    sizes = tf.shape(inputs)
    split = [layer.groups, inputs.shape[axis] // layer.groups]
    grouped = tf.reshape(
        inputs, tf.concat([sizes[:axis], split, sizes[axis + 1 :]], axis=0)
    )
    reduced = [k for k in range(1, 1 + inputs.shape.rank) if k != axis]
    mean, variance = tf.nn.moments(grouped, reduced, keepdims=True)
    scale = tf.math.rsqrt(variance + layer.epsilon)
    normalized = tf.reshape((grouped - mean) * scale, sizes)
    normalized = tf.ensure_shape(normalized, inputs.shape)
    return _scale_and_offset(layer, use, normalized, [axis])


def _magnitudes(layer) -> Arguments:
    """Two examples of four positions, some as small as the usual epsilon."""
    sizes = tf.constant([1.0, 0.1, 0.01, 0.001])
    inputs = normal(2, 4, _scale_of(layer).shape[-1])
    return (inputs * sizes[:, tf.newaxis],), {}


@register_by_name(
    "keras_hub.src.models.gemma.rms_normalization.RMSNormalization",
    "keras_hub.src.models.gemma3.gemma3_layers.RMSNormalization",
    "keras_hub.src.models.gemma4.gemma4_layers.RMSNormalization",
    "keras_hub.src.models.gpt_oss.gpt_oss_layer_norm.GptOssLayerNormalization",
    "keras_hub.src.models.llama.llama_layernorm.LlamaLayerNorm",
    "keras_hub.src.models.mistral.mistral_layer_norm.MistralLayerNormalization",
    "keras_hub.src.models.mixtral.mixtral_layer_norm.MixtralLayerNormalization",
    "keras_hub.src.models.phi3.phi3_layernorm.Phi3LayerNorm",
    "keras_hub.src.models.qwen.qwen_layernorm.QwenLayerNorm",
    "keras_hub.src.models.qwen3.qwen3_layernorm.Qwen3LayerNorm",
    "keras_hub.src.models.qwen_moe.qwen_moe_layernorm.QwenMoeLayerNorm",
    "keras_hub.src.models.qwen3_moe.qwen3_moe_layernorm.Qwen3MoeLayerNorm",
    "keras_hub.src.models.t5.t5_layer_norm.T5LayerNorm",
    variables=("scale", "weight"),
    holds=on_examples(_magnitudes),
)
@register(*present("RMSNormalization"), variables=("scale",))
def rms_normalization(layer, use: LayerUse) -> list[Part]:
    """The rule of `keras.layers.RMSNormalization`, and of KerasHub's.

    Its scale belongs to the last axes, whichever axes it normalizes over. Some
    multiply by `1 + scale`, which has the same gradient.
    """
    inputs, scale = tf.convert_to_tensor(use.inputs), _scale_of(layer)
    axes = _axes(getattr(layer, "axis", -1))
    square = tf.reduce_mean(tf.square(inputs), axis=axes, keepdims=True)
    normalized = inputs * tf.math.rsqrt(square + layer.epsilon)
    rank, sizes = inputs.shape.rank, scale.shape
    stretched = [
        rank - len(sizes) + k for k, size in enumerate(sizes) if size == 1
    ]
    shared = [*range(1, rank - len(sizes)), *stretched]
    return [((scale,), summed_over([use.grad * normalized], shared))]


def _scale_of(layer) -> keras.Variable:
    return layer.scale if hasattr(layer, "scale") else layer.weight


def _axes(axis) -> list[int]:
    return list(axis) if isinstance(axis, list | tuple) else [axis]


def _shared_axes(tensor: tf.Tensor, axes: list[int]) -> list[int]:
    """All axes except that of the batch and `axes`."""
    rank = tensor.shape.rank
    excluded = {axis % rank for axis in axes}
    return [axis for axis in range(1, rank) if axis not in excluded]


def _scale_and_offset(layer, use, normalized, axes) -> list[Part]:
    shared = _shared_axes(normalized, axes)
    variables, terms = [], []
    if layer.gamma is not None:
        variables.append(layer.gamma)
        terms.append(use.grad * normalized)
    if layer.beta is not None:
        variables.append(layer.beta)
        terms.append(use.grad)
    return [(tuple(variables), summed_over(terms, shared))] if terms else []


def _sum_to_rows(values: tf.Tensor, axes: list[int]) -> tf.Tensor:
    """Sums over `axes` and flattens the rest, `[n, p]`."""
    summed = tf.reduce_sum(values, axis=axes) if axes else values
    width = summed.shape[1:].num_elements()
    return tf.reshape(summed, [-1, width])
