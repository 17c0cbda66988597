"""Measures which method predicts retraining best.

    python -m benchmarks.quality --settings=mnist_logistic --cache_dir=quality

For each setting (see `_quality_settings`), on 100 queries, with 95% intervals:

*LDS*: the linear datamodeling score, over 50 random halves of the training
examples, each trained on with two or three seeds.
*Tail patch*: the decrease of a query's loss by one step on its ten strongest
proponents, minus that by a step on random examples, as a share of the mean
loss. *Brittleness* (logistic regression): the share of right predictions that
flip
    when
the strongest proponents are left out of training.

The damping of influence functions is chosen by the LDS of 50 other queries.
Outcomes, recorded trainings and scores are stored under `--cache_dir`, and an
interrupted run continues. `--peer=captum` or `dattri` scores the same weights
and data by another library, and compares the scores.
"""

import json
import os
import pathlib
import time
import warnings
from typing import Any

import numpy as np
from absl import app, flags

import keras_tracin as kt
from benchmarks import _quality_methods as _methods
from benchmarks import _quality_outcomes as _outcomes
from benchmarks import _quality_texts as _texts
from benchmarks._quality_settings import FEW_STEPS, QUERIES, SETTINGS, Setting
from benchmarks._quality_training import Trainer
from keras_tracin.storage.files import written_whole

_SETTINGS = flags.DEFINE_list("settings", list(SETTINGS), "What to measure.")
_METHODS = flags.DEFINE_string(
    "methods", "", "Only methods with this in their names."
)
_CACHE_DIR = flags.DEFINE_string(
    "cache_dir", "quality", "Directory of all results."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    os.environ.get("KERAS_TRACIN_DATA", "../shared/data"),
    "Folder that holds tfds/, dbpedia/ and california_housing/.",
)
_SUBSETS = flags.DEFINE_integer(
    "subsets", 50, "Number of random halves.", lower_bound=2
)
_OUTCOMES_DIR = flags.DEFINE_string(
    "outcomes_dir",
    str(pathlib.Path(__file__).with_name("quality_results")),
    "Directory of outcomes of retraining that are kept for others.",
)
_PEER = flags.DEFINE_enum(
    "peer", "none", ["none", "captum", "dattri"], "Library to compare with."
)

_TAIL = 10  # proponents that a step is made of
_BRITTLE_QUERIES = 30


class Bench:
    """One setting, and its files."""

    def __init__(self, name: str):
        self.folder = pathlib.Path(_CACHE_DIR.value, name)
        self.setting: Setting = SETTINGS[name].prepared(
            _DATA_DIR.value, self.folder
        )
        self._train, self._everyone = self.setting.load(_DATA_DIR.value)
        self.problem = self._problem(slice(None, QUERIES))
        self._tuning = self._problem(slice(QUERIES, None))
        self._results = self.folder / "results.json"
        self.rows: dict[str, dict[str, Any]] = {}
        if self._results.is_file():
            self.rows = json.loads(self._results.read_text())
        self._trainer = Trainer(self.setting)

    def _problem(self, rows: slice) -> _methods.Problem:
        queries = tuple(part[rows] for part in self._everyone)
        return _methods.Problem(self.setting, self._train, queries, self.folder)

    def retrain(self) -> None:
        """Trains on the subsets, unless results are on disk."""
        config = self.setting.describe()
        described = _outcomes.describe(config, self._train, self._everyone)
        path = pathlib.Path(_OUTCOMES_DIR.value, f"{self.folder.name}.npz")
        outcomes = _outcomes.load(
            path, described, len(self._train[0]), _SUBSETS.value
        )
        if outcomes is None:
            outcomes = kt.evaluation.retrain_on_subsets(
                self._trainer,
                self._train,
                self._everyone,
                self.folder / "retrained",
                num_subsets=_SUBSETS.value,
                # None is the seed of a training that scores are made from.
                seeds=range(1000, 1000 + self.setting.seeds),
                config=config,
                verbose=0,
            )
            _outcomes.save(path, outcomes, described)
        self._outcomes = outcomes
        reported = self._chosen(slice(None, QUERIES))
        print(
            f"{outcomes.masks.shape[0]} subsets, {self.setting.seeds} seeds "
            f"each; ceiling of the LDS {reported.ceiling:.3f}",
            flush=True,
        )

    def _chosen(self, rows: slice) -> kt.evaluation.Retrained:
        """The outcomes of some queries, numbered from zero."""
        each = self._outcomes.each[:, :, rows]
        return kt.evaluation.Retrained(
            self._outcomes.masks,
            each,
            self._outcomes.train_ids,
            np.arange(each.shape[2]),
        )

    def damping(self, kind: str, checkpoints: str) -> float:
        """The λ whose scores of the tuning queries predict best.

        Args:
            kind: the curvature.
            checkpoints: a name of `CHECKPOINTS`.
        """
        solver = (
            kt.EKFAC(self.setting.draws)
            if kind == "ekfac"
            else self.setting.solvers[0]
        )
        choose, group = _methods.CHECKPOINTS[checkpoints], kind
        if checkpoints != "last":
            solver = solver if kind == "ekfac" else FEW_STEPS
            group = f"{checkpoints}-{kind}"
        dampings = self.setting.dampings
        if kind == "ekfac":  # best where other solvers no longer converge
            dampings = (dampings[0] / 100, dampings[0] / 10, *dampings)
        results = {}
        for damping in dampings:
            name = f"tuning-{group}-{damping:.7g}"
            if name not in self.rows:
                method = _methods.influence(damping, solver, kind, choose)
                scores = method(self._tuning, 0)
                value = kt.evaluation.lds(
                    scores, self._chosen(slice(QUERIES, None)), resamples=1
                ).mean
                self._keep(name, {"lds": value})
            results[damping] = self.rows[name]["lds"]
        best = max(results, key=lambda damping: results[damping])
        print(f"λ of {group}: {best}, LDS {results}", flush=True)
        return best

    def scores(self, name: str, method: _methods.Method) -> kt.Attribution:
        """The scores of a method, from disk if they are there."""
        path = self.folder / "scores" / f"{_slug(name)}.npz"
        if not path.is_file():
            start = time.perf_counter()
            results = method(self.problem, 0)
            seconds = time.perf_counter() - start
            path.parent.mkdir(parents=True, exist_ok=True)
            results.save(path)
            self._keep(name, {"seconds": seconds})
        return kt.Attribution.load(path)

    def measure(self, name: str, method: _methods.Method) -> None:
        """Measures a method, except for results on disk."""
        scores = self.scores(name, method)
        row = dict(self.rows.get(name, {}))
        if "lds" not in row:
            reported = self._chosen(slice(None, QUERIES))
            results = kt.evaluation.lds(scores, reported)
            row["lds"], row["lds_interval"] = (
                results.mean,
                results.confidence_interval,
            )
        if "tail" not in row:
            row |= self._tail_patch(scores)
        if self.setting.brittle and "brittle" not in row:
            row["brittle"] = self._brittle(scores)
        self._keep(name, row)
        print(f"{name}: {self.cells(name)}", flush=True)

    def _tail_patch(self, scores: kt.Attribution) -> dict[str, Any]:
        model = self.problem.trained().model
        test = self.problem.test
        results = kt.evaluation.tail_patch(
            scores, model, self._train, test, k=_TAIL, learning_rate=0.01
        )
        mean = float(model.evaluate(*test, verbose=0))
        each = (results.gain - results.random_gain) / mean
        error = 1.96 * each.std() / np.sqrt(len(each))
        return {"tail": float(each.mean()), "tail_error": float(error)}

    def _brittle(self, scores: kt.Attribution) -> list[float]:
        rows = slice(None, _BRITTLE_QUERIES)
        few = kt.Attribution(
            scores.scores[rows], scores.query_ids[rows], scores.train_ids
        )
        results = kt.evaluation.brittleness(
            few,
            self._train,
            tuple(part[rows] for part in self.problem.test),
            self._trainer,
            counts=(self.setting.brittle,),
        )
        right = int((results.margins > 0).sum())
        return [float(results.share[0]), float(results.random_share[0]), right]

    def cells(self, name: str) -> str:
        """A row of the table for a method."""
        row = self.rows[name]
        low, high = row["lds_interval"]
        cells = [
            f"{row['lds']:.3f} ({low:.2f} to {high:.2f})",
            f"{row['tail']:.3f} ± {row['tail_error']:.3f}",
        ]
        if self.setting.brittle:
            cells.append(f"{row['brittle'][0]:.2f}")
        return " | ".join([*cells, f"{row['seconds']:.1f}"])

    def table(self) -> str:
        """The results of all methods on disk, as Markdown."""
        names = ["LDS", "tail patch"]
        if self.setting.brittle:
            names.append("flips")
        names.append("s")
        lines = [
            f"| {self.folder.name} | {' | '.join(names)} |",
            "|---|" + "---:|" * len(names),
        ]
        for name, row in self.rows.items():
            if "lds_interval" in row:
                lines.append(f"| {name} | {self.cells(name)} |")
        return "\n".join(lines)

    def _keep(self, name: str, row: dict[str, Any]) -> None:
        if self._results.is_file():  # another process may have added to it
            self.rows |= json.loads(self._results.read_text())
        self.rows[name] = row
        with written_whole(self._results) as unfinished:
            unfinished.write_text(json.dumps(self.rows, indent=1))


def overview(benches: list[Bench]) -> str:
    """The LDS of all methods in all settings, as Markdown."""
    heads = " | ".join(bench.folder.name for bench in benches)
    lines = [f"| | {heads} |", "|---|" + "---:|" * len(benches)]
    names = dict.fromkeys(
        name
        for bench in benches
        for name, row in bench.rows.items()
        if "lds_interval" in row
    )
    for name in names:
        cells = [
            bench.cells(name).split(" | ")[0] if name in bench.rows else ""
            for bench in benches
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def _compare(bench: Bench) -> None:
    """Compares our scores with those of another library."""
    from benchmarks import _quality_peers  # Needs PyTorch.

    convex = len(bench.problem.trained().model.layers) == 1
    known = _quality_peers.pairs(_PEER.value, convex)
    for name, (ours, theirs) in known.items():
        bench.measure(name, theirs)
        mine = bench.scores(f"{name}: ours", ours)
        other = bench.scores(name, theirs)
        alike = [
            np.corrcoef(one, two)[0, 1]
            for one, two in zip(mine.scores, other.scores, strict=True)
        ]
        seconds = bench.rows[f"{name}: ours"]["seconds"]
        print(
            f"{name}: Pearson with ours {np.median(alike):.5f} (least "
            f"{np.min(alike):.5f}); ours takes {seconds:.1f} s",
            flush=True,
        )


def _measure_ours(bench: Bench) -> None:
    """Measures all methods, or the selected ones."""
    known = (
        _texts.methods(bench.damping)
        if bench.setting.sequences
        else _methods.methods(bench.setting, bench.damping)
    )
    for name, method in known.items():
        if _METHODS.value in name:
            bench.measure(name, method)


def main(_) -> None:
    """Measures the selected settings."""
    warnings.simplefilter("once")
    benches = []
    for name in _SETTINGS.value:
        bench = Bench(name)
        bench.retrain()
        if _PEER.value != "none":
            _compare(bench)
        else:
            _measure_ours(bench)
        print(bench.table(), flush=True)
        benches.append(bench)
    print(overview(benches))


if __name__ == "__main__":
    app.run(main)
