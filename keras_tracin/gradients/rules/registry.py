"""The registry of layer rules.

Synopsis:

    @register(keras.layers.Dense, watching=watch_before_activation)
    def dense(layer, use):
        factors = OuterFactors(use.args[0], use.grads[0], bias=True)
        return [((layer.kernel, layer.bias), factors)]
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.gradients.factors import Factors

Part = tuple[tuple[keras.Variable, ...], Factors]
Watch = Callable[[tf.Tensor], tf.Tensor]
Watching = Callable[
    [keras.Layer, Watch], contextlib.AbstractContextManager[None]
]


@dataclasses.dataclass(frozen=True)
class LayerUse:
    """One call of a layer during a forward pass.

    Attributes:
        args: positional arguments of `call`.
        kwargs: keyword arguments of `call`.
        grads: gradients of the summed per-example losses at the watched
            tensors: those of the rule's `watching`, or by default every
            tensor that the layer returned.
        outputs: the watched tensors, in the same order.
        masks: Keras masks of the flattened arguments; None without a mask.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    grads: tuple[Any, ...]
    outputs: tuple[tf.Tensor, ...]
    masks: tuple[tf.Tensor | None, ...] = ()

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
    """A rule by which a layer class splits its gradients into examples.

    Attributes:
        factors: `(layer, use) -> [(variables, factors), ...]`.
        variables: names of the attributes that hold the variables it covers;
            with dots, attributes of a layer inside it.
        watching: `(layer, watch)`, a context manager in which a call of the
            layer passes the tensors whose gradients the rule needs through
            `watch`; None to use the layer's outputs.
        fits: function that decides whether the rule fits a subclass with its
            own code; None if it never does.
        holds: function that decides, for every layer, whether the rule's
            assumptions hold; None if its class is known to meet them.
    """

    factors: Callable[[keras.Layer, LayerUse], list[Part]]
    variables: tuple[str, ...]
    watching: Watching | None = None
    fits: Callable[[keras.Layer], bool] | None = None
    holds: Callable[[keras.Layer], bool] | None = None


_RULES: dict[Any, Rule] = {}  # by classes, or by their names

# Methods that a subclass may redefine without changing outputs.
_NOT_COMPUTATION = frozenset(
    {
        "build",
        "build_from_config",
        "compute_mask",
        "compute_output_shape",
        "compute_output_spec",
        "from_config",
        "get_build_config",
        "get_config",
        "load_own_variables",
        "quantize",  # Keras wraps it on every instance, and `build` too
        "quantized_build",
        "save_own_variables",
    }
)


def present(*names: str) -> tuple[type[keras.Layer], ...]:
    """The classes of these names that this release of Keras has."""
    classes = (getattr(keras.layers, name, None) for name in names)
    return tuple(layer_class for layer_class in classes if layer_class)


def register(
    *layer_classes: type[keras.Layer],
    variables: tuple[str, ...] = ("kernel", "bias"),
    watching: Watching | None = None,
    fits: Callable[[keras.Layer], bool] | None = None,
):
    """Registers the decorated function as the rule of `layer_classes`."""

    def decorate(function):
        for layer_class in layer_classes:
            _RULES[layer_class] = Rule(function, variables, watching, fits)
        return function

    return decorate


def register_by_name(
    *names: str,
    variables: tuple[str, ...],
    holds: Callable[[keras.Layer, Rule], bool],
    watching: Watching | None = None,
):
    """Registers a rule of classes of a package that is not imported.

    Args:
        names: modules and qualified names of the classes.
        variables: same as those of `Rule`.
        holds: decides whether a layer is what the rule takes it for. Another
            release of the package may have another class of this name.
        watching: same as that of `Rule`.
    """

    def decorate(function):
        def holds_for(layer: keras.Layer) -> bool:
            return holds(layer, rule)

        rule = Rule(function, variables, watching, holds=holds_for)
        _RULES.update(dict.fromkeys(names, rule))
        return function

    return decorate


@contextlib.contextmanager
def attributes(layer: keras.Layer, values: dict[str, Any]):
    """For a `with` block, sets attributes of one layer object."""
    own = vars(layer)
    before = {name: own[name] for name in values if name in own}
    try:
        own.update(values)
        yield
    finally:
        for name in values:
            own.pop(name, None)
        own.update(before)


@contextlib.contextmanager
def watch_before_activation(layer: keras.Layer, watch: Watch):
    """For a `with` block, watches the input of the layer's activation."""
    activation = layer.activation or (lambda value: value)
    watched = {"activation": lambda value: activation(watch(value))}
    with attributes(layer, watched):
        yield


def rule_for(layer: keras.Layer) -> Rule | None:
    """The rule that fits `layer`, or None if the fallback is needed.

    A rule describes the computation of one class. It does not fit a subclass
    (or an instance) that redefines any part of it, nor a layer that owns
    variables that the rule does not cover.
    """
    layer_class: Any
    for layer_class in type(layer).__mro__:
        rule = _RULES.get(layer_class) or _RULES.get(_name_of(layer_class))
        if rule is None:
            continue
        if overrides_computation(layer, layer_class) and not (
            rule.fits is not None and rule.fits(layer)
        ):
            return None
        covered = {id(v) for v in _values(layer, rule.variables)}
        parts = [layer, *_values(layer, _inside(rule.variables))]
        owned = {id(v) for part in parts for v in own_variables(part)}
        if not owned <= covered:
            return None
        return rule if rule.holds is None or rule.holds(layer) else None
    return None


def covered_variables(
    layer: keras.Layer, rule: Rule | None
) -> list[keras.Variable]:
    """The trainable variables that a site of the layer covers.

    Its own; and those of layers inside it that its rule names.
    """
    own = own_variables(layer)
    if rule is None:
        return own
    for inside in _values(layer, _inside(rule.variables)):
        own += own_variables(inside)
    return own


def _name_of(layer_class: type) -> str:
    return f"{layer_class.__module__}.{layer_class.__qualname__}"


def _inside(names: tuple[str, ...]) -> list[str]:
    """The names of inner layers in names of variables."""
    owners = (name.rpartition(".")[0] for name in names)
    return list(dict.fromkeys(filter(None, owners)))


def _values(layer: keras.Layer, names: Iterable[str]) -> list[Any]:
    """The attributes of these names, with dots in them, that are not None."""
    values = []
    for name in names:
        value: Any = layer
        for attribute in name.split("."):
            value = getattr(value, attribute, None)
        if value is not None:
            values.append(value)
    return values


def overrides_computation(layer: keras.Layer, layer_class: type) -> bool:
    """Whether `layer` redefines code of `layer_class` that affects outputs."""
    position = type(layer).__mro__.index(layer_class)
    scopes = [vars(c) for c in type(layer).__mro__[:position]] + [vars(layer)]
    return any(
        (callable(value) or isinstance(value, property))
        and not name.startswith("__")
        and name not in _NOT_COMPUTATION
        and _is_computed(getattr(layer_class, name, None))
        for scope in scopes
        for name, value in scope.items()
    )


def _is_computed(attribute: Any) -> bool:
    return callable(attribute) or isinstance(attribute, property)


def own_variables(layer: keras.Layer) -> list[keras.Variable]:
    """The trainable variables that the layer itself created.

    Variables of its sublayers are not included.
    """
    if not layer.trainable:
        return []
    return [v for v in layer._trainable_variables if v.trainable]
