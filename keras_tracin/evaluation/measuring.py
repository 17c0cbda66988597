"""Takes the measures of a scorecard.

Synopsis:

    measuring = Measuring(model, train, test, run, 10, None, seed=0, verbose=1)
    scores = measuring.score("TracIn", lambda run: kt.TracIn(model, train, run))
    measuring.tail_patch("TracIn", scores)
    measuring.values["TracIn"]["tail_patch"]
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_tracin.data.with_ids import with_ids
from keras_tracin.evaluation.brittle import brittleness
from keras_tracin.evaluation.mislabels import mislabel_detection
from keras_tracin.evaluation.randomization import (
    MakeMethod,
    model_randomization,
)
from keras_tracin.evaluation.retraining import query_values, read_whole
from keras_tracin.evaluation.tail_patches import tail_patch
from keras_tracin.methods.attributor import Attributor
from keras_tracin.results import Attribution
from keras_tracin.runs import TrainingRun

Interval = tuple[float, float]
Values = dict[str, dict[str, float]]
Intervals = dict[str, dict[str, Interval]]


@dataclasses.dataclass
class Measuring:
    """Takes measures of methods and keeps them; fields as in `scorecard`.

    Attributes:
        values: measures, by the names of methods and of measures.
        intervals: 95% intervals of some of them.
        notes: what a reader has to know, each once.
    """

    model: keras.Model
    train: Any
    test: Any
    run: TrainingRun | None
    k: int
    learning_rate: float | None
    seed: int
    verbose: int
    values: Values = dataclasses.field(default_factory=dict)
    intervals: Intervals = dataclasses.field(default_factory=dict)
    notes: dict[str, None] = dataclasses.field(default_factory=dict)
    _methods: dict[str, Attributor] = dataclasses.field(default_factory=dict)

    def note(self, text: str) -> None:
        """Adds a note, unless it is there."""
        self.notes[text] = None

    def set(
        self,
        name: str,
        measure: str,
        value: float,
        interval: Interval | None = None,
    ) -> None:
        """Keeps a measure of a method."""
        self.values[name][measure] = float(value)
        if interval is not None:
            low, high = interval
            self.intervals[name][measure] = float(low), float(high)

    def set_mean(self, name: str, measure: str, each: np.ndarray) -> None:
        """A mean over queries, with an interval of ±1.96 standard errors."""
        each = each[~np.isnan(each)]
        if len(each) < 2:
            self.set(name, measure, each.mean() if len(each) else np.nan)
            return
        mean, error = each.mean(), each.std(ddof=1) / np.sqrt(len(each))
        interval = mean - 1.96 * error, mean + 1.96 * error
        self.set(name, measure, mean, interval)

    def score(self, name: str, method: Attributor | MakeMethod) -> Attribution:
        """Scores of all queries, and the time that they take."""
        self.values[name], self.intervals[name] = {}, {}
        start = time.perf_counter()
        made = method(self.run) if callable(method) else method
        scores = made.influence(self.test, verbose=self.verbose)
        self.set(name, "seconds", time.perf_counter() - start)
        self._methods[name] = made
        return scores

    def overlap(self, name: str, scores: Attribution) -> None:
        """What the strongest examples of two queries have in common."""
        top = scores.top_k(self.k)
        self.set(name, "same_proponents", top.proponents.overlap)
        self.set(name, "same_opponents", top.opponents.overlap)

    def tail_patch(self, name: str, scores: Attribution) -> None:
        """As `evaluation.tail_patch`."""
        patch = tail_patch(
            scores,
            self.model,
            self.train,
            self.test,
            k=self.k,
            learning_rate=self.learning_rate,
            seed=self.seed,
        )
        self.set_mean(name, "tail_patch", patch.gain - patch.random_gain)

    def randomize(
        self, name: str, method: Attributor | MakeMethod, scores: Attribution
    ) -> None:
        """As `model_randomization`, for what can be made anew."""
        if not callable(method):
            self.note(
                f"{name} was made already: its time is that of scoring, and "
                "it was not tried with shuffled weights."
            )
            return
        randomized = model_randomization(
            method,
            self.model,
            self.test,
            self.run,
            scores=scores,
            seed=self.seed,
            verbose=self.verbose,
        )
        self.set_mean(name, "randomized", randomized.correlations)

    def mislabels(self, name: str, is_mislabeled: Any) -> None:
        """As `mislabel_detection`, by self-influence."""
        method = self._methods[name]
        try:
            scores = method.self_influence(verbose=self.verbose)
        except NotImplementedError as error:
            self.note(f"{name} has no self-influence: {error}")
            return
        detection = mislabel_detection(scores, is_mislabeled)
        self.set(name, "mislabel_auc", detection.auc)

    def check_flips(self, count: int) -> None:
        """Raises ValueError if the model has no margins on the queries."""
        queries = read_whole(self.test, "test").rows(slice(count))
        query_values(self.model, queries, "margin", None)

    def flips(
        self,
        name: str,
        scores: Attribution,
        fit: Callable[[Any], keras.Model],
        left_out: int,
        count: int,
    ) -> None:
        """As `brittleness`, for the first queries."""
        few = slice(count)
        queries = read_whole(self.test, "test")
        result = brittleness(
            Attribution(
                scores.scores[few], scores.query_ids[few], scores.train_ids
            ),
            self.train,
            with_ids(queries.rows(few), queries.ids[few]).batch(count),
            fit,
            counts=(left_out,),
            seed=self.seed,
        )
        self.set(name, "flips", result.share[0])
        self.note(
            f"Flips: {left_out} proponents left out, "
            f"{(result.margins > 0).sum()} right predictions; with as many "
            f"random examples left out {result.random_share[0]:.2f}."
        )
