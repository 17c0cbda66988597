"""Which layer answers for which variables, found by a dry run of the model.

A layer's gradients split into examples where its inputs and outputs have the
examples along their first axis. Not every call in a model is so: a table of
positions is looked up once for the whole batch, `reshape(x, (-1, d))` folds
examples and positions into one axis, a call inside a loop or a `tf.function`
cannot be watched from outside, and a tied output projection reads a table that
belongs to another layer. There the nearest enclosing layer whose own inputs and
outputs do split, if need be the model, answers for the variables in question,
by the layer-local fallback.

The dry run traces the model for a number of examples that no other axis has,
so that shapes alone tell the axis of the examples from the rest. Nothing is
computed.

Synopsis:

    placement = place(model, x)
    placement.sites      # which layers' calls to record, for which variables
    placement.names_of(variables)  # "model/head"
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.gradients.refusals import check_call
from keras_tracin.gradients.rules.fallback import is_differentiable
from keras_tracin.gradients.sites import (
    Site,
    find_sites,
    intercepted,
    layers_called,
    site_variables,
    without_rematerialization,
)

# How many examples the dry run has: a prime, so that a multiple of it is an
# axis into which the examples were folded.
_EXAMPLES = 1009


@dataclasses.dataclass(frozen=True)
class Placement:
    """The sites that together cover every wanted variable exactly.

    Attributes:
        sites: layers to record, and the variables each answers for. One
            without a rule accounts for all uses of its variables inside it.
        variables: those that the sites answer for, each once.
        owners: by the id of a variable, the layers that own it.
        unsure: ids of layers of which the dry run could not tell whether they
            return as many rows as there are examples.
    """

    sites: tuple[Site, ...]
    variables: tuple[keras.Variable, ...]
    owners: dict[int, tuple[str, ...]]
    unsure: frozenset[int]

    def names_of(self, variables: Iterable[keras.Variable]) -> str:
        """The owners of these variables, joined by "+"."""
        names = [name for v in variables for name in self.owners[id(v)]]
        return "+".join(dict.fromkeys(names))


def place(
    model: keras.Model,
    x: Any,
    layers: Sequence[str | keras.Layer] | None = None,
) -> Placement:
    """Finds layers that can answer for the variables, by a dry run.

    Args:
        model: a built model.
        x: its inputs: tensors, arrays or `tf.TensorSpec`s.
        layers: restricts the gradients, as in `find_sites`.

    Raises:
        ValueError: as `find_sites`; or naming a layer, if neither it nor a
            layer around it treats examples one by one.
    """
    sites = find_sites(model, layers)
    owners: dict[int, tuple[str, ...]] = {}
    for site in sites:
        for variable in site.variables:
            known = owners.get(id(variable), ())
            owners[id(variable)] = (*known, site.name)
    run = _DryRun(model, x, sites)
    unsure = frozenset(
        id(call.layer)
        for call in run.calls
        if any(_first_axis(tensor) is None for tensor in call.outputs)
    )
    return Placement(
        _with_enclosing(sites, run),
        tuple(site_variables(sites)),
        owners,
        unsure,
    )


def _with_enclosing(sites: list[Site], run: _DryRun) -> tuple[Site, ...]:
    """Adds sites for variables whose own layers cannot answer for them."""
    by_layer = {id(site.layer): site for site in sites}
    wanted = {id(v.value): v for site in sites for v in site.variables}
    needed: dict[int, tuple[keras.Layer, dict[int, keras.Variable]]] = {}
    for call in run.calls:
        own = by_layer.get(id(call.layer))
        answered = set() if own is None else _answered(own, call)
        for key in call.reads() & wanted.keys() - answered:
            around = _nearest_that_splits(call, wanted[key])
            _, variables = needed.setdefault(id(around), (around, {}))
            variables[key] = wanted[key]
    found = {(id(site.layer), site.rule): site for site in sites}
    for layer, variables in needed.values():
        own = found.get((id(layer), None))
        if own is not None:  # one site does for both
            variables.update((id(v.value), v) for v in own.variables)
        site = Site(layer, tuple(variables.values()), None)
        found[id(layer), None] = site
    return tuple(found.values())


def _answered(site: Site, call: _Call) -> set[int]:
    """The variables that the called layer's own site accounts for."""
    answers = call.splits if site.rule is None else call.returns_examples
    return {id(v.value) for v in site.variables} if answers else set()


def _nearest_that_splits(call: _Call, variable: keras.Variable) -> keras.Layer:
    around: _Call | None = call
    while around is not None:
        if around.splits:
            return around.layer
        around = around.parent
    raise ValueError(
        f"The gradient of variable '{variable.path}', used in layer "
        f"'{call.layer.name}' ({type(call.layer).__name__}), cannot be split "
        "into examples: neither this layer nor one around it takes and "
        "returns tensors whose first axis is the examples'. Leave it out by "
        "naming the other layers in `layers=`."
    )


@dataclasses.dataclass
class _Call:
    """One call of a layer in the dry run."""

    layer: keras.Layer
    parent: _Call | None
    tape: tf.GradientTape
    takes_examples: bool
    in_graph: bool  # of the model itself, not of a loop or function in it
    outputs: list[tf.Tensor] = dataclasses.field(default_factory=list)

    def reads(self) -> set[int]:
        """The variables it read itself, not through layers it called."""
        return {id(v) for v in self.tape.watched_variables()}

    @property
    def returns_examples(self) -> bool:
        """Whether what it returns has the examples along the first axis."""
        # What else the model returns is no matter, if the loss leaves it out.
        enough = any if self.parent is None else all
        return self.in_graph and enough(map(_may_have_examples, self.outputs))

    @property
    def splits(self) -> bool:
        """Whether the call can be repeated for one example."""
        return self.takes_examples and self.returns_examples


class _DryRun:
    """The calls that a model makes, with the shapes of what they return."""

    def __init__(self, model: keras.Model, x: Any, sites: Sequence[Site]):
        self.calls: list[_Call] = []
        self._active: list[_Call] = []
        self._graph = tf.__internal__.FuncGraph("dry_run")
        x = tf.nest.map_structure(_type_of, x)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._graph.as_default())
            stack.enter_context(without_rematerialization(model))
            for layer in layers_called(model, sites):
                noting = functools.partial(self._note, layer)
                stack.enter_context(intercepted(layer, noting))
            inputs = tf.nest.map_structure(_placeholder, x)
            model(inputs, training=False)

    def _note(self, layer: keras.Layer, original, *args, **kwargs):
        check_call(layer, args, kwargs)
        parent = self._active[-1] if self._active else None
        with contextlib.ExitStack() as stack:
            if parent is not None:
                stack.enter_context(parent.tape.stop_recording())
            tape = stack.enter_context(tf.GradientTape(persistent=True))
            made = _Call(
                layer,
                parent,
                tape,
                takes_examples=_takes_examples((args, kwargs)),
                in_graph=tf.compat.v1.get_default_graph() is self._graph,
            )
            self.calls.append(made)
            self._active.append(made)
            stack.callback(self._active.pop)
            outputs = original(*args, **kwargs)
        made.outputs += filter(is_differentiable, tf.nest.flatten(outputs))
        return outputs


def _type_of(leaf: Any) -> tf.TensorSpec:
    if not isinstance(leaf, tf.TensorSpec):
        leaf = tf.convert_to_tensor(leaf)
    return tf.TensorSpec([_EXAMPLES, *leaf.shape[1:]], leaf.dtype)


def _placeholder(spec: tf.TensorSpec) -> tf.Tensor:
    return tf.compat.v1.placeholder(spec.dtype, spec.shape)


def _takes_examples(arguments: Any) -> bool:
    """Whether some have the examples first, and none has them folded."""
    tensors = [t for t in tf.nest.flatten(arguments) if tf.is_tensor(t)]
    return any(map(_may_have_examples, tensors)) and not any(
        map(_examples_folded, tensors)
    )


def _first_axis(tensor: tf.Tensor) -> int | None:
    """Its size, zero if there is none, None if that is not known."""
    shape = tf.TensorShape(tensor.shape)
    return shape[0] if shape.rank else 0


def _may_have_examples(tensor: tf.Tensor) -> bool:
    return _first_axis(tensor) in (_EXAMPLES, None)


def _examples_folded(tensor: tf.Tensor) -> bool:
    """Whether the first axis is examples and something else in one."""
    size = _first_axis(tensor) or 0
    return size > _EXAMPLES and size % _EXAMPLES == 0
