"""The registry of layer rules.

Synopsis:

    @register(keras.layers.Dense)
    def dense(layer, use):
        return [((layer.kernel, layer.bias), OuterFactors(...))]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.gradients.factors import Factors

Part = tuple[tuple[keras.Variable, ...], Factors]


@dataclasses.dataclass(frozen=True)
class LayerUse:
    """One call of a layer during a forward pass.

    Attributes:
        args: the positional arguments of `call`.
        kwargs: its keyword arguments.
        grads: the gradients of the summed per-example losses at the watched
            tensors: the value before the activation where the rule asks for
            it, else every tensor the layer returned.
        outputs: the watched tensors, in the same order.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    grads: tuple[tf.Tensor, ...]
    outputs: tuple[tf.Tensor, ...]

    @property
    def inputs(self) -> Any:
        """The first argument of the call, however it was passed."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))

    @property
    def grad(self) -> tf.Tensor:
        """The gradient at the only watched tensor."""
        (grad,) = self.grads
        return grad


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one layer class splits its gradients into examples.

    Attributes:
        factors: `(layer, use) -> [(variables, factors), ...]`.
        before_activation: whether the gradient is wanted before the layer's
            activation rather than at its output.
    """

    factors: Callable[[keras.Layer, LayerUse], list[Part]]
    before_activation: bool = False


_RULES: dict[Any, Rule] = {}


def register(*layer_classes: type[keras.Layer], before_activation=False):
    """Registers the decorated function as the rule of `layer_classes`."""

    def decorate(function):
        for layer_class in layer_classes:
            _RULES[layer_class] = Rule(function, before_activation)
        return function

    return decorate


def rule_for(layer: keras.Layer) -> Rule | None:
    """The rule that fits `layer`, or None where the fallback must serve.

    A rule describes one `call`. It does not fit a subclass that overrides
    `call`, a layer whose `call` was replaced on the instance, nor a layer that
    owns variables the rule does not know (a layer with LoRA enabled, say).
    """
    if "call" in vars(layer):
        return None
    layer_class: Any
    for layer_class in type(layer).__mro__:
        rule = _RULES.get(layer_class)
        if rule is not None and type(layer).call is layer_class.call:
            known = {"kernel", "bias", "embeddings", "gamma", "beta"}
            own = {id(v) for v in own_variables(layer)}
            named = {id(getattr(layer, name, None)) for name in known}
            return rule if own <= named else None
    return None


def own_variables(layer: keras.Layer) -> list[keras.Variable]:
    """The trainable variables that the layer itself created.

    Those of the layers inside it are theirs.
    """
    if not layer.trainable:
        return []
    return [v for v in layer._trainable_variables if v.trainable]
