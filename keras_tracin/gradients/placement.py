"""Assigns variables to the layers at which their gradients are taken.

A layer's gradients split into examples if its inputs and outputs have the
examples on their first axis. Not every call is like this: a table of position
embeddings is looked up once for the whole batch, `reshape(x, (-1, d))` folds
examples and positions into one axis, a call inside a loop or a `tf.function`
cannot be watched from outside, and a tied output projection reads a table of
another layer. Some layers also pass on more than their outputs: they store a
tensor on `self`, for a later layer or the loss, or return an object that
`tf.nest` does not look into. In these cases the nearest enclosing layer whose
inputs and outputs do split, possibly the model, covers the variables by the
layer-local fallback; and if the model passes more to the loss than its outputs,
model and loss together cover them.

If the loss itself reads weights, its gradient is added to that of the layers.

A dry run of the model decides which case holds.

Synopsis:

    placement = place(model, x, loss=loss, y=y)
    placement.sites      # layers whose calls to record, and their variables
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
    run_with_loss,
)
from keras_tracin.gradients.example_axis import first_axis
from keras_tracin.gradients.paths import replicas_of
from keras_tracin.gradients.sites import Site, find_sites, site_variables


@dataclasses.dataclass(frozen=True)
class Placement:
    """Sites that together cover every variable exactly once.

    Attributes:
        sites: layers to record, and the variables that each covers. A site
            without a rule covers all uses of its variables inside its layer.
        variables: distinct variables of all sites.
        owners: names of the layers that own a variable, by the variable's id.
        unsure: ids of layers for which the dry run could not determine whether
            they return one row for each example.
        of_loss: variables that the loss itself reads: the gradient of the loss
            alone is added to that of the sites.
        of_objective: variables that no site covers, because they influence the
            loss by other paths than the model's outputs.
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
        """Names of the owners of variables, joined by "+"."""
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
    """Finds layers that can cover the variables, by a dry run.

    Args:
        model: a built model.
        x: inputs of the model: tensors, arrays or `tf.TensorSpec`s.
        layers: layers to restrict the gradients to, as in `find_sites`.
        loss: `(y, y_pred, sample_weight) -> [n]`, which will be
            differentiated; without it, the loss is assumed to depend on
            `y_pred` alone.
        y: labels, in the form of `x`.
        sample_weight: sample weights, in the form of `x`, or None.

    Raises:
        ValueError: if `find_sites` raises it; or naming a layer, if neither it
            nor a layer around it treats examples one by one.
    """
    sites = find_sites(model, layers)
    owners: dict[int, tuple[str, ...]] = {}
    for site in sites:
        for variable in site.variables:
            so_far = owners.get(id(variable), ())
            owners[id(variable)] = (*so_far, site.name)
    search = _Search(model, sites, Objective(x, y, sample_weight, loss))
    while search.add_sites():
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
        spec: types of a batch, `(x, y[, sample_weight])`.
        what: the feature that cannot use such a loss, for the error.

    Raises:
        ValueError: if it reads weights, or tensors that the model keeps.
    """
    x, y, *weight = spec
    objective = Objective(x, y, weight[0] if weight else None, loss)
    run = run_with_loss(model, objective)
    read = [v.path for v in model.trainable_variables if run.loss_reads(v)]
    if read or run.loss_reads_other_tensors:
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
    """Adds sites until they cover all variables.

    Attributes:
        sites: the sites so far.
        of_objective: variables that model and loss together cover.
        run: the last dry run, which shows whether the sites suffice.
    """

    def __init__(
        self, model: keras.Model, sites: list[Site], objective: Objective
    ):
        self.sites = sites
        self.of_objective: dict[int, keras.Variable] = {}
        self._model, self._objective = model, objective
        variables = site_variables(sites)
        self._variables = {id(v.value): v for v in variables}
        # On several replicas, a tape knows the variable of the replica it read.
        self._keys = {
            id(part): id(v.value)
            for v in variables
            for part in (v.value, *replicas_of(v.value))
        }

    def add_sites(self) -> bool:
        """Adds sites; returns whether another dry run is needed."""
        self.run = DryRun(self._model, self.sites, self._objective)
        # Paths to the loss, which some losses show only for an open batch size.
        self._run_with_loss = self.run
        if self._objective.loss is not None and not self.run.knows_loss:
            open_batch = DryRun(
                self._model, self.sites, self._objective, examples=None
            )
            if open_batch.knows_loss:
                self._run_with_loss = open_batch
        needed: dict[int, _Needed] = {}
        for call in self.run.calls:
            for key in {self._keys[v] for v in call.reads() if v in self._keys}:
                layer = self._missing_site(call, key)
                if layer is not None:
                    _, variables = needed.setdefault(id(layer), (layer, {}))
                    variables[key] = self._variables[key]
        for key, variable in self._variables.items():
            if (
                self._run_with_loss.knows_loss
                and self._run_with_loss.is_read_outside(variable)
            ):
                self._leave_to_objective(key)
        self._add(needed.values())
        return bool(needed)

    def of_loss(self) -> Iterator[keras.Variable]:
        """Variables that the loss itself reads, if it can be repeated."""
        if not self._run_with_loss.knows_loss:
            return
        for key, variable in self._variables.items():
            if key in self.of_objective or not self._run_with_loss.loss_reads(
                variable
            ):
                continue
            if self._run_with_loss.loss_reads_other_tensors:
                self._leave_to_objective(key)
            else:
                yield variable

    def _missing_site(self, call: Call, key: int) -> keras.Layer | None:
        """The layer that needs a site for a variable that a call reads.

        None if the variable is covered already.
        """
        if key in self.of_objective:
            return None
        inner: Call | None = call
        covering = [c for c in call.around() if self._has(c, key, rule=False)]
        if covering:
            *_, outermost = covering
            if outermost.splits and self._is_closed(outermost, key):
                return None
            inner = outermost.parent
        else:
            ruled = [c for c in call.around() if self._is_ruled(c, key, call)]
            if ruled and self._rule_serves(ruled[-1], key):
                return None
        leaves_tensors = bool(covering) and covering[-1].splits
        for around in inner.around() if inner is not None else ():
            if around.splits and self._is_closed(around, key):
                return around.layer
            leaves_tensors |= around.splits
        if not leaves_tensors:
            raise _not_split(call, self._variables[key])
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

    def _is_ruled(self, around: Call, key: int, call: Call) -> bool:
        """Whether a rule for a layer covers a variable that `call` reads."""
        return self._has(around, key, rule=True) and (
            around is call
            or any(
                id(self._variables[key]) in site.inside
                for site in self.sites
                if site.layer is around.layer and site.rule is not None
            )
        )

    def _is_closed(self, call: Call, key: int) -> bool:
        """Whether a variable affects the loss by the call's outputs alone."""
        twin = self._run_with_loss.calls[call.number]
        return not (
            self._run_with_loss.fallback_misses(twin, self._variables[key])
            or self._run_with_loss.reads_other_examples(twin)
        )

    def _rule_serves(self, call: Call, key: int) -> bool:
        if not call.returns_examples:
            return False
        twin = self._run_with_loss.calls[call.number]
        if self._run_with_loss.rule_misses(twin, self._variables[key]):
            return False
        # Such a rule repeats the layer, as the fallback does.
        return (
            call.rule is not None
            or not self._run_with_loss.reads_other_examples(twin)
        )

    def _leave_to_objective(self, key: int) -> None:
        variable = self._variables[key]
        if not self._run_with_loss.objective_splits:
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
        sites = {(id(site.layer), site.rule): site for site in self.sites}
        for layer, variables in needed:
            existing = sites.get((id(layer), None))
            if existing is not None:  # one site covers both
                variables.update((id(v.value), v) for v in existing.variables)
            site = Site(layer, tuple(variables.values()), None)
            sites[id(layer), None] = site
        self.sites = list(sites.values())


def _not_split(call: Call, variable: keras.Variable) -> ValueError:
    return ValueError(
        f"The gradient of variable '{variable.path}', used in layer "
        f"'{call.layer.name}' ({type(call.layer).__name__}), cannot be split "
        "into examples: neither this layer nor one around it takes and "
        "returns tensors whose first axis is the examples'. Leave it out by "
        "naming the other layers in `layers=`."
    )
