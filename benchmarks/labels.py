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
*Less loss*, *less cleanlab*: the AUC less that of the loss of the last epoch,
or of cleanlab on the same probabilities out of fold, seed by seed.
*Right*, *removed* (with `--retrain`): the accuracy after the flagged labels are
put right, as by a person who looks at them, or removed, and a network is
trained again.

Trainings and scores are stored under `--cache_dir`, and an interrupted run
continues.
"""

import functools
import importlib.util
import json
import os
import pathlib
import time
from typing import Any

import numpy as np
import scipy.stats
from absl import app, flags

import keras_tracin as kt
from benchmarks import _labels_scores as _scores
from benchmarks._labels_settings import DATASETS, NOISES
from benchmarks._labels_source import Source
from benchmarks._quality_settings import Arrays
from benchmarks._quality_training import Trained
from examples import _common
from keras_tracin.labels.folds import Folds
from keras_tracin.storage.arrays import save_arrays
from keras_tracin.storage.files import written_whole

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
_ROWS = flags.DEFINE_string(
    "rows", "", "Compute only scores with this in their names."
)
_RETRAIN = flags.DEFINE_list(
    "retrain",
    [],
    "How to treat flagged labels before training again: right, removed.",
)
_CACHE_DIR = flags.DEFINE_string(
    "cache_dir", "labels", "Directory of all results."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    os.environ.get("KERAS_TRACIN_DATA", "../shared/data"),
    "Folder that holds tfds/ and dbpedia/.",
)

# Whose flagged labels are put right: those with a number of their own.
_RETRAINED = (_scores.RUN, _scores.RUN_AND_FOLDS, _scores.CLEANLAB)
_TREATMENTS = ("right", "removed")
AS_GIVEN, ALL_RIGHT = "accuracy as given", "accuracy of right labels"


class Bench:
    """A setting: a data set, a kind of wrong labels and a seed.

    Args:
        source: the data set.
        noise: a name of `NOISES`.
    """

    def __init__(self, source: Source, noise: str):
        self._source, self._noise = source, noise
        self.folder = source.folder(noise)
        self._results = self.folder / "results.json"
        self.results: dict[str, float] = {}
        if self._results.is_file():
            self.results = json.loads(self._results.read_text())

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
        outside = None
        if _FOLDS.value:
            folder = self.folder / "folds"
            folds = Folds(
                _FOLDS.value,
                run=trained.run,
                directory=folder,
                seed=self._source.seed,
            )
            outside = self._timed(
                "folds", lambda: folds.measure(trained.model, train), folder
            )
        return _scores.Evidence(trained, train, dynamics, outside)

    def score(self) -> None:
        """Computes the scores that are not on disk."""
        rows = dict(_scores.IN_RUN)
        if _FOLDS.value:
            rows |= _scores.OUT_OF_FOLD
            if importlib.util.find_spec("cleanlab"):
                rows |= _scores.PEERS
            else:
                print("cleanlab is left out: `pip install cleanlab==2.9.*`.")
        for name, make in rows.items():
            path = self._path(name)
            if _ROWS.value not in name or path.is_file():
                continue
            ranking = self._timed(
                name, functools.partial(make, self._evidence), path
            )
            wrong = self._corrupted[0][1] != self._source.parts[0][1]
            arrays = {
                "scores": ranking.scores.astype(np.float32),
                "flagged": ranking.flagged,
                "wrong": wrong,
            }
            save_arrays(path, arrays)
            row = self.row(name)
            print(f"{self.folder.name}: {name}: {row}", flush=True)

    def retrain(self, how: str) -> None:
        """Trains on the flagged labels put right, or without them."""
        if AS_GIVEN not in self.results:
            self._keep(AS_GIVEN, self._evidence.trained)
            self._keep(ALL_RIGHT, self._source.trained)
        (x, given), held_out = self._corrupted
        right = self._source.parts[0][1]
        for name in _RETRAINED:
            path, key = self._path(name), self._key(name, how)
            if key in self.results or not path.is_file():
                continue
            with np.load(path) as arrays:
                flagged = arrays["flagged"]
            train = x, np.where(flagged, right, given)
            if how == "removed":
                train = x[~flagged], given[~flagged]
            folder = self.folder / f"{how}-{path.stem}"
            self._keep(key, self._source.fit(train, held_out, folder))

    def row(self, name: str) -> dict[str, float] | None:
        """The figures of a score by column, if it is on disk."""
        path = self._path(name)
        if not path.is_file():
            return None
        with np.load(path) as arrays:
            scores, wrong = arrays["scores"], arrays["wrong"]
            flagged = arrays["flagged"]
        detection = kt.evaluation.mislabel_detection(scores, wrong)
        row = {
            "AUC": detection.auc,
            "AP": float(detection.precision[detection.is_mislabeled].mean()),
            "precision": float(wrong[flagged].mean() if flagged.any() else 0),
            "size": float(flagged.sum() / wrong.sum()),
        }
        for how in _TREATMENTS:
            if (key := self._key(name, how)) in self.results:
                row[how] = self.results[key]
        return row

    def _path(self, name: str) -> pathlib.Path:
        folds = "" if name in _scores.IN_RUN else f"-{_FOLDS.value}-folds"
        slug = "".join(c if c.isalnum() else "-" for c in name)
        return self.folder / "scores" / f"{slug}{folds}.npz"

    def _key(self, name: str, how: str) -> str:
        return f"accuracy, {how}: {self._path(name).stem}"

    def _timed(self, name: str, work: Any, path: pathlib.Path) -> Any:
        """The result of a call; its time is kept if the path is new."""
        is_new, start = not path.exists(), time.perf_counter()
        result = work()
        if is_new:
            self._write(f"seconds, {name}", time.perf_counter() - start)
        return result

    def _keep(self, key: str, trained: Trained) -> None:
        accuracy = _common.accuracy(trained.model, self._source.parts[2])
        self._write(key, accuracy)
        print(f"{self.folder.name}: {key}: {accuracy:.3f}", flush=True)

    def _write(self, key: str, value: float) -> None:
        self.results[key] = value
        with written_whole(self._results) as unfinished:
            unfinished.write_text(json.dumps(self.results, indent=1))


def table(title: str, benches: list[Bench]) -> str:
    """The figures of all scores on disk, as means over seeds, as Markdown.

    Args:
        title: what the seeds have in common.
        benches: one for each seed.
    """
    columns = ["AUC", "AP", "precision", "size", *_TREATMENTS]
    lines = []
    against = {"loss": _scores.LOSS, "cleanlab": _scores.CLEANLAB}
    for name in (*_scores.IN_RUN, *_scores.OUT_OF_FOLD, *_scores.PEERS):
        rows = [bench.row(name) for bench in benches]
        cells = [
            mean_and_interval([row[c] for row in rows if row and c in row])
            for c in columns
        ]
        for other in against.values():
            pairs = zip(rows, (b.row(other) for b in benches), strict=True)
            cells.append(
                mean_and_interval(
                    [
                        a["AUC"] - b["AUC"]
                        for a, b in pairs
                        if a and b and name != other
                    ],
                    "+.4f",
                )
            )
        if any(cells):
            lines.append(f"| {name} | {' | '.join(cells)} |")
    heads = " | ".join([*columns, *(f"less {other}" for other in against)])
    head = f"| {title} | {heads} |"
    for key in (AS_GIVEN, ALL_RIGHT):
        known = [b.results[key] for b in benches if key in b.results]
        if known:
            lines.append(f"\n{key}: {mean_and_interval(known)}")
    return "\n".join([head, "|---|" + "---:|" * (head.count("|") - 2), *lines])


def mean_and_interval(values: list[float], form: str = ".4f") -> str:
    """The mean and, of several values, the half of its 95% interval.

    Args:
        values: one for each seed.
        form: format of a number.
    """
    if not values:
        return ""
    mean = f"{np.mean(values):{form}}"
    if len(values) == 1:
        return mean
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * error
    return f"{mean} ± {half:.4f}"


def main(_) -> None:
    """Measures the selected settings."""
    unknown = {
        *({*_DATASETS.value} - DATASETS.keys()),
        *({*_NOISES.value} - NOISES.keys()),
        *({*_RETRAIN.value} - {*_TREATMENTS}),
    }
    if unknown:
        raise app.UsageError(f"Unknown: {', '.join(sorted(unknown))}.")
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
            for bench in benches:
                bench.score()
                for how in _RETRAIN.value:
                    bench.retrain(how)
            print(f"\n{table(f'{dataset}, {noise}', benches)}\n", flush=True)


if __name__ == "__main__":
    app.run(main)
