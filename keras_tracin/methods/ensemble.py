"""Ensembles: the mean of the scores of several methods or trainings.

    score(z, z') = (1/K) Σ_k s_k(z, z') / σ_k(z')

s_k are the members' scores. σ_k(z') is 1 or, with `scale="query"`, the standard
deviation of s_k(·, z') over the training examples, so that members whose scores
have other units weigh alike. Randomness of single trainings (initial weights,
order) averages out, which improves scores of networks more than anything else
(Park et al. 2023, sec. 3.2).

Synopsis:

    runs = ["runs/a", "runs/b", "runs/c"]
    members = [kt.TracIn(model, train, run) for run in runs]
    ensemble = kt.Ensemble(members)
    ensemble.influence(test)       # Attribution [num_test, num_train]
    ensemble.top_k(test, k=10)     # TopK
    ensemble.self_influence()      # SelfInfluence
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from keras_tracin.data.batches import Batch
from keras_tracin.data.ids import read_ids
from keras_tracin.engine.call import Call
from keras_tracin.engine.chunks import Chunk, Sink
from keras_tracin.engine.distribution import Strategy
from keras_tracin.engine.execution import Execution
from keras_tracin.engine.measures import Numbers
from keras_tracin.engine.planning import Plan
from keras_tracin.methods.attributor import Attributor
from keras_tracin.methods.averaging import (
    average,
    check_members,
    common_size,
    unit_of,
)
from keras_tracin.methods.base import Method
from keras_tracin.methods.ensemble_queries import (
    BYTES_PER_SCORE,
    EnsembleQueries,
    ScoredBlock,
)
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.results import Attribution, TopKMerger


class Ensemble(Method):
    """The mean of the scores of several methods or trainings.

    Example:
    ```python
    members = [kt.TracIn(model, train, run) for run in ("runs/a", "runs/b")]
    kt.Ensemble(members).top_k(test, k=10).proponents.ids
    kt.Ensemble([tracin, trak], scale="query").influence(test)
    ```

    Members are called one after another, for one block of queries at a time;
    every block takes a pass of each member over the training examples. The
    scores of one block for all training examples are held twice, those of all
    queries only by `influence`. A block takes a quarter of `memory_limit`.

    With `directory=`, every member scores all queries once and keeps its parts,
    and then its matrix of scores, in a subdirectory, from which sums are read:
    `4 · num_test · num_train` bytes for each member, for `top_k` as well.

    With `scale="query"`, `self_influence` divides each member's self-influence
    by its standard deviation over the training examples. Scores that are the
    same for all training examples are taken as 0. With `among`, standard
    deviations are over the examples that remain.

    Args:
        attributors: the members: methods with the same training examples in
            the same order, with the same ids. Where ids are positions, only
            the number of examples is compared.
        scale: None, for members whose scores have one unit: of one class, with
            the same losses; or `"query"` to divide each member's scores of a
            query by their standard deviation over the training examples, as
            other members need.
        memory_limit: bytes for the scores of a block; half of what is free by
            default. Members have their own limits.

    Attributes:
        attributors: the members.
        scale: None or `"query"`.

    Raises:
        TypeError: if a member is no method.
        ValueError: if there are no members, if scores of several units are to
            be averaged without a scale, if `scale` is anything else, or if
            members differ in the number of training examples.
    """

    title = "Ensemble"

    def __init__(
        self,
        attributors: Sequence[Attributor],
        *,
        scale: str | None = None,
        memory_limit: int | None = None,
    ):
        self.attributors = check_members(attributors)
        if scale not in (None, "query"):
            raise ValueError(
                f"`scale` should be None or 'query'. Received: {scale!r}."
            )
        kinds = sorted({unit_of(member) for member in self.attributors})
        if scale is None and len(kinds) > 1:
            raise ValueError(
                "Scores of different methods, or of other losses or options, "
                "have different units. Received members of "
                f"{', '.join(kinds)} with scale=None. Pass `scale='query'` to "
                "divide each member's scores by their standard deviation, or "
                "members of one unit."
            )
        self.scale = scale
        self._execution = Execution(memory_limit=memory_limit)
        self._size = common_size(self.attributors)

    @property
    def settings(self) -> dict[str, Any]:
        """Options that scores depend on, as JSON, without reading any data."""
        return {"scale": self.scale}

    @property
    def unit(self) -> str:
        """The class and options that give the ensemble's scores their unit."""
        if self.scale is None:
            return unit_of(self.attributors[0])
        return "Ensemble(scale='query')"

    @property
    def strategy(self) -> Strategy | None:
        """The strategy of the first member."""
        return getattr(self.attributors[0], "strategy", None)

    @property
    def num_train(self) -> int | None:
        """Number of training examples; None where no member tells."""
        return self._size

    @property
    def no_self_influence(self) -> str | None:
        """Why there is no self-influence, and what to use; None if there is."""
        for member in self.attributors:
            reason = getattr(member, "no_self_influence", None)
            if reason is not None:
                return reason
        return None

    @property
    def no_contrast(self) -> str | None:
        """Why queries cannot be contrasted; None if they can."""
        if self.scale is None:
            return None
        return (
            "`contrast=` takes scores of one query off those of another, in "
            "one unit. Received an ensemble with `scale='query'`, which "
            "divides the scores of each query by their own standard "
            "deviation. Contrast by each member, or leave the scale out."
        )

    @exclusive_access
    def plan(self, test: Any = None) -> Plan:
        """The work, memory and time that scoring will take.

        The sum of the members' plans: checkpoints and seconds add up, memory
        is that of the largest member beside the scores of a block.

        Args:
            test: the queries, in the same form as `train`.

        Raises:
            NotImplementedError: without `test`, as `self_influence`.
            ValueError: if `test` does not fit a member's model.
        """
        plans = [member.plan(test) for member in self.attributors]
        largest = max(plans, key=lambda plan: plan.memory)
        times = [plan.seconds for plan in plans if plan.seconds is not None]
        queries, blocks = max(plan.num_queries for plan in plans), 1
        block = max(1, queries)
        if test is not None:
            opened = EnsembleQueries(test, self._execution)
            block = min(block, opened.room(self._size))
            blocks = -(-queries // block)
        scores = BYTES_PER_SCORE * block * (self._size or 0)
        fields = {
            field.name: getattr(largest, field.name)
            for field in dataclasses.fields(Plan)
        }
        return dataclasses.replace(
            Plan(**fields),
            num_checkpoints=sum(plan.num_checkpoints for plan in plans),
            memory=largest.memory + scores,
            num_blocks=max(blocks, *(plan.num_blocks for plan in plans)),
            seconds=sum(times) if len(times) == len(plans) else None,
        )

    def among(self, ids: Any) -> Self:
        """The ensemble restricted to the training examples with these ids.

        Args:
            ids: ids of training examples, at least one.

        Raises:
            ValueError: as every member's `among`.
        """
        ids = read_ids(ids, "among")
        ensemble = copy.copy(self)
        ensemble.attributors = [m.among(ids) for m in self.attributors]
        ensemble._size = len(set(ids))
        return ensemble

    def within(self, **limits: Any) -> Self:
        """The ensemble within other limits, and each member within them.

        Args:
            **limits: as in `keras_tracin.engine.execution.Execution.within`.

        Raises:
            TypeError: if a member takes no limits.
        """
        members = []
        for member in self.attributors:
            limit = getattr(member, "within", None)
            if limit is None:
                raise TypeError(
                    "The members of an ensemble are put within its limits. "
                    f"Received a `{type(member).__name__}`, which has no "
                    "`within`. Give each member its own limits."
                )
            members.append(limit(**limits))
        ensemble = copy.copy(self)
        ensemble.attributors = members
        ensemble._execution = self._execution.within(**limits)
        return ensemble

    def describe(self) -> dict[str, Any]:
        """The members and their options, as JSON."""
        members = [member.describe() for member in self.attributors]
        return {"method": "Ensemble", **self.settings, "members": members}

    def __repr__(self) -> str:
        members = "".join(f"    {m!r},\n" for m in self.attributors)
        scale = "" if self.scale is None else f", scale={self.scale!r}"
        return f"Ensemble([\n{members}]{scale})"

    def check_weights(self) -> None:
        """Nothing: members compare the weights themselves."""

    def job(self, test: Any) -> dict[str, Any]:
        """All that scores depend on, as JSON, for the parts on disk."""
        job = self.describe()
        if test is not None:
            job["test"] = EnsembleQueries(test, self._execution).digest()
        return job

    def fingerprint(self, test: Any) -> tuple[Numbers, float]:
        """The number of members, which compare more in their directories."""
        return {"members": np.array([len(self.attributors)])}, 0.0

    def blocks(self, test: Any, call: Call) -> Iterator[ScoredBlock]:
        """The queries in blocks whose scores are averaged together."""
        if "k" in call.options:  # before members do long work
            TopKMerger(np.zeros(0), call.options["k"], self.num_train)
        queries = EnsembleQueries(test, self._execution)
        if call.parts is None:
            for block in queries.cut(lambda: self._size):
                ask = functools.partial(self._ask, queries.data_of(block), call)
                yield ScoredBlock((block,), ask)
            return
        members = list(self._ask(test, call))
        room = call.agree("block", queries.room(len(members[0].train_ids)))
        start = 0
        for block in queries.examples.batches(room):
            rows = slice(start, start + len(block))
            start = rows.stop
            own = functools.partial(map, functools.partial(_rows_of, rows))
            yield ScoredBlock((block,), functools.partial(own, members))

    def stream(self, queries: ScoredBlock, sink: Sink, call: Call) -> None:
        """Streams the scores of one block of queries into a sink."""
        scores = iter(queries.scores())
        first = next(scores)
        self._size = len(ids := first.train_ids)
        if sink.wants(Chunk(0, 0, (Batch(ids, None),))):
            members = itertools.chain([first], scores)
            sink.add(ids, average(members, queries.ids, self.scale))

    def stream_self(self, sink: Sink, call: Call) -> None:
        """Streams the scores of training examples for themselves."""

        def ask() -> Iterator[Attribution]:
            for number, member in enumerate(self.attributors):
                result = member.self_influence(
                    directory=_subdirectory(call, number), verbose=call.verbose
                )
                row = result.scores[np.newaxis]
                yield Attribution(row, np.array(["self"]), result.ids)

        # All are asked, also where their sum is finished: each member compares
        # its own parts with what it would compute now.
        members = list(ask())
        query = Batch(np.array(["self"]), None)
        queries = ScoredBlock((query,), lambda: members)
        self.stream(queries, sink=_first_row(sink), call=call)

    def _ask(self, test: Any, call: Call) -> Iterator[Attribution]:
        """The members' scores, one member after another."""
        for number, member in enumerate(self.attributors):
            yield member.influence(
                test,
                directory=_subdirectory(call, number),
                verbose=call.verbose,
            )


def _rows_of(rows: slice, scores: Attribution) -> Attribution:
    """The scores of some of the queries."""
    return Attribution(
        scores.scores[rows], scores.query_ids[rows], scores.train_ids
    )


def _first_row(sink: Sink) -> Sink:
    """A sink of rows `[1, c]` that passes on `[c]`."""
    return Sink(lambda ids, scores: sink.add(ids, scores[0]), sink.wants)


def _subdirectory(call: Call, number: int) -> Path | None:
    """The directory of a member's own parts."""
    if call.parts is None:
        return None
    return call.parts.directory / f"member-{number:02}"
