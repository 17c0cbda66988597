"""Measures what dropping and keeping training examples by scores is worth.

    python -m benchmarks.selection --parts=harm --settings=dbpedia --seeds=0,1,2

Four questions, each with as many seeds as are given, which set labels,
classes, networks and random draws; figures are means with 95% intervals.

*harm*: a fifth of the labels is wrong. Accuracy on test examples after the
shares with the highest scores are dropped, and the part of the accuracy that
wrong labels cost which comes back: 100% is training on all right labels.
*likely_harm*: the same, where a fifth of the labels is what a network trained
on right labels takes the example for, next to its own.
*keep*: 10% are kept for three classes, by the influence on 100 held-out
examples of them. Accuracy on test examples of these classes, and on all.
*duplicates*: near-duplicates of 1% of the examples are planted, and the hardest
30% selected. Of the pairs that have a member among them, the share whose other
member was left out; and the accuracy after training on the selected.

Trainings and outcomes are stored under `--cache_dir`: an interrupted run goes
on where it stopped.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import app, flags

import keras_tracin as kt
from benchmarks import _selection_settings as _settings
from benchmarks._labels_table import mean_and_interval
from benchmarks._quality_settings import Arrays
from benchmarks._quality_training import Trained, Trainer, fit_once
from keras_tracin.evaluation import RetrainingCurves, flip_labels

_PARTS = flags.DEFINE_list(
    "parts",
    ["harm", "likely_harm", "keep", "duplicates"],
    "What to measure.",
)
_SETTINGS = flags.DEFINE_list(
    "settings", list(_settings.SETTINGS), "Data sets."
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
_CACHE_DIR = flags.DEFINE_string(
    "cache_dir", "selection", "Directory of trainings and outcomes."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    os.environ.get("KERAS_TRACIN_DATA", "../shared/data"),
    "Folder that holds tfds/ and dbpedia/.",
)

_DROPPED = flags.DEFINE_list(
    "dropped", ["0.2"], "Shares to drop, 0.2 among them."
)

_CHECKPOINTS = 5  # of gradients
_KEPT = 0.1
_SELECTED = 0.3  # where near-duplicates are left out
_ORACLE = "which labels are wrong"
_EMBEDDINGS = "embeddings, round robin"
_COSINES = (0.99, 0.97, 0.95, 0.9)

Row = dict[str, float]
Table = dict[str, Row]


class Bench:
    """A data set and a seed.

    Args:
        name: a name of the settings.
        seed: the seed.
    """

    def __init__(self, name: str, seed: int):
        self.name, self.seed = name, seed
        self.setting = _settings.SETTINGS[name]
        self.parts = _settings.load(name, _DATA_DIR.value)
        self._folder = pathlib.Path(_CACHE_DIR.value, name)

    @functools.cached_property
    def trainer(self) -> Trainer:
        return Trainer(self.setting)

    def harm(self) -> Table:
        """Accuracy after dropping, by score and share."""
        return self._dropped("harm", self._with_wrong_labels)

    def likely_harm(self) -> Table:
        """The same, with wrong labels that are likely."""
        model = self._trained("right", self.parts.train, self.parts.held_out)
        return self._dropped(
            "likely_harm",
            lambda data: self._with_wrong_labels(
                data, model.model.predict(data[0], verbose=0)
            ),
        )

    def _with_wrong_labels(
        self, data: Arrays, scores: np.ndarray | None = None
    ) -> Arrays:
        x, right = data
        share = _settings.WRONG
        return x, flip_labels(right, share, seed=self.seed, scores=scores)

    def _dropped(self, part: str, spoil: Callable[[Arrays], Arrays]) -> Table:
        x, right = self.parts.train
        _, given = spoil((x, right))
        held_out = spoil(self.parts.held_out)
        trained = self._trained(part, (x, given), held_out)
        scores = self._harmful(part, trained, (x, given), held_out)
        shares = [float(share) for share in _DROPPED.value]
        scores[_ORACLE] = (given != right).astype(float)
        options = {"seeds": (self.seed,), "config": self.setting.describe()}
        directory = self._folder / "retrained"
        curves = kt.evaluation.removal_curve(
            self.trainer,
            (x, given),
            self.parts.test,
            scores,
            directory,
            shares=shares,
            **options,
        )
        clean = kt.evaluation.removal_curve(
            self.trainer,
            (x, right),
            self.parts.test,
            {},
            directory,
            shares=(_settings.WRONG,),
            **options,
        )
        noisy, best = float(curves.everything[0]), float(clean.everything[0])
        rows = {
            "labels as given": {"dropped 0%": noisy},
            "right labels": {"dropped 0%": best},
        }
        for name in curves.values:
            values = curves.mean(name)
            rows[name] = {
                f"dropped {share:.0%}": float(value)
                for share, value in zip(shares, values, strict=True)
            }
            at = shares.index(_settings.WRONG)
            rows[name]["recovered"] = (values[at] - noisy) / (best - noisy)
            rows[name]["less loss"] = float(
                curves.difference(name, "loss, last epoch")[0][at]
            )
        return rows

    def keep(self) -> Table:
        """Accuracy after keeping a tenth for some classes."""
        train, held_out, test = (
            self.parts.train,
            self.parts.held_out,
            self.parts.test,
        )
        rng = np.random.default_rng(self.seed)
        classes = int(train[1].max()) + 1
        group = rng.permutation(classes)[: _settings.GROUP]
        queries = _of_classes(held_out, group, _settings.QUERIES)
        trained = self._trained("keep", train, held_out)
        influence, cosines = (
            self._kept(
                f"influence-{normalize}.npz",
                kt.Attribution,
                lambda normalize=normalize: self._tracin(
                    trained, train, normalize
                ).influence(queries, verbose=0),
            )
            for normalize in (None, "both")
        )
        similarity = kt.evaluation.EmbeddingSimilarity(
            trained.model, train
        ).influence(queries, verbose=0)
        dynamics = kt.training_dynamics(
            trained.model, train, trained.run, verbose=0
        )
        by_task = {"strategy": "max", "tasks": queries[1]}
        turns = {"strategy": "round_robin"}
        turns_of_classes = {**turns, "tasks": queries[1]}
        select = functools.partial(kt.select_examples, budget=_KEPT)
        is_of_group = np.isin(train[1], group)
        kept: dict[str, Any] = {
            "influence, mean": select(influence, strategy="mean"),
            "influence, max over classes": select(influence, **by_task),
            "influence, round robin": select(influence, **turns),
            "influence, turns of classes": select(
                influence, **turns_of_classes
            ),
            "influence, mean, classes in proportion": select(
                influence,
                strategy="mean",
                balance="proportional",
                labels=train[1],
            ),
            "unit gradients, mean": select(cosines, strategy="mean"),
            "unit gradients, max over classes": select(cosines, **by_task),
            "unit gradients, round robin": select(cosines, **turns),
            "unit gradients, turns of classes": select(
                cosines, **turns_of_classes
            ),
            "embeddings, mean": select(similarity, strategy="mean"),
            "embeddings, max over classes": select(similarity, **by_task),
            "embeddings, round robin": select(similarity, **turns),
            "embeddings, turns of classes": select(
                similarity, **turns_of_classes
            ),
            "hard": select(dynamics, strategy="hard"),
            "easy": select(dynamics, strategy="easy"),
            "forgotten": select(dynamics, strategy="forgetting"),
            "loss, last epoch": dynamics.loss[-1],
            "random of the three classes": is_of_group
            + rng.uniform(size=len(is_of_group)),
        }
        rows: Table = {name: {} for name in (*kept, "random")}
        for column, data in {
            "these classes": _of_classes(test, group),
            "all classes": test,
        }.items():
            curves = self._selection(kept, train, data, draws=3)
            for name in curves.values:
                rows[name][column] = float(curves.mean(name)[0])
                if column == "these classes":
                    less, _ = curves.difference(name)
                    rows[name]["less random"] = float(less[0])
                    less, _ = curves.difference(name, _EMBEDDINGS)
                    rows[name]["less embeddings"] = float(less[0])
        return rows

    def duplicates(self) -> Table:
        """Planted pairs of which one is left out, and accuracy."""
        x, y = self.parts.train
        count = len(y) // 100
        rng = np.random.default_rng(self.seed)
        originals = rng.choice(len(y), count, replace=False)
        copies = _settings.edited(self.name, x[originals], rng)
        train = np.concatenate([x, copies]), np.concatenate([y, y[originals]])
        trained = self._trained("duplicates", train, self.parts.held_out)
        dynamics = kt.training_dynamics(
            trained.model, train, trained.run, verbose=0
        )
        tracin = self._tracin(trained, train)
        folder = self._folder / f"index-{self.seed}"
        index = kt.InfluenceIndex.build(
            tracin, folder, projection=kt.TensorSketch(512), search="exact"
        )
        ids = np.arange(len(train[1]))
        sketches = index.rows(ids)
        similarity = kt.evaluation.EmbeddingSimilarity(trained.model, train)
        cosines = similarity.influence(train, verbose=0).scores
        # Rows whose inner products are these cosines.
        values, vectors = np.linalg.eigh(cosines.astype(np.float64))
        embeddings = vectors[:, -64:] * np.sqrt(np.maximum(values[-64:], 0))
        kept: dict[str, kt.Selection] = {}
        select = functools.partial(
            kt.select_examples, dynamics, _SELECTED, strategy="hard"
        )
        kept["nothing compared"] = select()
        compared = {"sketches": sketches, "embeddings": embeddings}
        for what, rows in compared.items():
            for cosine in _COSINES:
                kept[f"{what}, above {cosine}"] = select(
                    redundancy=rows, max_cosine=cosine
                )
        table: Table = {}
        for name, selection in kept.items():
            chosen = np.isin(ids, selection.ids)
            first, second = chosen[originals], chosen[len(y) :]
            either = first | second
            share = len(selection) / len(ids)
            curves = self._selection(
                {"own": selection}, train, self.parts.test, 1, share
            )
            table[name] = {
                "pairs": float(either.sum()),
                "one left out": 1 - (first & second).sum() / either.sum(),
                "left out": float(len(selection.left_out_ids)),
                "selected": float(len(selection)),
                "accuracy": float(curves.mean("own")[0]),
                "less random": float(curves.difference("own")[0][0]),
            }
        return table

    def _selection(
        self,
        kept: Mapping[str, Any],
        train: Arrays,
        test: Arrays,
        draws: int,
        share: float = _KEPT,
    ) -> RetrainingCurves:
        return kt.evaluation.selection_curve(
            self.trainer,
            train,
            test,
            kept,
            self._folder / "retrained",
            shares=(share,),
            seeds=(self.seed,),
            draws=draws,
            config=self.setting.describe(),
            verbose=0,
        )

    def _harmful(
        self, part: str, trained: Trained, train: Arrays, held_out: Arrays
    ) -> dict[str, Any]:
        """Scores of how harmful examples are."""
        model, run = trained.model, trained.run
        dynamics = kt.training_dynamics(model, train, run, verbose=0)
        folds = self._folder / f"{part}-folds-{self.seed}"
        tracin = self._tracin(trained, train)
        own = self._kept(
            f"{part}-self.npz",
            kt.SelfInfluence,
            lambda: tracin.self_influence(verbose=0),
        )
        influence = self._kept(
            f"{part}-held_out.npz",
            kt.Attribution,
            lambda: tracin.influence(
                tuple(part[:500] for part in held_out), verbose=0
            ),
        )
        return {
            "loss, last epoch": dynamics.loss[-1],
            "mean loss": dynamics.mean_loss,
            "EL2N, first 3 epochs": dynamics.first(3).el2n,
            "label issues": kt.LabelIssues.from_dynamics(dynamics),
            "label issues, 3 folds": kt.find_label_issues(
                model, train, run, folds=3, directory=folds, verbose=0
            ),
            "self-influence": own,
            "influence on held-out examples": -influence.scores.mean(axis=0),
        }

    def _tracin(
        self, trained: Trained, train: Arrays, normalize: str | None = None
    ) -> kt.TracIn:
        epochs = np.linspace(0, len(trained.run) - 1, _CHECKPOINTS)
        run = trained.run.select(np.unique(epochs.round().astype(int)))
        return kt.TracIn(trained.model, train, run, normalize=normalize)

    def _trained(self, part: str, train: Arrays, held_out: Arrays) -> Trained:
        return fit_once(
            self.setting.compiled(self.seed),
            train,
            self._folder / f"{part}-{self.seed}",
            self.setting.epochs,
            self.setting.batch_size,
            held_out,
        )

    def _kept(self, name: str, kind: Any, make: Any) -> Any:
        """A result, which is kept."""
        path = self._folder / f"{self.seed}-{name}"
        if not path.is_file():
            make().save(path)
        return kind.load(path)


def _of_classes(
    data: Arrays, classes: np.ndarray, count: int | None = None
) -> Arrays:
    """The first examples of some classes."""
    rows = np.flatnonzero(np.isin(data[1], classes))[:count]
    return data[0][rows], data[1][rows]


def _print(title: str, tables: list[Table]) -> None:
    """Means and intervals over the seeds, as Markdown."""
    columns = list(dict.fromkeys(c for row in tables[0].values() for c in row))
    print(f"\n| {title} | {' | '.join(columns)} |")
    print(f"|---|{'---:|' * len(columns)}")
    for name in tables[0]:
        cells = [
            mean_and_interval([t[name][c] for t in tables if c in t[name]])
            for c in columns
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main(_) -> None:
    """Measures the selected parts."""
    for name in _SETTINGS.value:
        for part in _PARTS.value:
            tables = []
            for seed in _SEEDS.value:
                tables.append(getattr(Bench(name, int(seed)), part)())
                _print(f"{name}, {part}, seed {seed}", tables[-1:])
            _print(f"{name}, {part}", tables)


if __name__ == "__main__":
    app.run(main)
