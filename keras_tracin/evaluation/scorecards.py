"""One table of what scores are worth and what they cost.

Synopsis:

    card = kt.evaluation.scorecard(
        {
            "TracIn": lambda run: kt.TracIn(model, train, run),
            "EK-FAC": lambda run: kt.InfluenceFunctions(model, train, run=run),
            "BM25": kt.evaluation.BM25(train),
        },
        model, train, test, run=run,
    )
    print(card)
    card.to_dataframe()
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_tracin.evaluation.datamodels import lds
from keras_tracin.evaluation.measuring import Intervals, Measuring, Values
from keras_tracin.evaluation.randomization import MakeMethod
from keras_tracin.evaluation.retrievals import retrieval
from keras_tracin.evaluation.subsets import Retrained
from keras_tracin.methods.attributor import Attributor
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.results.frames import pandas
from keras_tracin.runs import TrainingRun

# What a table calls each measure.
MEASURES = {
    "lds": "LDS",
    "tail_patch": "tail patch",
    "flips": "flips",
    "mrr": "MRR",
    "mislabel_auc": "AUC, wrong labels",
    "randomized": "shuffled weights",
    "same_proponents": "same proponents",
    "same_opponents": "same opponents",
    "seconds": "s",
}


@dataclasses.dataclass(frozen=True)
class Scorecard:
    """Measures of several methods, a row for each.

    `print` shows a table, and so does a notebook. The measures, where they
    were asked for:

    - `lds`: the linear datamodeling score. Higher is better; `notes` has the
      ceiling.
    - `tail_patch`: by how much more a step on the strongest proponents lowers
      a query's loss than one on random examples. Higher is better.
    - `flips`: the share of right predictions that become wrong when the
      strongest proponents are left out of training. Higher is better.
    - `mrr`: the mean over queries of 1 / the rank of the first relevant
      training example. Higher is better.
    - `mislabel_auc`: the area under the ROC curve of self-influence as a sign
      of a wrong label. Higher is better.
    - `randomized`: the rank correlation of scores with those by shuffled
      weights. Near 0 is better; at 1 scores say nothing about the model.
    - `same_proponents`, `same_opponents`: the share of the strongest examples
      that two queries have in common. Lower is better, unless queries are
      alike.
    - `seconds`: the time to make the method and score all queries; without
      making it, where it was made already.

    Attributes:
        values: measures by the names of methods, then of measures; NaN where
            a method has none.
        intervals: 95% intervals of some of them, in the same form: over
            queries, of `lds` over subsets too.
        notes: what a reader of the table has to know.
    """

    values: Values
    intervals: Intervals
    notes: tuple[str, ...] = ()

    @property
    def measures(self) -> list[str]:
        """The measures that some method has, in order."""
        return [
            name
            for name in MEASURES
            if any(name in row for row in self.values.values())
        ]

    def __str__(self) -> str:
        return "\n".join([self._table(), *self.notes])

    def _repr_markdown_(self) -> str:
        return "\n\n".join([self._table(), *self.notes])

    def _table(self) -> str:
        heads = [MEASURES[name] for name in self.measures]
        lines = [f"| | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
        for method in self.values:
            cells = [self._cell(method, name) for name in self.measures]
            lines.append(f"| {method} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def _cell(self, method: str, name: str) -> str:
        value = self.values[method].get(name, np.nan)
        if np.isnan(value):
            return ""
        digits = {"seconds": ".1f", "tail_patch": ".2g"}.get(name, ".2f")
        cell = f"{value:{digits}}"
        if name not in self.intervals[method]:
            return cell
        low, high = self.intervals[method][name]
        return f"{cell} ({low:{digits}} to {high:{digits}})"

    def to_dataframe(self):
        """A `pandas.DataFrame`, a row for each method. Needs pandas.

        Columns: the measures, those with an interval followed by theirs, such
        as `lds_low` and `lds_high`.
        """
        pd = pandas()
        rows: dict[str, dict[str, float]] = {}
        for method, values in self.values.items():
            row = rows[method] = {}
            for name in self.measures:
                row[name] = values.get(name, np.nan)
                if any(name in known for known in self.intervals.values()):
                    ends = self.intervals[method].get(name, (np.nan, np.nan))
                    row[f"{name}_low"], row[f"{name}_high"] = ends
        table = pd.DataFrame.from_dict(rows, orient="index")
        return table.rename_axis(index="method")


@exclusive_access
def scorecard(
    methods: Attributor | MakeMethod | Mapping[str, Attributor | MakeMethod],
    model: keras.Model,
    train: Any,
    test: Any,
    *,
    run: TrainingRun | None = None,
    retrained: Retrained | None = None,
    relevant: Any = None,
    is_mislabeled: Any = None,
    fit: Callable[[Any], keras.Model] | None = None,
    left_out: int = 50,
    flip_queries: int = 10,
    k: int = 10,
    learning_rate: float | None = None,
    seed: int = 0,
    verbose: int = 1,
) -> Scorecard:
    """Measures methods on the same queries, and puts them in one table.

    Overlap, time, tail patch and, for methods that are given as functions,
    shuffled weights are always measured; the rest by the truth that is given.

    Args:
        methods: a method, or several by name. One that is given as a function
            of the run, `lambda run: kt.TracIn(model, train, run)`, is made
            here, which counts in its time, and a second time for shuffled
            weights.
        model: the trained model.
        train: training examples, as the methods have them.
        test: the queries.
        run: the run that functions take.
        retrained: result of `retrain_on_subsets`, for `lds`.
        relevant: which training examples are right, as in `retrieval`, for
            `mrr`.
        is_mislabeled: booleans `[n]` or by id, for `mislabel_auc`.
        fit: function that trains a model on given examples, as in
            `brittleness`, for `flips`: `2 + 2 · flip_queries` trainings for
            each method.
        left_out: number of proponents to leave out for `flips`.
        flip_queries: number of queries for `flips`, the first ones.
        k: number of proponents and opponents that are looked at.
        learning_rate: that of the step for `tail_patch`; by default the
            present one of the optimizer.
        seed: seed of what is drawn at random.
        verbose: 0 for silence.

    Returns:
        A `Scorecard`.

    Raises:
        TypeError: if a method is neither a method nor a function.
        ValueError: as each of the measures; with `fit`, if the model is no
            classifier.
    """
    named = _named(methods)
    cards = Measuring(model, train, test, run, k, learning_rate, seed, verbose)
    if fit is not None:
        cards.check_flips(flip_queries)
    # First, so that a method that cannot score is known before long work.
    every_scores = {
        name: cards.score(name, method) for name, method in named.items()
    }
    for name, scores in every_scores.items():
        cards.overlap(name, scores)
        cards.tail_patch(name, scores)
        cards.randomize(name, named[name], scores)
        if retrained is not None:
            result = lds(scores, retrained, seed=seed)
            cards.set(name, "lds", result.mean, result.confidence_interval)
        if relevant is not None:
            ranks = retrieval(scores, relevant).reciprocal_rank
            cards.set_mean(name, "mrr", ranks)
        if is_mislabeled is not None:
            cards.mislabels(name, is_mislabeled)
        if fit is not None:
            cards.flips(name, scores, fit, left_out, flip_queries)
    if retrained is not None:
        cards.note(f"Ceiling of the LDS: {retrained.ceiling:.2f}.")
    return Scorecard(cards.values, cards.intervals, tuple(cards.notes))


def _named(methods: Any) -> dict[str, Attributor | MakeMethod]:
    if not isinstance(methods, Mapping):
        name = (
            getattr(methods, "__name__", "method")
            if callable(methods)
            else type(methods).__name__
        )
        methods = {name: methods}
    for name, method in methods.items():
        usable = callable(method) or hasattr(method, "influence")
        if not usable or isinstance(method, type):
            raise TypeError(
                "`methods` should be methods, or functions of a run that "
                f"return one. Received for {name!r}: {method!r}."
            )
    if not methods:
        raise ValueError(
            "`methods` should hold one method or more. Received none."
        )
    return dict(methods)
