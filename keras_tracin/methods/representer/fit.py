"""Representer points fitted to the training examples, and what `Method` needs.

Synopsis:

    fit = Fit.to(problem, l2=1e-3, kind="l2", verbose=1)    # retunes
    fit.weights, fit.points
    scores_of = fit.scores(queries, targets)
    scores_of(slice(0, 100))                # [m, 100]
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any, Self

import keras
import numpy as np

from keras_tracin.data.batches import content_digest
from keras_tracin.engine.call import Call
from keras_tracin.engine.chunks import Sink
from keras_tracin.engine.distribution import Strategy
from keras_tracin.engine.fingerprint import classes_of, spread_rows, tolerance
from keras_tracin.engine.measures import Numbers
from keras_tracin.engine.planning import Plan
from keras_tracin.methods.base import Method
from keras_tracin.methods.representer.decomposition import (
    L2Points,
    LocalExpansion,
)
from keras_tracin.methods.representer.features import Representations
from keras_tracin.methods.representer.problem import Problem
from keras_tracin.methods.representer.retune import Retuned, retune
from keras_tracin.methods.representer.scoring import (
    LARGEST_BLOCK,
    ScoresOf,
    block_size,
    chunk_size,
    pour,
)
from keras_tracin.methods.representer.targets import Targets
from keras_tracin.models.exclusive import exclusive_access


@dataclasses.dataclass(frozen=True)
class Fit:
    """Representer points of the training examples.

    Attributes:
        train: the representations of the training examples.
        weights: the weights of the explained layer, `[f, k]`.
        points: the decomposition of these weights.
        retuned: the result of retuning; None where nothing is retuned.
    """

    train: Representations
    weights: np.ndarray
    points: L2Points | LocalExpansion
    retuned: Retuned | None

    @classmethod
    def to(cls, problem: Problem, l2: float, kind: str, verbose: int) -> Fit:
        """Represents the training examples and retunes the last layer.

        Args:
            problem: the last layer.
            l2: λ.
            kind: "l2", or "lje", which retunes nothing.
            verbose: 0 for silence.
        """
        train = problem.represent(verbose)
        objective, weights = problem.objective(l2), problem.head.weights
        if kind == "lje":
            memory = problem.execution.memory
            points = LocalExpansion(objective, weights, memory)
            return cls(train, weights, points, None)
        retuned = retune(objective, weights)
        weights = retuned.weights
        return cls(train, weights, L2Points(objective, weights), retuned)

    def scores(self, queries: Representations, targets: Targets) -> ScoresOf:
        """The float32 scores for the queries' targets: `rows -> [m, c]`."""

        @functools.cache
        def prepare():
            return self.points.prepare(queries.features, targets.outputs)

        def scores_of(rows: slice) -> np.ndarray:
            scores = self.points.scores(prepare(), rows)
            scores *= targets.signs[:, np.newaxis]
            return scores.astype(np.float32, copy=False)

        return scores_of

    def class_scores(self, queries: Representations) -> ScoresOf:
        """The float32 scores for all outputs: `rows -> [m, c, k]`."""

        @functools.cache
        def prepare():
            return self.points.prepare_all(queries.features)

        def scores_of(rows: slice) -> np.ndarray:
            scores = self.points.class_scores(prepare(), rows)
            return scores.astype(np.float32, copy=False)

        return scores_of

    def numbers(self) -> Numbers:
        """Numbers of a few training examples that scores are made of."""
        rows = spread_rows(len(self.train), classes_of([self.train.y]))
        return {
            "ids": self.train.ids[rows],
            "features": self.train.features[rows],
            "values": self.points.values[rows],
        }


class LastLayerMethod(Method):
    """The hooks of `Method` for those that decompose the last layer.

    Args:
        problem: the last layer of a model.
        l2: λ.
        kind: "l2" or "lje".
        losses: names and configuration of the loss, as JSON.
        verbose: 0 for silence while training examples are represented.
    """

    title = "Representer points"
    largest_chunk: int = 2**22  # scores that are made at a time

    def __init__(
        self,
        problem: Problem,
        l2: float,
        kind: str,
        losses: dict[str, Any],
        verbose: int,
    ):
        self._problem, self._l2, self._kind = problem, l2, kind
        self._losses, self._verbose = losses, verbose
        self._state: dict[str, Any] = {}  # shared with `among` and `within`
        self.remember_weights()

    @property
    def model(self) -> keras.Model:
        """The model."""
        return self._problem.model

    @property
    def strategy(self) -> Strategy | None:
        """The strategy that representing is spread over."""
        return self._problem.execution.strategy

    @property
    def num_train(self) -> int | None:
        """Number of training examples; None where the data does not tell."""
        if self.selected_ids is not None:
            return len(self.selected_ids)
        return self._problem.num_train

    def within(self, **limits: Any) -> Self:
        """The method within other limits of memory, batches and blocks.

        What it was fitted to, and within what limits, stays.

        Args:
            **limits: as in `keras_tracin.engine.execution.Execution.within`.
        """
        method = copy.copy(self)
        method._problem = self._problem.within(**limits)
        return method

    @property
    def settings(self) -> dict[str, Any]:
        """Options that scores depend on, as JSON, without reading any data."""
        return {"l2": self._l2, "kind": self._kind}

    @property
    def unit_options(self) -> dict[str, Any]:
        """Options on which the unit of scores depends, by name."""
        return {**self._losses["objective"], "method": self._kind}

    def job(self, test: Any) -> dict[str, Any]:
        """All that scores depend on, as JSON, for the parts on disk."""
        if "train" not in self._state:
            batches = self._problem.examples.batches(LARGEST_BLOCK)
            self._state["train"] = content_digest(batches)
        layers = self.model._flatten_layers()
        job = {
            **self.describe(),
            **self._losses,
            "layer": layers.index(self._problem.head.layer),
            "train": self._state["train"],
        }
        if test is not None:
            queries = self._problem.open(test, "test")
            job["test"] = content_digest(queries.batches(LARGEST_BLOCK))
        return job

    def fingerprint(self, test: Any) -> tuple[Numbers, float]:
        """Numbers that scores are made of, and their tolerance."""
        # Retuning ends where its gradient is small, on each machine elsewhere.
        return self.fitted().numbers(), max(1e-3, tolerance(self.model))

    def fit(self, call: Call) -> None:
        """Represents the training examples and retunes, unless that is done."""
        self.fitted(call.verbose)

    @exclusive_access
    def fitted(self, verbose: int = 1) -> Fit:
        """The fitted points.

        Args:
            verbose: 0 for silence.

        Raises:
            ValueError: if the model no longer has the weights of construction.
        """
        if "fit" not in self._state:
            self.check_weights()
            verbose = min(verbose, self._verbose)
            self._state["fit"] = Fit.to(
                self._problem, self._l2, self._kind, verbose
            )
        return self._state["fit"]

    def blocks(self, test: Any, call: Call) -> Iterator[Representations]:
        """The queries in blocks that are scored together."""
        memory, weights = self._problem.execution.memory, self.fitted().weights
        size = call.agree("block", block_size(memory, weights))
        return self._problem.blocks(test, size, call.verbose)

    def stream(self, queries: Representations, sink: Sink, call: Call) -> None:
        """Streams the scores of one block of queries into a sink."""
        fit, problem = self.fitted(), self._problem
        if "target" not in call.options:  # for every output
            columns = len(queries) * fit.weights.shape[1]
            self._pour(fit.class_scores(queries), sink, columns, call)
            return
        logits = queries.features @ problem.head.weights
        targets = problem.meaning.targets(
            call.options["target"], queries, logits
        )
        self._pour(fit.scores(queries, targets), sink, len(queries), call)

    def stream_self(self, sink: Sink, call: Call) -> None:
        """Streams the importance of training examples into a sink."""
        importance = self.fitted().points.importance
        self._pour(lambda rows: importance[rows], sink, 1, call)

    @exclusive_access
    def plan(self, test: Any = None) -> Plan:
        """The work and memory that scoring will take.

        Without a time, since nobody knows before how many steps retuning
        takes: 0.3 to 3 epochs as a rule. What follows are products of features.

        Args:
            test: the queries, in the same form as `train`.

        Raises:
            ValueError: if `test` does not fit the model, or the model has
                other weights than it had.
        """
        self.check_weights()
        weights = self._problem.head.weights
        queries, blocks = 0, 1
        if test is not None:
            size = block_size(self._problem.execution.memory, weights)
            examples = self._problem.open(test, "test")
            queries = examples.expected_size or len(examples.first(size))
            blocks = math.ceil(queries / size)
        columns = max(1, math.ceil(queries / blocks))
        plan = self._plan(columns)
        represented = 8 * (plan.num_train or 0) * sum(weights.shape)
        return dataclasses.replace(
            plan,
            num_train=self.num_train,
            num_queries=queries,
            num_blocks=blocks,
            memory=plan.memory + represented,
        )

    def _plan(self, columns: int) -> Plan:
        """The plan of scores `[columns, n]` of all training examples."""
        total = self._problem.num_train
        memory = self._problem.execution.memory
        size = chunk_size(memory, columns, self.largest_chunk)
        size = size if total is None else min(size, total)
        return Plan(
            num_train=total,
            num_queries=columns,
            num_checkpoints=1,
            batch_size=1,
            chunk=size,
            memory=8 * size * columns,
        )

    def _pour(
        self, scores_of: ScoresOf, sink: Sink, columns: int, call: Call
    ) -> None:
        size = call.cut(self._plan(columns)).chunk
        pour(scores_of, sink, self.fitted().train.ids, size)
