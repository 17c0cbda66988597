"""Layers whose calls are recorded, and the variables that they cover.

Synopsis:

    sites = find_sites(model, layers=["head"])
    sites[0].name  # "model/head"
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras

from keras_tracin.gradients.precision import computes_in_float16
from keras_tracin.gradients.refusals import (
    check_differentiable,
    check_examples_apart,
)
from keras_tracin.gradients.rules import Rule, rule_for
from keras_tracin.gradients.rules.recurrent_cells import kind_of
from keras_tracin.gradients.rules.registry import (
    attributes,
    covered_variables,
    own_variables,
)


@dataclasses.dataclass(frozen=True)
class Site:
    """A layer whose calls are recorded, and the variables that it covers."""

    layer: keras.Layer
    variables: tuple[keras.Variable, ...]
    rule: Rule | None  # None: the layer-local fallback

    @property
    def name(self) -> str:
        """Path of the layer in the model, which is unique."""
        return self.layer.path or self.layer.name

    @property
    def inside(self) -> set[int]:
        """Ids of the variables that belong to layers inside the layer."""
        own = {id(v) for v in own_variables(self.layer)}
        return {id(v) for v in self.variables} - own


def find_sites(
    model: keras.Model, layers: Sequence[str | keras.Layer] | None = None
) -> list[Site]:
    """The layers to record so that their trainable variables are covered.

    Args:
        model: a built model.
        layers: names, paths or layer objects to restrict the gradients to; a
            layer includes all layers in it. None for the whole model.

    Raises:
        ValueError: if a layer is not in the model, has nothing to train, is
            stateful, or is quantized to float8.
    """
    check_examples_apart(model)
    check_differentiable(model)
    roots = [model] if layers is None else named_layers(model, layers)
    sites: dict[int, Site] = {}
    for root in roots:
        inner = list(_sites_within(root))
        if not inner:
            raise ValueError(
                f"Layer '{root.name}' has no trainable variables, so examples "
                "have no gradient there. Name layers with weights in "
                "`layers=`, or set `trainable = True` on this one."
            )
        sites.update({id(site.layer): site for site in inner})
    return list(sites.values())


def site_variables(sites: Iterable[Site]) -> list[keras.Variable]:
    """Distinct variables of the sites."""
    variables = {id(v): v for site in sites for v in site.variables}
    return list(variables.values())


def named_layers(
    model: keras.Model,
    layers: str | keras.Layer | Sequence[str | keras.Layer],
    argument: str = "layers",
) -> list[keras.Layer]:
    """Looks up layers of a model by names, paths or layer objects.

    Args:
        model: a built model.
        layers: one or several names, paths or layers.
        argument: name of the argument in errors.

    Raises:
        ValueError: if one of them matches no layer, or several.
    """
    if isinstance(layers, str | keras.Layer):
        layers = [layers]
    if not layers:
        raise ValueError(
            f"`{argument}=` names no layer. Received {layers!r}, expected "
            "names or layers of the model; leave it out for all of them."
        )
    all_layers = model._flatten_layers()
    selected = []
    for layer_or_name in layers:
        matches = [
            layer
            for layer in all_layers
            if layer is layer_or_name
            or layer_or_name in (layer.name, layer.path)
        ]
        if len(matches) != 1:
            what = "no layer" if not matches else f"{len(matches)} layers"
            names = [layer.name for layer in all_layers if layer is not model]
            raise ValueError(
                f"`{argument}=` should name layers of the model "
                f"'{model.name}'. "
                f"Received {layer_or_name!r}, which fits {what}. "
                f"The model's layers are: {names}."
            )
        selected += matches
    return selected


def _sites_within(layer: keras.Layer) -> Iterator[Site]:
    """Yields the sites of `layer` and of all layers in it."""
    if _calls_many_times(layer):
        if layer.trainable_variables:
            rule = rule_for(layer)
            known = kind_of(getattr(layer, "cell", None)) is not None
            if computes_in_float16(layer) and not known:
                rule = None  # the fallback scales what a cell sums up
            yield Site(layer, tuple(layer.trainable_variables), rule)
        return
    own = own_variables(layer)
    if own:
        rule = rule_for(layer)
        yield Site(layer, tuple(covered_variables(layer, rule)), rule)
    for inside in layer._layers:
        yield from _sites_within(inside)


def _calls_many_times(layer: keras.Layer) -> bool:
    """Whether a layer calls its sublayers many times, or in its own loop.

    Single calls of its sublayers are then not watched. A Bidirectional layer
    calls its two sublayers once each.
    """
    if isinstance(layer, keras.layers.Bidirectional):
        return False
    return isinstance(layer, keras.layers.RNN | keras.layers.Wrapper)


def layers_called(
    model: keras.Model, sites: Iterable[Site]
) -> list[keras.Layer]:
    """The layers of `sites`, and all layers that may call them."""
    layers: dict[int, keras.Layer] = {}

    def visit(layer: keras.Layer) -> None:
        if id(layer) not in layers:
            layers[id(layer)] = layer
            if not _calls_many_times(layer):
                for inside in layer._layers:
                    visit(inside)

    for layer in (model, *(site.layer for site in sites)):
        visit(layer)
    return list(layers.values())


@contextlib.contextmanager
def without_rematerialization(model: keras.Model):
    """For a `with` block, a `keras.RematScope` around layers has no effect.

    Rematerialization saves memory in training and changes no value, but hides
    the inside of a layer from tapes around it.
    """
    with contextlib.ExitStack() as stack:
        for layer in model._flatten_layers():
            if getattr(layer, "_remat_mode", None) is not None:
                stack.enter_context(attributes(layer, {"_remat_mode": None}))
        yield


@contextlib.contextmanager
def intercept(operation: Any, instead: Callable[..., Any]):
    """For a `with` block, `layer(...)` computes what `instead` returns.

    Args:
        operation: the layer, or other operation of a functional model. Other
            instances of its class are not affected.
        instead: `(original, *args, **kwargs)`, where `original` is the
            method that is replaced.
    """
    name = _called_method(operation)
    original = getattr(operation, name)

    def call(*args, **kwargs):
        return instead(original, *args, **kwargs)

    with attributes(operation, {name: call}):
        yield


def _called_method(operation: Any) -> str:
    """Name of the method that `layer(...)` calls."""
    quantized = getattr(operation, "quantization_mode", None) is not None
    return "quantized_call" if quantized else "call"
