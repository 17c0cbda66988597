"""Which layer answers for which variables, found by a dry run of the model.

A layer's gradients split into examples where its inputs and outputs have the
examples along their first axis. Not every call in a model is so: a table of
positions is looked up once for the whole batch, `reshape(x, (-1, d))` folds
examples and positions into one axis, a call inside a loop or a `tf.function`
cannot be watched from outside, and a tied output projection reads a table that
belongs to another layer. Nor does all that a layer computes leave it by what it
returns: some keep a tensor on `self`, for a later layer or the loss, or return
an object that `tf.nest` does not look into. There the nearest enclosing layer
whose own inputs and outputs do split, if need be the model, answers for the
variables in question, by the layer-local fallback; and where the model hands
the loss something beside its outputs, both together do.

What the loss reads of the weights itself, beside the model's outputs, is a part
of its own.

Synopsis:

    placement = place(model, x, loss=loss, y=y)
    placement.sites      # which layers' calls to record, for which variables
    placement.names_of(variables)  # "model/head"
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras

from keras_tracin.gradients.dry_run import (
    Call,
    DryRun,
    Objective,
    first_axis,
    run_with_loss,
)
from keras_tracin.gradients.paths import parts_of
from keras_tracin.gradients.sites import Site, find_sites, site_variables


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
        of_loss: those that the loss reads itself: to their gradients by the
            sites comes that of the loss alone.
        of_objective: those that no site answers for, since what depends on
            them goes from the model to the loss by other ways than the
            model's outputs.
    """

    sites: tuple[Site, ...]
    variables: tuple[keras.Variable, ...]
    owners: dict[int, tuple[str, ...]]
    unsure: frozenset[int]
    of_loss: tuple[keras.Variable, ...] = ()
    of_objective: tuple[keras.Variable, ...] = ()

    def groups(
        self, positions: Iterable[Iterable[int]]
    ) -> tuple[tuple[keras.Variable, ...], ...]:
        """The variables at groups of positions in `variables`."""
        return tuple(
            tuple(self.variables[position] for position in group)
            for group in positions
        )

    def names_of(self, variables: Iterable[keras.Variable]) -> str:
        """The owners of these variables, joined by "+"."""
        names = [name for v in variables for name in self.owners[id(v)]]
        return "+".join(dict.fromkeys(names))


def place(
    model: keras.Model,
    x: Any,
    layers: Sequence[str | keras.Layer] | None = None,
    *,
    loss: Callable[[Any, Any, Any], Any] | None = None,
    y: Any = None,
    sample_weight: Any = None,
) -> Placement:
    """Finds layers that can answer for the variables, by a dry run.

    Args:
        model: a built model.
        x: its inputs: tensors, arrays or `tf.TensorSpec`s.
        layers: restricts the gradients, as in `find_sites`.
        loss: `(y, y_pred, sample_weight) -> [n]`, what will be differentiated;
            without it, what it reads beside `y_pred` goes unseen.
        y: the labels, as `x`.
        sample_weight: the weights, as `x`, or None.

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
    search = _Search(model, sites, Objective(x, y, sample_weight, loss))
    while search.adds_sites():
        pass
    run = search.run
    unsure = frozenset(
        id(call.layer)
        for call in run.calls
        if any(first_axis(tensor) is None for tensor in call.outputs)
    )
    return Placement(
        tuple(search.sites),
        tuple(site_variables(sites)),
        owners,
        unsure,
        tuple(search.of_loss()),
        tuple(search.of_objective.values()),
    )


def check_loss_of_outputs(
    model: keras.Model,
    loss: Callable[[Any, Any, Any], Any],
    spec: Any,
    what: str,
) -> None:
    """Refuses a loss that depends on more than the model's outputs.

    Args:
        model: a built model.
        loss: `(y, y_pred, sample_weight) -> [n]`.
        spec: the types of a batch's parts, `(x, y[, sample_weight])`.
        what: what needs to know all that the loss depends on, in words.

    Raises:
        ValueError: if it reads weights, or tensors that the model keeps.
    """
    x, y, *weight = spec
    objective = Objective(x, y, weight[0] if weight else None, loss)
    run = run_with_loss(model, objective)
    read = [v.path for v in model.trainable_variables if run.loss_reads(v)]
    if read or run.loss_is_entered:
        received = f"the variables {read}" if read else "what layers have kept"
        raise ValueError(
            f"{what} take the loss for a function of the labels and the "
            f"model's outputs. Received a loss that also reads {received}; "
            "expected one that does not. Pass such a loss as `loss=`, or use "
            "`TracIn` or `InfluenceFunctions(curvature='hessian')`, which "
            "take such losses."
        )


_Needed = tuple[keras.Layer, dict[int, keras.Variable]]


class _Search:
    """Looks for sites until those that there are answer for all variables.

    Attributes:
        sites: those so far.
        of_objective: variables that model and loss together answer for.
        run: the last dry run: what tells whether the sites will do.
    """

    def __init__(
        self, model: keras.Model, sites: list[Site], objective: Objective
    ):
        self.sites = sites
        self.of_objective: dict[int, keras.Variable] = {}
        self._model, self._objective = model, objective
        variables = site_variables(sites)
        self._wanted = {id(v.value): v for v in variables}
        # Of a variable on several replicas a tape knows the one it read.
        self._keys = {
            id(part): id(v.value)
            for v in variables
            for part in (v.value, *parts_of(v.value))
        }

    def adds_sites(self) -> bool:
        """Whether another dry run has to tell if it was enough."""
        self.run = DryRun(self._model, self.sites, self._objective)
        # The ways of tensors, which a loss may fix only by an open batch.
        self._ways = self.run
        if self._objective.loss is not None and not self.run.knows_loss:
            open_batch = DryRun(
                self._model, self.sites, self._objective, examples=None
            )
            if open_batch.knows_loss:
                self._ways = open_batch
        needed: dict[int, _Needed] = {}
        for call in self.run.calls:
            for key in {self._keys[v] for v in call.reads() if v in self._keys}:
                layer = self._answering(call, key)
                if layer is not None:
                    _, variables = needed.setdefault(id(layer), (layer, {}))
                    variables[key] = self._wanted[key]
        for key, variable in self._wanted.items():
            if self._ways.knows_loss and self._ways.is_read_outside(variable):
                self._leave_to_objective(key)
        self._add(needed.values())
        return bool(needed)

    def of_loss(self) -> Iterator[keras.Variable]:
        """Those that the loss reads itself, and can be repeated for."""
        if not self._ways.knows_loss:
            return
        for key, variable in self._wanted.items():
            if key in self.of_objective or not self._ways.loss_reads(variable):
                continue
            if self._ways.loss_is_entered:
                self._leave_to_objective(key)
            else:
                yield variable

    def _answering(self, call: Call, key: int) -> keras.Layer | None:
        """The layer that needs a site for a variable that a call reads.

        None, if there is one that answers for it.
        """
        if key in self.of_objective:
            return None
        inner: Call | None = call
        answering = [c for c in call.around() if self._has(c, key, rule=False)]
        if answering:
            *_, outermost = answering
            if outermost.splits and self._is_closed(outermost, key):
                return None
            inner = outermost.parent
        elif self._has(call, key, rule=True) and self._rule_serves(call, key):
            return None
        leaves_tensors = bool(answering) and answering[-1].splits
        for around in inner.around() if inner is not None else ():
            if around.splits and self._is_closed(around, key):
                return around.layer
            leaves_tensors |= around.splits
        if not leaves_tensors:
            raise _not_split(call, self._wanted[key])
        self._leave_to_objective(key)
        return None

    def _has(self, call: Call, key: int, rule: bool) -> bool:
        """Whether the called layer is a site of the variable."""
        return any(
            site.layer is call.layer
            and (site.rule is not None) is rule
            and any(id(v.value) == key for v in site.variables)
            for site in self.sites
        )

    def _is_closed(self, call: Call, key: int) -> bool:
        """Whether the variable's part in a call shows in what it returns."""
        twin = self._ways.calls[call.number]
        return not (
            self._ways.is_left(twin, self._wanted[key])
            or self._ways.is_entered(twin)
        )

    def _rule_serves(self, call: Call, key: int) -> bool:
        if not call.returns_examples:
            return False
        twin = self._ways.calls[call.number]
        if self._ways.goes_round_rule(twin, self._wanted[key]):
            return False
        # Such a rule repeats something, as the fallback does.
        return call.rule is not None or not self._ways.is_entered(twin)

    def _leave_to_objective(self, key: int) -> None:
        variable = self._wanted[key]
        if not self._ways.objective_splits:
            raise ValueError(
                f"The gradient of variable '{variable.path}' cannot be split "
                "into examples: what the model computes with it reaches the "
                "loss by other ways than the model's outputs (a tensor that a "
                "layer keeps, or an object that it returns). Return it as an "
                "output of the model, or leave the variable out by naming the "
                "other layers in `layers=`."
            )
        self.of_objective[key] = variable

    def _add(self, needed: Iterable[_Needed]) -> None:
        known = {(id(site.layer), site.rule): site for site in self.sites}
        for layer, variables in needed:
            own = known.get((id(layer), None))
            if own is not None:  # one site does for both
                variables.update((id(v.value), v) for v in own.variables)
            site = Site(layer, tuple(variables.values()), None)
            known[id(layer), None] = site
        self.sites = list(known.values())


def _not_split(call: Call, variable: keras.Variable) -> ValueError:
    return ValueError(
        f"The gradient of variable '{variable.path}', used in layer "
        f"'{call.layer.name}' ({type(call.layer).__name__}), cannot be split "
        "into examples: neither this layer nor one around it takes and "
        "returns tensors whose first axis is the examples'. Leave it out by "
        "naming the other layers in `layers=`."
    )
