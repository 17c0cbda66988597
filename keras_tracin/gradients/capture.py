"""Per-example gradients of a model's layers from one backward pass.

For the length of one forward pass, the `call` of every layer that owns
trainable variables is replaced on the instance by one that also notes its
arguments and watches its output (where the layer's rule says so, the value
before its activation). One backward pass of the summed per-example losses
then gives every example's gradient at every watched tensor, since in
inference mode examples do not interact; the rules turn inputs and gradients
into factors.

Synopsis:

    @tf.function
    def step(x, y):
        return capture(model, loss, (x, y, None))

    captured = step(x, y)
    captured.losses   # [n]
    captured.factors  # one entry for each of captured.names
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients import precision
from keras_tracin.gradients.factors import Factors
from keras_tracin.gradients.rules import LayerUse, Rule, rule_for
from keras_tracin.gradients.rules.fallback import layer_local
from keras_tracin.gradients.rules.registry import (
    Part,
    attributes,
    own_variables,
)

Batch = tuple[Any, Any, Any]  # x, y, sample_weight (or None)
PerExampleLoss = Callable[[Any, Any, Any], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Captured(algebra._Nest):
    """The gradients of one batch of examples.

    Attributes:
        names: the layer, or layers, that own each group of variables.
        losses: the per-example losses, `[n]`.
        factors: for each name, factors of `n` examples.
        positions: for each name, where its variables stand among the
            `site_variables`, in the order of the factors' columns.
    """

    names: tuple[str, ...]
    losses: tf.Tensor
    factors: tuple[Factors, ...]
    positions: tuple[tuple[int, ...], ...]

    static = ("names", "positions")


@dataclasses.dataclass(frozen=True)
class Site:
    """A layer whose calls are recorded, and the variables it answers for."""

    layer: keras.Layer
    variables: tuple[keras.Variable, ...]
    rule: Rule | None  # None: the layer-local fallback

    @property
    def name(self) -> str:
        """The layer's path in the model, which is unique."""
        return self.layer.path or self.layer.name


def find_sites(
    model: keras.Model, layers: Sequence[str | keras.Layer] | None = None
) -> list[Site]:
    """The layers to record so that their trainable variables are covered.

    Args:
        model: a built model.
        layers: names, paths or layer objects to restrict the gradients to; a
            layer stands for all layers in it. None means the whole model.

    Raises:
        ValueError: if a layer is not in the model or has nothing to train.
    """
    roots = [model] if layers is None else _named_layers(model, layers)
    sites: dict[int, Site] = {}
    for root in roots:
        found = list(_sites_within(root))
        if not found:
            raise ValueError(
                f"Layer '{root.name}' has no trainable variables, so examples "
                "have no gradient there. Name layers with weights in "
                "`layers=`, or set `trainable = True` on this one."
            )
        sites.update({id(site.layer): site for site in found})
    return list(sites.values())


def site_variables(sites: Sequence[Site]) -> list[keras.Variable]:
    """The variables that the sites answer for, each once."""
    found = {id(v): v for site in sites for v in site.variables}
    return list(found.values())


def _named_layers(model, layers) -> list[keras.Layer]:
    if isinstance(layers, str | keras.Layer):
        layers = [layers]
    if not layers:
        raise ValueError(
            f"`layers=` names no layer. Received {layers!r}, expected names "
            "or layers of the model; leave it out for all of them."
        )
    known = model._flatten_layers()
    chosen = []
    for wanted in layers:
        matches = [
            layer
            for layer in known
            if layer is wanted or wanted in (layer.name, layer.path)
        ]
        if len(matches) != 1:
            what = "no layer" if not matches else f"{len(matches)} layers"
            names = [layer.name for layer in known if layer is not model]
            raise ValueError(
                f"`layers=` should name layers of the model '{model.name}'. "
                f"Received {wanted!r}, which fits {what}. "
                f"The model's layers are: {names}."
            )
        chosen += matches
    return chosen


def _sites_within(layer: keras.Layer) -> Iterator[Site]:
    """Yields the sites of `layer` and of all layers in it."""
    # These call what is in them many times over, or inside a loop of their
    # own, where no single call could be watched.
    if isinstance(layer, keras.layers.RNN | keras.layers.Wrapper):
        if layer.trainable_variables:
            yield Site(layer, tuple(layer.trainable_variables), None)
        return
    own = own_variables(layer)
    if own:
        yield Site(layer, tuple(own), rule_for(layer))
    for inside in layer._layers:
        yield from _sites_within(inside)


def capture(
    model: keras.Model,
    loss: PerExampleLoss,
    batch: Batch,
    layers: Sequence[str | keras.Layer] | None = None,
) -> Captured:
    """Per-example gradients of `loss` for one batch, layer by layer.

    The model runs in inference mode and is left as it was. Call it inside a
    `tf.function` whose trace leaves the batch size open (`None`): that is how
    the layer-local fallback tells examples from other axes.

    Args:
        model: a built model whose examples do not interact.
        loss: `(y, y_pred, sample_weight) -> [n]`, as
            `keras_tracin.losses.per_example_loss` returns.
        batch: `(x, y, sample_weight)`.
        layers: restricts the gradients, as in `find_sites`.

    Returns:
        A `Captured` whose factors cover each trainable variable once,
        whichever layers use it, however often.

    Raises:
        ValueError: if a layer's gradient cannot be split into examples, or a
            variable is used where no layer's `call` can see it.
    """
    sites = find_sites(model, layers)
    x, y, sample_weight = batch
    scaled = precision.computes_in_float16(model)
    with tf.GradientTape(
        persistent=scaled, watch_accessed_variables=False
    ) as tape:
        with _recorded(sites, tape) as calls:
            y_pred = model(x, training=False)
        if scaled:
            y_pred = precision.widen(y_pred)
        losses = precision.widen(loss(y, y_pred, sample_weight))
    watched = [call.watched for call in calls]
    if scaled:
        grads = precision.scaled_gradients(tape, losses, y_pred, watched)
    else:
        grads = tape.gradient(
            losses,
            watched,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
    parts: list[tuple[str, Part]] = []
    for call, found in zip(calls, grads, strict=True):
        use = LayerUse(call.args, call.kwargs, tuple(found), call.watched)
        for part in _parts_of(call.site, use):
            parts.append((call.site.name, part))
    names, factors, positions = _by_variable(parts, sites)
    return Captured(names, losses, factors, positions)


def _parts_of(site: Site, use: LayerUse) -> list[Part]:
    """The factors of one use, in float32 or wider, as they are summed."""
    if site.rule is not None:
        parts = use.args, use.kwargs, use.grads, use.outputs
        return site.rule.factors(site.layer, LayerUse(*precision.widen(parts)))
    if precision.computes_in_float16(site.layer):
        return [(site.variables, _layer_local_scaled(site, use))]
    found = layer_local(site.layer, use, site.variables)
    return [(site.variables, precision.widen(found))]


def _layer_local_scaled(site: Site, use: LayerUse) -> algebra.DenseGradients:
    """The fallback for a layer that computes in float16."""

    def attempt(scale):
        grads = [
            tf.cast(precision.scaled(grad, scale), output.dtype)
            for grad, output in zip(use.grads, use.outputs, strict=True)
        ]
        within = dataclasses.replace(use, grads=tuple(grads))
        return layer_local(site.layer, within, site.variables).parts

    parts = precision.in_range(attempt, 1.0, list(use.grads))
    return algebra.DenseGradients(tuple(parts))


def _by_variable(
    parts: list[tuple[str, Part]], sites: list[Site]
) -> tuple[tuple[str, ...], tuple[Factors, ...], tuple[tuple[int, ...], ...]]:
    """Joins all uses of the same variables, and drops what is not wanted."""
    wanted = {id(v): at for at, v in enumerate(site_variables(sites))}
    groups: dict[int, set[tuple[int, ...]]] = {}
    for _, (variables, _) in parts:
        key = tuple(id(v) for v in variables)
        for v in key:
            groups.setdefault(v, set()).add(key)

    uses: dict[tuple[int, ...], list[Factors]] = {}
    owners: dict[tuple[int, ...], dict[str, None]] = {}
    for name, (variables, found) in parts:
        key = tuple(id(v) for v in variables)
        whole = all(len(groups[v]) == 1 and v in wanted for v in key)
        pieces = (
            [(key, found)]
            if whole
            else zip([(v,) for v in key], algebra.split(found), strict=True)
        )
        for piece, value in pieces:
            if set(piece) <= wanted.keys():
                uses.setdefault(piece, []).append(value)
                owners.setdefault(piece, {})[name] = None
    names = tuple("+".join(owners[key]) for key in uses)
    factors = tuple(algebra.merge(found) for found in uses.values())
    positions = tuple(tuple(wanted[v] for v in key) for key in uses)
    return names, factors, positions


@dataclasses.dataclass(frozen=True)
class _Call:
    """One recorded call of a site's layer."""

    site: Site
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    watched: tuple[tf.Tensor, ...]


@contextlib.contextmanager
def _recorded(sites: list[Site], tape: tf.GradientTape):
    """Replaces `call` on the sites' layers; yields the calls as they come."""
    calls: list[_Call] = []
    accesses = _Accesses()
    with contextlib.ExitStack() as stack:
        for site in sites:
            name = _called_method(site.layer)
            wrapped = _recording_call(site, name, tape, calls, accesses)
            stack.enter_context(attributes(site.layer, {name: wrapped}))
        stack.enter_context(accesses.within(None))
        yield calls
    accesses.check(sites)


def _called_method(layer: keras.Layer) -> str:
    """What `layer(...)` ends up in; quantized layers have another method."""
    quantized = getattr(layer, "quantization_mode", None) is not None
    return "quantized_call" if quantized else "call"


def _recording_call(site, name, tape, calls, accesses):
    layer, original = site.layer, getattr(site.layer, name)

    def call(*args, **kwargs):
        watched: list[tf.Tensor] = []

        def watch(tensor):
            if not tf.is_tensor(tensor) or not tensor.dtype.is_floating:
                return tensor
            probe = tf.identity(tensor)
            precision.copy_notes(tensor, probe)
            tape.watch(probe)
            watched.append(probe)
            return probe

        with accesses.within(site):
            if site.rule is not None and site.rule.watching is not None:
                with site.rule.watching(layer, watch):
                    outputs = original(*args, **kwargs)
            else:
                outputs = tf.nest.map_structure(
                    watch, original(*args, **kwargs)
                )
        calls.append(_Call(site, args, kwargs, tuple(watched)))
        return outputs

    return call


class _Accesses:
    """Notes which variables are read outside the call of their own layer.

    Such a read (a tied output projection written as a plain `matmul`, say)
    adds a gradient that no recorded call accounts for.
    """

    def __init__(self):
        self._tapes: list[tf.GradientTape] = []
        self._read: list[tuple[Site | None, tf.GradientTape]] = []

    @contextlib.contextmanager
    def within(self, site: Site | None):
        """Reads from here on belong to the call of `site`."""
        with contextlib.ExitStack() as stack:
            if self._tapes:
                stack.enter_context(self._tapes[-1].stop_recording())
            tape = stack.enter_context(tf.GradientTape(persistent=True))
            self._read.append((site, tape))
            self._tapes.append(tape)
            try:
                yield
            finally:
                self._tapes.pop()

    def check(self, sites: list[Site]) -> None:
        """Raises ValueError naming the first variable read elsewhere."""
        owner = {
            id(v.value): (site.name, v.path)
            for site in sites
            for v in site.variables
        }
        for site, tape in self._read:
            own = (
                set() if site is None else {id(v.value) for v in site.variables}
            )
            for variable in tape.watched_variables():
                if id(variable) in owner and id(variable) not in own:
                    name, path = owner[id(variable)]
                    where = (
                        "the model's own call"
                        if site is None
                        else (f"layer '{site.name}'")
                    )
                    raise ValueError(
                        f"Variable '{path}' of layer '{name}' is also used "
                        f"directly in {where}, outside its layer's `call`, so "
                        "its gradient cannot be split into examples there. "
                        "Call the layer instead, or leave it out by naming "
                        "the others in `layers=`."
                    )
