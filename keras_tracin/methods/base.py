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
from typing import Any, Self

import numpy as np

from keras_tracin.data.asked import about_tokens
from keras_tracin.data.ids import read_ids
from keras_tracin.engine import collecting
from keras_tracin.engine.call import Call
from keras_tracin.engine.chunks import Sink, require, restrict
from keras_tracin.engine.descriptions import in_words
from keras_tracin.engine.distribution import check_alone, worker_of
from keras_tracin.engine.forecast import forecast
from keras_tracin.engine.grouping import describe_groups, read_groups
from keras_tracin.engine.parts import Parts
from keras_tracin.engine.planning import Plan
from keras_tracin.engine.visits import PRESENT_WEIGHTS
from keras_tracin.methods.attributor import Directory, GroupsOfIds
from keras_tracin.methods.contrast import about_both, less_contrast
from keras_tracin.methods.hooks import MethodHooks
from keras_tracin.methods.recurring import warn_of_recurring
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.results import Attribution, SelfInfluence, TopK


class NoSelfInfluence(NotImplementedError):
    """A method has no score of a training example for itself."""


class Method(MethodHooks):
    """The calls that all methods have in common.

    What a method overrides for them is described in `MethodHooks`.
    """

    selected_ids: np.ndarray | None = None  # of `among` or `keep_only`
    _required_ids: np.ndarray | None = None  # of `among`

    # The calls.

    @exclusive_access
    def influence(
        self,
        test: Any,
        *,
        groups: GroupsOfIds | None = None,
        contrast: Any = None,
        query_tokens: Any = None,
        directory: Directory | None = None,
        verbose: int = 1,
    ) -> Attribution:
        """The score of every training example for every query.

        Args:
            test: the queries, in the same form as `train`.
            groups: a dict of ids of training examples by the group's name (or
                the ids of a single group): scores are then sums over each
                group, and `train_ids` the groups' names.
            contrast: a query for each of `test`, such as the same prompt with
                another answer: scores are then those of ℓ(test) − ℓ(contrast),
                positive where training on the example favours `test`.
            query_tokens: which of the labels' positions are asked about, an
                answer and not the prompt: booleans or numbers
                `[num_test, tokens]`, or `[tokens]`. Weights are multiplied by
                them, those of `contrast` too.
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
                holds ids that are not among the training examples, if a query
                asks about none of its tokens, if the method was made at other
                weights than the model has, if `directory` holds parts of
                another call, or if `contrast` has not one query for each of
                `test`.
        """
        asked = about_both(test, contrast, query_tokens)
        return self._influence(*asked, groups, directory, verbose)

    @exclusive_access
    def top_k(
        self,
        test: Any,
        k: int = 10,
        *,
        query_tokens: Any = None,
        directory: Directory | None = None,
        verbose: int = 1,
    ) -> TopK:
        """The `k` strongest proponents and opponents of every query.

        The same as `influence(test).top_k(k)` without ever holding all the
        scores: memory does not grow with the number of training examples.
        Warns if three queries or more have half of them in common, beyond
        chance; `top.opponents.overlap` is that share.

        Args:
            test: the queries, in the same form as `train`.
            k: number of training examples on each side.
            query_tokens: as in `influence`.
            directory: as in `influence`.
            verbose: 0 for silence.

        Raises:
            ValueError: if `k` is below 1 or above the number of training
                examples; and as `influence`.
        """
        asked = about_tokens(test, query_tokens)
        return self._top_k(asked, k, directory, verbose)

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
        call = self.start("self_influence", None, directory, verbose)
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
        if self.selected_ids is not None:
            selected = np.intersect1d(self.selected_ids, selected)
        method.selected_ids = selected
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

    def _influence(
        self,
        test: Any,
        contrast: Any,
        groups: GroupsOfIds | None,
        directory: Directory | None,
        verbose: int,
        **options: Any,
    ) -> Attribution:
        """`influence`, with options that the stream knows."""
        if contrast is not None:
            self._check_contrast()

        def score(queries: Any, directory: Directory | None) -> Attribution:
            return self._score(queries, groups, directory, verbose, **options)

        return less_contrast(score, test, contrast, directory)

    def _score(
        self,
        test: Any,
        groups: GroupsOfIds | None,
        directory: Directory | None,
        verbose: int,
        **options: Any,
    ) -> Attribution:
        """The scores of all queries, in memory or mapped."""
        if groups is None:
            call = self.start("influence", test, directory, verbose, **options)
            return collecting.influence(
                self.blocks(test, call), self._streaming(call), call.parts
            )
        named = read_groups(groups)
        described = {"groups": describe_groups(named)}
        call = self.start(
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
        call = self.start("top_k", test, directory, verbose, k=k, **options)
        top = collecting.top_k(
            self.blocks(test, call),
            self._streaming(call),
            k,
            self.num_train,
            call.parts,
        )
        candidates = self.selected_ids
        warn_of_recurring(
            top,
            self.num_train if candidates is None else len(candidates),
            self.against_recurring,
        )
        return top

    def start(
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
            if self.selected_ids is not None and not hasattr(self, "engine"):
                limited = restrict(limited, self.selected_ids)
            yield limited

    def _check_contrast(self) -> None:
        if self.no_contrast is not None:
            raise ValueError(self.no_contrast)

    def _check_self_influence(self) -> None:
        if self.no_self_influence is not None:
            raise NoSelfInfluence(self.no_self_influence)
