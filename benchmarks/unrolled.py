"""Compares unrolled influence with real effects of leaving examples out.

    python -m benchmarks.unrolled --data_dir=$KERAS_TRACIN_DATA

A network 784-128-64-10 (109,386 parameters) on 5,000 digits (random examples
without `--data_dir`), batches of 50, and the first queries of the test set.

`lds`: random subsets of the training set are left out (weight 0, with the same
batches, divisors and order), and training is repeated without each.
Spearman's correlation over the subsets of the queries' real losses with the
sum of the scores, the mean over queries, with a 95% interval from bootstrapping
them; `UnrolledInfluence` beside `TracIn` at the checkpoints of all epochs.
`expected` is what `UnrolledInfluence.smoothness` predicts for the correlation,
by replays without other subsets; the last line tells how well it ranks the
rows. `correct` is the share of the training set that the network classifies
right at the end. `costs`: times of the replay, of the backward pass for one
query and for many, and of `model.fit` of the same training, in turns.
"""

import pathlib
import statistics
import tempfile
import time

import keras
import numpy as np
import scipy.stats
from absl import app, flags

import keras_tracin as kt
from benchmarks import _models

_BATCH = 50
# An optimizer and an activation.
_KINDS = {
    "tanh": (lambda: keras.optimizers.SGD(0.1), "tanh"),
    "tanh-momentum": (lambda: keras.optimizers.SGD(0.01, 0.9), "tanh"),
    "tanh-adam": (lambda: keras.optimizers.Adam(1e-3, epsilon=1e-4), "tanh"),
    "relu-0.02": (lambda: keras.optimizers.SGD(0.02), "relu"),
    "relu-0.05": (lambda: keras.optimizers.SGD(0.05), "relu"),
    "relu-0.1": (lambda: keras.optimizers.SGD(0.1), "relu"),
}

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Holds `tfds/mnist`.")
_SECTIONS = flags.DEFINE_list("sections", ["lds", "costs"], "What to measure.")
_TRAININGS = flags.DEFINE_list("trainings", list(_KINDS), "Which trainings.")
_NUM_TRAIN = flags.DEFINE_integer("num_train", 5_000, "Training examples.")
_EPOCHS = flags.DEFINE_integer("epochs", 10, "Of training.")
_SUBSETS = flags.DEFINE_integer("subsets", 30, "For each share removed.")
_SHARES = flags.DEFINE_list("shares", ["0.01", "0.1", "0.5"], "Removed.")
_QUERIES = flags.DEFINE_integer("queries", 30, "From the test set.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Turns of the costs.")


def _data() -> tuple[_models.Arrays, _models.Arrays]:
    workload = _models.Workload(
        _models.mlp, (784,), _QUERIES.value, 0, reads_digits=True
    )
    directory = _DATA_DIR.value and _models.mnist_in(_DATA_DIR.value)
    return _models.load_examples(workload, _NUM_TRAIN.value, directory)


def _model(kind: str) -> keras.Model:
    optimizer, activation = _KINDS[kind]
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(128, activation),
            keras.layers.Dense(64, activation),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer(), loss)
    return model


def lds() -> None:
    """Measures how well scores rank subsets by the effect of removing them."""
    train, queries = _data()
    print(
        "| training | correct | removed | expected | unrolled | TracIn | "
        "replay |\n|---|---:|---:|---:|---:|---:|---:|"
    )
    pairs = []
    for kind in _TRAININGS.value:
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory, "run")
            pairs += _correlations(kind, train, queries, path)
    if len(pairs) > 2:
        expected, measured = zip(*pairs, strict=True)
        ranked = scipy.stats.spearmanr(expected, measured).statistic
        gap = np.mean(np.abs(np.subtract(expected, measured)))
        print(
            f"\nexpected and unrolled: Spearman {ranked:.3f}, apart {gap:.3f}"
        )


def _correlations(kind, train, queries, directory) -> list[tuple]:
    """Prints the rows of a training; returns expected and measured values."""
    model = _model(kind)
    kt.record_training(
        model, train, directory, epochs=_EPOCHS.value, batch_size=_BATCH
    )
    unrolled = kt.UnrolledInfluence(model, train, directory)
    tracin = kt.TracIn(model, train, directory)
    methods = [m.influence(queries, verbose=0) for m in (unrolled, tracin)]
    correct = np.mean(model.predict(train[0], verbose=0).argmax(1) == train[1])
    pairs = []
    for share in map(float, _SHARES.value):
        smoothness = unrolled.smoothness(
            queries, share=share, scores=methods[0]
        )
        low, high = smoothness.interval
        expected = (
            f"{smoothness.rank_correlation:.2f} ({low:.2f} to {high:.2f})"
        )
        counts = _counts(len(train[0]), share)
        real = unrolled.retrain(queries, counts)  # [s, m]
        measured = [
            _over_subsets(scores.scores @ (1 - counts).T, real.T)
            for scores in methods
        ]
        print(
            f"| {kind} | {correct:.1%} | {share:.0%} | {expected} | "
            f"{' | '.join(map(_interval, measured))} | "
            f"{unrolled.replay_error:.1g} |",
            flush=True,
        )
        pairs.append((smoothness.rank_correlation, measured[0].mean()))
    return pairs


def _counts(size: int, share: float) -> np.ndarray:
    """Weights `[s, n]`, 0 for removed examples."""
    random = np.random.default_rng([1, round(1000 * share)])
    counts = np.ones((_SUBSETS.value, size))
    for row in counts:
        row[random.choice(size, round(share * size), replace=False)] = 0
    return counts


def _over_subsets(predicted: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Spearman correlations `[m]` of the rows of two `[m, s]`."""
    return np.array(
        [
            scipy.stats.spearmanr(*pair).statistic
            for pair in zip(predicted, real, strict=True)
        ]
    )


def _interval(correlations: np.ndarray) -> str:
    """Their mean over queries, and its interval."""
    random = np.random.default_rng(0)
    drawn = random.choice(correlations, (2000, len(correlations))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return f"{correlations.mean():.3f} ({low:.3f} to {high:.3f})"


def costs() -> None:
    """Prints seconds, after compilation."""
    train, queries = _data()
    print("| training | fit, s | replay | one query | many | per query |")
    for kind in _TRAININGS.value:
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory, "run")
            print(f"| {kind} | {_times(kind, train, queries, path)} |")


def _times(kind, train, queries, directory) -> str:
    model = _model(kind)
    options = {"epochs": _EPOCHS.value, "batch_size": _BATCH}
    kt.record_training(model, train, directory, **options)
    one = tuple(part[:1] for part in queries)
    ones = np.ones(len(train[0]))
    unrolled = kt.UnrolledInfluence(model, train, directory)
    calls = {
        "fit": lambda: model.fit(*train, verbose=0, **options),
        "replay": lambda: unrolled.retrain(queries, ones),
        "one": lambda: unrolled.influence(one, verbose=0),
        "many": lambda: unrolled.influence(queries, verbose=0),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(1 + _REPEATS.value):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:  # the first compiles
                seconds[name].append(time.perf_counter() - start)
    fit, replay, alone, many = map(statistics.median, seconds.values())
    each = many / fit / len(queries[0])
    return (
        f"{fit:.2f} | {replay / fit:.2f} | {alone / fit:.2f} | "
        f"{many / fit:.1f} | {each:.2f}"
    )


def main(_):
    for section in _SECTIONS.value:
        print(f"\n{section}")
        globals()[section]()


if __name__ == "__main__":
    app.run(main)
