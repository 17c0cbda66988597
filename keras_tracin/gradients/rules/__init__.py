"""Rules by which families of layers give their per-example gradients.

Importing this package registers every rule; `rule_for` then finds the rule of a
layer. A layer without a rule is covered by `fallback`.
"""

from keras_tracin.gradients.rules import (
    convolution,
    dense,
    depthwise,
    einsum_dense,
    embedding,
    normalization,
    position,
    recurrent,
    relative_bias,
)
from keras_tracin.gradients.rules.registry import LayerUse, Rule, rule_for

__all__ = [
    "LayerUse",
    "Rule",
    "convolution",
    "dense",
    "depthwise",
    "einsum_dense",
    "embedding",
    "normalization",
    "position",
    "recurrent",
    "relative_bias",
    "rule_for",
]
