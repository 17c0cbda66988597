"""The calls that all methods have in common.

A method that sweeps over training examples has an `engine` and `checkpoints`
and supplies passes; one that makes its scores otherwise supplies a stream of
them. The three calls, directories, groups, plans and restrictions to some
training examples are the same for all, and are here.

Synopsis:

    class Dot(Method):
        title = "Dot products"

        def __init__(self, model, train):
            self.engine = Engine(model, train)

        def query_pass(self, queries):
            return products_pass(self.title, queries, self.checkpoints)

        def self_pass(self):
            steps = self.engine.train_steps
            return norms_pass(self.title, steps, self.checkpoints)
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Self

import keras
import numpy as np

from keras_tracin.data.batches import Batch
from keras_tracin.data.ids import read_ids
from keras_tracin.engine import collecting
from keras_tracin.engine.blocks import blocks
from keras_tracin.engine.call import Call
from keras_tracin.engine.chunks import Sink, require, restrict
from keras_tracin.engine.descriptions import in_words
from keras_tracin.engine.distribution import Strategy, check_alone, worker_of
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.fingerprint import tolerance
from keras_tracin.engine.forecast import forecast
from keras_tracin.engine.grouping import describe_groups, read_groups
from keras_tracin.engine.identity import identity, numbers
from keras_tracin.engine.measures import Numbers
from keras_tracin.engine.parts import Parts
from keras_tracin.engine.passes import Pass
from keras_tracin.engine.planning import Plan
from keras_tracin.engine.sweep import sweep
from keras_tracin.engine.visits import PRESENT_WEIGHTS, Weights, digest_of
from keras_tracin.methods.attributor import Directory, GroupsOfIds
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.results import Attribution, SelfInfluence, TopK
from keras_tracin.runs.manifest import weights_digest


class NoSelfInfluence(NotImplementedError):
    """A method has no score of a training example for itself."""


class Method:
    """The calls that all methods have in common.

    A sweeping method sets `engine` (and `checkpoints`, unless it scores at the
    weights that the model has) and supplies `query_pass` and `self_pass`. Any
    other supplies `blocks`, `stream`, `stream_self`, `job`, `fingerprint` and
    `within`, and the properties `model`, `strategy` and `num_train`.

    Attributes:
        title: the method's name, for the line that announces long work.
        engine: the model, its training examples and their compiled steps.
        checkpoints: the checkpoints that are visited, each with its factor in
            the sum over them.
        settings: options that scores depend on, as JSON.
    """

    title: ClassVar[str] = "Scores"
    engine: Engine
    checkpoints: Weights = PRESENT_WEIGHTS
    _fitted_weights: str | None = None
    _fitted_trainable: list[str] | None = None
    _selected_ids: np.ndarray | None = None  # of `among` or `keep_only`
    _required_ids: np.ndarray | None = None  # of `among`

    # The calls.

    @exclusive_access
    def influence(
        self,
        test: Any,
        *,
        groups: GroupsOfIds | None = None,
        directory: Directory | None = None,
        verbose: int = 1,
    ) -> Attribution:
        """The score of every training example for every query.

        Args:
            test: the queries, in the same form as `train`.
            groups: a dict of ids of training examples by the group's name (or
                the ids of a single group): scores are then sums over each
                group, and `train_ids` the groups' names.
            directory: where finished parts are kept. A call that was killed
                goes on from them when it is made again; processes of one
                cluster (`TF_CONFIG`) that share the directory share the work.
                The scores are then mapped from a file there, not held in
                memory.
            verbose: 0 for silence; else work of more than two seconds is
                announced and has a progress bar.

        Returns:
            An `Attribution` with `scores [num_test, num_train]`, or
            `[num_test, num_groups]`. Positive scores are proponents.

        Raises:
            ValueError: if a gradient is NaN or infinite, naming checkpoint,
                layer and ids, if `test` does not fit the model, if `groups`
                holds ids that are not among the training examples, if the
                method was made at other weights than the model has, or if
                `directory` holds parts of another call.
        """
        return self._influence(test, groups, directory, verbose)

    @exclusive_access
    def top_k(
        self,
        test: Any,
        k: int = 10,
        *,
        directory: Directory | None = None,
        verbose: int = 1,
    ) -> TopK:
        """The `k` strongest proponents and opponents of every query.

        The same as `influence(test).top_k(k)` without ever holding all the
        scores: memory does not grow with the number of training examples.

        Args:
            test: the queries, in the same form as `train`.
            k: number of training examples on each side.
            directory: as in `influence`.
            verbose: 0 for silence.

        Raises:
            ValueError: if `k` is below 1 or above the number of training
                examples; and as `influence`.
        """
        return self._top_k(test, k, directory, verbose)

    @exclusive_access
    def self_influence(
        self, *, directory: Directory | None = None, verbose: int = 1
    ) -> SelfInfluence:
        """The score of every training example for itself.

        Args:
            directory: as in `influence`.
            verbose: 0 for silence.

        Raises:
            NotImplementedError: if the method has no such score; the message
                names what to use.
            ValueError: as `influence`.
        """
        self._check_self_influence()
        call = self._start("self_influence", None, directory, verbose)
        return collecting.self_influence(self._streaming_self(call), call.parts)

    def group_influence(
        self, test: Any, groups: GroupsOfIds, *, verbose: int = 1
    ) -> Attribution:
        """The summed scores of groups of training examples.

        The same as `influence(test, groups=groups)`. Divided by the number of
        training examples, the scores of influence functions say to first order
        by how much a query's loss rises when the whole group is left out;
        larger groups are underestimated more (Koh et al. 2019).

        Args:
            test: the queries, in the same form as `train`.
            groups: the ids of one group, or a dict of groups by name.
            verbose: 0 for silence.

        Returns:
            An `Attribution` with a column for each group, `train_ids` their
            names ("group" for one without).

        Raises:
            ValueError: if an id is not among the training examples; and as
                `influence`.
        """
        return self.influence(test, groups=groups, verbose=verbose)

    @exclusive_access
    def plan(self, test: Any = None) -> Plan:
        """The work, memory and time that scoring will take.

        Print it: examples, checkpoints, and the memory and time it will take
        here. To estimate the time, one batch is scored.

        Args:
            test: the queries, in the same form as `train`; without them, the
                plan is that of `self_influence`.

        Raises:
            NotImplementedError: without `test`, as `self_influence`.
            ValueError: if `test` does not fit the model.
        """
        self.check_weights()
        if test is None:
            self._check_self_influence()
            plan = forecast(self.engine, self.self_pass())
        else:
            queries = next(self.blocks(test, Call()))
            plan = forecast(self.engine, self.trial_pass(queries), test)
        fitting = self.fitting_pass()
        if fitting is None or plan.seconds is None:
            return plan
        seconds = forecast(self.engine, fitting).seconds or 0.0
        return dataclasses.replace(plan, seconds=plan.seconds + seconds)

    def among(self, ids: Any) -> Self:
        """The method restricted to the training examples with these ids.

        What it was fitted to stays all of the training examples.

        Args:
            ids: ids of training examples, at least one. Those that are not
                there are an error (ValueError) of the first call.

        Raises:
            ValueError: if `ids` is empty, a mask, or no list of ids.
        """
        required = read_ids(ids, "among")
        if not required:
            raise ValueError(
                "`among` should hold ids of training examples, at least one. "
                "Received none."
            )
        method = self.keep_only(required)
        method._required_ids = np.unique(np.asarray(required))
        return method

    def keep_only(self, ids: Any) -> Self:
        """The same as `among`, without an error for ids that are not there."""
        method = copy.copy(self)
        selected = np.unique(np.asarray(ids))
        if self._selected_ids is not None:
            selected = np.intersect1d(self._selected_ids, selected)
        method._selected_ids = selected
        if hasattr(self, "engine"):
            method.engine = self.engine.among(selected)
        return method

    def within(self, **limits: Any) -> Self:
        """The method within other limits of memory, batches and blocks.

        Scores stay the same, up to the order of summation.

        Args:
            **limits: as in `keras_tracin.engine.execution.Execution.within`.
        """
        method = copy.copy(self)
        method.engine = self.engine.within(**limits)
        return method

    def describe(self) -> dict[str, Any]:
        """The method, its options and the weights it scores at, as JSON."""
        method = {"method": type(self).__name__, **self.settings}
        if self.checkpoints is not PRESENT_WEIGHTS:
            return method | {"checkpoints": self._describe_checkpoints()}
        return method | {"weights": weights_digest(self.model)}

    def __repr__(self) -> str:
        shown = {"model": self.model.name, "train": self.num_train}
        if self.checkpoints is not PRESENT_WEIGHTS:
            shown["checkpoints"] = len(self.checkpoints)
        shown |= {
            name: value
            for name, value in self.settings.items()
            if value not in (None, False, [], {})
        }
        options = [f"{name}={in_words(shown[name])}" for name in shown]
        return f"{type(self).__name__}({', '.join(options)})"

    # What a method supplies.

    @property
    def settings(self) -> dict[str, Any]:
        """Options that scores depend on, as JSON, without reading any data."""
        return {}

    @property
    def unit_options(self) -> dict[str, Any]:
        """Options on which the unit of scores depends, by name."""
        return {}

    @property
    def unit(self) -> str:
        """The class and its options that give scores their unit, for errors.

        Scores of equal units can be averaged as they are.
        """
        given = {
            name: value
            for name, value in self.unit_options.items()
            if value not in (None, False)
        }
        options = ", ".join(f"{name}={given[name]!r}" for name in given)
        name = type(self).__name__
        return f"{name}({options})" if options else name

    def query_pass(self, queries: Any) -> Pass:
        """The pass that scores a block of queries.

        Args:
            queries: the queries.
        """
        raise NotImplementedError

    def self_pass(self) -> Pass:
        """The pass that scores training examples for themselves."""
        raise NotImplementedError

    def trial_pass(self, queries: Any) -> Pass:
        """A pass that takes as long as `query_pass`, but needs no fit.

        Args:
            queries: the queries.
        """
        return self.query_pass(queries)

    def fitting_pass(self) -> Pass | None:
        """The pass that `fit` still has to make, for the forecast."""
        return None

    def fit(self, call: Call) -> None:
        """Computes what all scores need, unless that has been done.

        Args:
            call: the call that needs it.
        """

    @property
    def no_self_influence(self) -> str | None:
        """Why there is no self-influence, and what to use; None if there is."""
        return None

    @property
    def bytes_per_query(self) -> int | None:
        """Bytes that are held for each query; None if its factors are held."""
        return None

    def more_numbers(self, batch: Batch, known: Numbers) -> Numbers:
        """Further numbers that scores depend on, of a few training examples.

        Args:
            batch: the examples.
            known: their outputs, losses and gradients as numbers.
        """
        return {}

    # What a method without an engine supplies as well.

    @property
    def model(self) -> keras.Model:
        """The model."""
        return self.engine.model

    @property
    def strategy(self) -> Strategy | None:
        """The strategy that steps are spread over."""
        return self.engine.execution.strategy

    @property
    def num_train(self) -> int | None:
        """Number of training examples; None where the data does not tell."""
        return self.engine.train.size

    def blocks(self, test: Any, call: Call) -> Iterator[Any]:
        """The queries in blocks that are scored together.

        Args:
            test: the queries.
            call: the call that they are for.
        """
        return blocks(self.engine, test, call, self.bytes_per_query)

    def stream(self, queries: Any, sink: Sink, call: Call) -> None:
        """Streams the scores of one block of queries into a sink.

        Args:
            queries: the queries.
            sink: takes the scores.
            call: the call that they are for.
        """
        sweep(self.engine, self.query_pass(queries), sink, call)

    def stream_self(self, sink: Sink, call: Call) -> None:
        """Streams the scores of training examples for themselves.

        Args:
            sink: takes the scores.
            call: the call that they are for.
        """
        sweep(self.engine, self.self_pass(), sink, call)

    def job(self, test: Any) -> dict[str, Any]:
        """All that scores depend on, as JSON, for the parts on disk.

        Args:
            test: the queries, if there are any.
        """
        return {**identity(self.engine), **self.describe()}

    def fingerprint(self, test: Any) -> tuple[Numbers, float]:
        """Numbers that scores are computed from, and their largest difference.

        Args:
            test: the queries, if there are any.
        """
        seen = numbers(self.engine, self.checkpoints, test, self.more_numbers)
        return seen, tolerance(self.model)

    # What methods share.

    def remember_weights(self) -> None:
        """Notes the model's weights, for a method that is fitted at them."""
        self._fitted_weights = weights_digest(self.model)

    def remember_trainable(self) -> None:
        """Notes what is trainable, for a method fitted to these variables."""
        self._fitted_trainable = _trainable_paths(self.model)

    def check_weights(self) -> None:
        """Compares the model's weights with those that were noted.

        Raises:
            ValueError: if they differ, or others are trainable.
        """
        fitted, now = self._fitted_trainable, _trainable_paths(self.model)
        if fitted not in (None, now):
            kind = type(self).__name__
            changed = sorted(set(fitted) ^ set(now))
            raise ValueError(
                f"This `{kind}` was made while other variables of the model "
                f"'{self.model.name}' were trainable than are now, and its "
                f"scores are by those. Received a change of {changed[:5]}. "
                f"Make another `{kind}`, or set `trainable` back."
            )
        if self._fitted_weights not in (None, weights_digest(self.model)):
            kind = type(self).__name__
            raise ValueError(
                f"This `{kind}` was made at other weights than the model "
                f"'{self.model.name}' has now, and its scores would be of "
                f"neither. Make another `{kind}`, or give the model its "
                "weights back."
            )

    def _influence(
        self,
        test: Any,
        groups: GroupsOfIds | None,
        directory: Directory | None,
        verbose: int,
        **options: Any,
    ) -> Attribution:
        """`influence`, with options that the stream knows."""
        if groups is None:
            call = self._start("influence", test, directory, verbose, **options)
            return collecting.influence(
                self.blocks(test, call), self._streaming(call), call.parts
            )
        named = read_groups(groups)
        described = {"groups": describe_groups(named)}
        call = self._start(
            "influence", test, directory, verbose, **described, **options
        )
        return collecting.group_influence(
            self.blocks(test, call), self._streaming(call), named, call.parts
        )

    def _top_k(
        self,
        test: Any,
        k: int,
        directory: Directory | None,
        verbose: int,
        **options: Any,
    ) -> TopK:
        """`top_k`, with options that the stream knows."""
        call = self._start("top_k", test, directory, verbose, k=k, **options)
        return collecting.top_k(
            self.blocks(test, call),
            self._streaming(call),
            k,
            self.num_train,
            call.parts,
        )

    def _start(
        self,
        name: str,
        test: Any,
        directory: Directory | None,
        verbose: int,
        **options: Any,
    ) -> Call:
        """A call, which may keep what is finished of it.

        Args:
            name: the call's name.
            test: the queries, if there are any.
            directory: where finished parts are kept; None for nowhere.
            verbose: 0 for silence.
            **options: what else the scores depend on, as JSON.

        Raises:
            ValueError: if the model has other weights than the method was
                made at, if parts of another call are in the directory, or if
                several processes have the work in common, and no directory.
        """
        self.check_weights()
        if directory is None:
            if not options.get("aggregate"):  # a row is one process's work
                check_alone(self.strategy)
            call = Call(None, verbose, options)
        else:
            job = {**self.job(test), "call": name, **options}
            parts = Parts.open(directory, job, worker_of(self.strategy))
            parts.compare(*self.fingerprint(test))
            call = Call(parts, verbose, options)
        self.fit(call)
        return call

    def _streaming(self, call: Call) -> collecting.Stream:
        def stream(queries: Any, sink: Sink) -> None:
            with self._limit(sink) as limited:
                self.stream(queries, limited, call)

        return stream

    def _streaming_self(self, call: Call) -> Callable[[Sink], None]:
        def stream(sink: Sink) -> None:
            with self._limit(sink) as limited:
                self.stream_self(limited, call)

        return stream

    @contextlib.contextmanager
    def _limit(self, sink: Sink) -> Iterator[Sink]:
        """The sink for the training examples of `among`, all of them."""
        with require(sink, self._required_ids) as limited:
            if self._selected_ids is not None and not hasattr(self, "engine"):
                limited = restrict(limited, self._selected_ids)
            yield limited

    def _check_self_influence(self) -> None:
        if self.no_self_influence is not None:
            raise NoSelfInfluence(self.no_self_influence)

    def _describe_checkpoints(self) -> list:
        return [
            [digest_of(checkpoint), rate]
            for checkpoint, rate in self.checkpoints.items()
            if checkpoint is not None
        ]


def _trainable_paths(model: keras.Model) -> list[str]:
    return sorted(weight.path for weight in model.trainable_weights)
