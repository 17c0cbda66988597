"""Measures which scores find wrong labels best.

    python -m benchmarks.labels --datasets=mnist --noises=likely --seeds=0,1,2

For each data set (see `_labels_settings`), kind of wrong labels and seed, a
network is trained on the labels as they are given, and folds of it are; then
all scores are compared with the truth, as means over the seeds:

*AUC*: the probability that a wrong label has a larger score than a right one.
*AP*: average precision.
*Precision*: the share of wrong labels among the flagged, which are as many as
are estimated to be wrong; by scores that have no estimate of their own, as
many as the run's.
*Size*: the number of flagged labels over that of wrong ones.
*Flagged*: where no label is wrong, the share of labels that are flagged.
*Less loss*, *less cleanlab*: the AUC less that of the loss of the last epoch,
or of cleanlab on the same probabilities out of fold, seed by seed.
*Right*, *removed* (with `--retrain`): the accuracy after the flagged labels are
put right, as by a person who looks at them, or removed, and a network is
trained again.

Trainings and scores are stored under `--cache_dir`, figures as JSON under
`--results_dir`: those in the repository are taken as they are, whatever is in
the cache, and an interrupted run continues. `--recompute` measures again.
"""

import functools
import importlib.util
import os
import pathlib
import time
from typing import Any

import numpy as np
from absl import app, flags

import keras_tracin as kt
from benchmarks import _labels_scores as _scores
from benchmarks._labels_results import Results, Row
from benchmarks._labels_settings import CLEAN, DATASETS, NOISES
from benchmarks._labels_source import Source
from benchmarks._labels_table import (
    ALL_RIGHT,
    AS_GIVEN,
    TREATMENTS,
    by_score,
    figures,
    summary,
    table,
)
from benchmarks._quality_settings import Arrays
from benchmarks._quality_training import Trained
from examples import _common
from keras_tracin.labels.folds import Folds
from keras_tracin.storage.arrays import save_arrays

_DATASETS = flags.DEFINE_list("datasets", list(DATASETS), "Data sets.")
_NOISES = flags.DEFINE_list("noises", list(NOISES), "Kinds of wrong labels.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
_FOLDS = flags.DEFINE_integer(
    "folds", 3, "Number of folds; 0 for none, and without cleanlab."
)
_EPOCHS = flags.DEFINE_integer("epochs", 0, "Epochs; 0 for the data set's own.")
_NUM_TRAIN = flags.DEFINE_integer(
    "num_train", 0, "Number of training examples; 0 for the data set's own."
)
_ROWS = flags.DEFINE_multi_string(
    "rows", [""], "Compute only scores with one of these in their names."
)
_RETRAIN = flags.DEFINE_list(
    "retrain",
    [],
    "How to treat flagged labels before training again: right, removed.",
)
_RECOMPUTE = flags.DEFINE_boolean(
    "recompute", False, "Whether to compute scores whose figures are known."
)
_CACHE_DIR = flags.DEFINE_string(
    "cache_dir", "labels", "Directory of trainings and scores."
)
_RESULTS_DIR = flags.DEFINE_string(
    "results_dir",
    str(pathlib.Path(__file__).parent / "labels_results"),
    "Directory of figures.",
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    os.environ.get("KERAS_TRACIN_DATA", "../shared/data"),
    "Folder that holds tfds/ and dbpedia/.",
)

# Whose flagged labels are put right: those with a number of their own.
_RETRAINED = (_scores.RUN, _scores.RUN_AND_FOLDS, _scores.CLEANLAB)


class Bench:
    """A setting: a data set, a kind of wrong labels and a seed.

    Args:
        source: the data set.
        noise: a name of `NOISES`.
    """

    def __init__(self, source: Source, noise: str):
        self._source, self._noise = source, noise
        self.folder = source.folder(noise)
        path = pathlib.Path(_RESULTS_DIR.value, f"{self.folder.name}.json")
        self.results = Results(path, source.setting)

    @functools.cached_property
    def _corrupted(self) -> tuple[Arrays, Arrays]:
        """Training and held-out examples with the labels given."""
        corrupt, parts = NOISES[self._noise], []
        for part in (0, 1):
            x, y = self._source.parts[part]
            logits = functools.partial(self._source.logits, part)
            parts.append((x, corrupt(y, logits, self._source.seed)))
        return parts[0], parts[1]

    @functools.cached_property
    def _evidence(self) -> _scores.Evidence:
        train, held_out = self._corrupted
        trained = self._timed(
            "fit",
            lambda: self._source.fit(train, held_out, self.folder / "run"),
            self.folder / "run" / "done",
        )
        path = self.folder / "dynamics.npz"
        if not path.is_file():
            dynamics = self._timed(
                "dynamics",
                lambda: kt.training_dynamics(
                    trained.model, train, trained.run, verbose=0
                ),
                path,
            )
            dynamics.save(path)
        dynamics = kt.TrainingDynamics.load(path)
        copies = None
        if _FOLDS.value:
            folder = self.folder / "folds"
            folds = Folds(
                _FOLDS.value,
                run=trained.run,
                directory=folder,
                seed=self._source.seed,
            )
            copies = self._timed(
                "folds", lambda: folds.measure(trained.model, train), folder
            )
        return _scores.Evidence(trained, train, dynamics, copies)

    def score(self) -> None:
        """Computes the scores whose figures are not known."""
        for name in _rows():
            is_known = self.row(name) is not None and not _RECOMPUTE.value
            is_wanted = any(part in name for part in _ROWS.value)
            if is_known or not is_wanted:
                continue
            scores, flagged, wrong = self._ranking(name)
            self.results.add_row(
                self._key(name), figures(scores, flagged, wrong)
            )
            print(f"{self.folder.name}: {name}: {self.row(name)}", flush=True)

    def retrain(self, how: str) -> None:
        """Trains on the flagged labels put right, or without them."""
        if self.accuracy(AS_GIVEN) is None:
            self._keep(AS_GIVEN, self._evidence.trained)
        if self.accuracy(ALL_RIGHT) is None:
            self._keep(ALL_RIGHT, self._source.trained)
        (x, given), held_out = self._corrupted
        right = self._source.parts[0][1]
        for name in _RETRAINED:
            row = self.row(name)
            if row is None or how in row:
                continue
            _, flagged, _ = self._ranking(name)
            train = x, np.where(flagged, right, given)
            if how == "removed":
                train = x[~flagged], given[~flagged]
            folder = self.folder / f"{how}-{self._path(name).stem}"
            trained = self._source.fit(train, held_out, folder)
            accuracy = self._accuracy(trained)
            self.results.add_row(self._key(name), {how: accuracy})
            print(f"{self.folder.name}: {name}, {how}: {accuracy:.3f}")

    def row(self, name: str) -> Row | None:
        """The figures of a score by column, if they are known."""
        return self.results.row(self._key(name))

    def accuracy(self, name: str) -> float | None:
        """The accuracy of a network, if it is known."""
        return self.results.figure("accuracy", name)

    def _ranking(self, name: str) -> tuple[np.ndarray, ...]:
        """Scores, which labels are flagged and which wrong, each `[n]`."""
        path = self._path(name)
        if not path.is_file() or _RECOMPUTE.value:
            make = functools.partial(_rows()[name], self._evidence)
            ranking = self._timed(name, make, path)
            wrong = self._corrupted[0][1] != self._source.parts[0][1]
            arrays = {
                "scores": ranking.scores.astype(np.float32),
                "flagged": ranking.flagged,
                "wrong": wrong,
            }
            save_arrays(path, arrays)
        with np.load(path) as arrays:
            return arrays["scores"], arrays["flagged"], arrays["wrong"]

    def _path(self, name: str) -> pathlib.Path:
        slug = "".join(c if c.isalnum() else "-" for c in self._key(name))
        return self.folder / "scores" / f"{slug}.npz"

    def _key(self, name: str) -> str:
        """The name of a score among the results."""
        is_of_run = name in _scores.IN_RUN
        return name if is_of_run else f"{name} ({_FOLDS.value} folds)"

    def _timed(self, name: str, work: Any, path: pathlib.Path) -> Any:
        """The result of a call; its time is kept if the path is new."""
        is_new, start = not path.exists(), time.perf_counter()
        result = work()
        if is_new:
            seconds = time.perf_counter() - start
            self.results.add_figure("seconds", name, seconds)
        return result

    def _accuracy(self, trained: Trained) -> float:
        return _common.accuracy(trained.model, self._source.parts[2])

    def _keep(self, name: str, trained: Trained) -> None:
        accuracy = self._accuracy(trained)
        self.results.add_figure("accuracy", name, accuracy)
        print(f"{self.folder.name}: {name}: {accuracy:.3f}", flush=True)


def _rows() -> dict[str, _scores.Score]:
    """The scores that can be computed, by name."""
    rows = dict(_scores.IN_RUN)
    if _FOLDS.value:
        rows |= _scores.OUT_OF_FOLD
        if importlib.util.find_spec("cleanlab"):
            rows |= _scores.PEERS
    return rows


def main(_) -> None:
    """Measures the selected settings."""
    unknown = {
        *({*_DATASETS.value} - DATASETS.keys()),
        *({*_NOISES.value} - NOISES.keys()),
        *({*_RETRAIN.value} - {*TREATMENTS}),
    }
    if unknown:
        raise app.UsageError(f"Unknown: {', '.join(sorted(unknown))}.")
    if _FOLDS.value and not importlib.util.find_spec("cleanlab"):
        print("cleanlab is left out: `pip install cleanlab==2.9.*`.")
    settings: dict[str, list[Bench]] = {}
    for dataset in _DATASETS.value:
        sources = [
            Source(
                dataset,
                int(seed),
                _CACHE_DIR.value,
                _DATA_DIR.value,
                _EPOCHS.value,
                _NUM_TRAIN.value,
            )
            for seed in _SEEDS.value
        ]
        for noise in _NOISES.value:
            benches = [Bench(source, noise) for source in sources]
            if noise != CLEAN:
                settings[f"{dataset}, {noise}"] = benches
            for bench in benches:
                bench.score()
                for how in _RETRAIN.value:
                    if noise != CLEAN:
                        bench.retrain(how)
            print(f"\n{table(f'{dataset}, {noise}', benches)}\n", flush=True)
    print(by_score(settings), end="\n\n")
    print(summary(settings))


if __name__ == "__main__":
    app.run(main)
