"""Measures the cost of tracing a training, and the accuracy of estimates.

    python -m benchmarks.trace --data_dir=$KERAS_TRACIN_DATA/tfds

The MLP on MNIST (random examples without `--data_dir`), batches of 32, 100
queries.

`overhead`: the ratio of an epoch of `trace_training` to one of `model.fit`, in
turns, without compilation.
`first_order`: Pearson's correlation of the real change of the queries' losses
with its estimates, over all steps; and the gap as a function of the rate.
`optimizer`: `TracIn` and `TracIn(optimizer_aware=True)` at one checkpoint,
compared with the real effect of one more example in the next batch on the
queries' losses, one step and five steps later.
`checkpoints`: a tenth of the labels wrong; for checkpoints that
`select_checkpoints` chose, for as many evenly spaced, and for the last, how
well self-influence finds the wrong labels, and the rank correlation of TracIn's
scores with TracInIdeal.
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
from benchmarks._models import WORKLOADS, load_examples

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS keeps MNIST.")
_SECTIONS = flags.DEFINE_list(
    "sections",
    ["overhead", "first_order", "optimizer", "checkpoints"],
    "What to measure.",
)
_NUM_TRAIN = flags.DEFINE_integer("num_train", 6_400, "Training examples.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Turns of the overhead.")

_QUERIES = 100
_FLIPPED = 4_000  # training examples, of which a tenth have wrong labels
_SHORT = 1_280  # training examples whose epochs have 40 steps
_CANDIDATES = 100  # of them, whose effect is measured
_OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.01),
    "momentum": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    "Adam": lambda: keras.optimizers.Adam(0.001),
    "RMSprop": lambda: keras.optimizers.RMSprop(0.001),
    "Adagrad": lambda: keras.optimizers.Adagrad(0.01),
}


def _data():
    workload = WORKLOADS["mlp"]
    train, test = load_examples(workload, _NUM_TRAIN.value, _DATA_DIR.value)
    return train, tuple(part[:_QUERIES] for part in test)


def _model(optimizer) -> keras.Model:
    model = WORKLOADS["mlp"].compiled()
    model.compile(optimizer, model.loss)
    return model


class _EpochTimes(keras.callbacks.Callback):
    """Seconds of each epoch except the first, which compiles."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        if epoch:
            self.seconds.append(time.perf_counter() - self._start)


def overhead() -> None:
    """An epoch with and without tracing."""
    train, queries = _data()
    print("| optimizer | fit, s | traced, s | traced / fit |")
    for name in ("SGD", "momentum", "Adam"):
        fits, traces = [], []
        for _ in range(_REPEATS.value):
            times = _EpochTimes()
            model = _model(_OPTIMIZERS[name]())
            model.fit(*train, epochs=3, verbose=0, callbacks=[times])
            fits += times.seconds
            times = _EpochTimes()
            model = _model(_OPTIMIZERS[name]())
            kt.trace_training(
                model, train, queries, epochs=2, callbacks=[times]
            )
            traces += times.seconds
        fit, traced = statistics.median(fits), statistics.median(traces)
        print(f"| {name} | {fit:.2f} | {traced:.2f} | {traced / fit:.1f} |")


def first_order() -> None:
    """Correlation of real changes with their estimates."""
    train, queries = _data()
    print("| optimizer | rate | first order | along the real step |")
    for name in ("SGD", "momentum", "Adam", "RMSprop"):
        optimizer = _OPTIMIZERS[name]()
        trace = kt.trace_training(_model(optimizer), train, queries, epochs=2)
        print(
            f"| {name} | {float(optimizer.learning_rate):.3g} | "
            f"{trace.correlation():.4f} | "
            f"{trace.correlation('along_step'):.4f} |"
        )
    _gaps(train, queries)


def _gaps(train, queries) -> None:
    """One step at several rates from the same weights."""
    model = _model(keras.optimizers.SGD(0.01))
    model.fit(*train, epochs=1, verbose=0)
    weights = model.get_weights()
    batch = tuple(part[:32] for part in train)
    print("| rate | gap of the first step / its change |")
    for rate in (0.08, 0.04, 0.02, 0.01, 0.005):
        model.set_weights(weights)
        model.compile(keras.optimizers.SGD(rate), model.loss)
        steps = kt.trace_training(model, batch, queries, epochs=1).steps
        gap = np.abs(steps.real - steps.first_order).sum()
        print(f"| {rate} | {gap / np.abs(steps.real).sum():.4f} |")


def optimizer() -> None:
    """Compares plain and optimizer-aware TracIn with effects of one example."""
    (x, y), queries = _data()
    train = x[:_SHORT], y[:_SHORT]
    print("| optimizer | form | steps | Spearman | effect / predicted |")
    for name in ("SGD", "momentum", "Adam", "RMSprop", "Adagrad"):
        model = _model(_OPTIMIZERS[name]())
        with tempfile.TemporaryDirectory() as directory:
            callback = kt.TracInCheckpoint(directory)
            model.fit(*train, epochs=4, verbose=0, callbacks=[callback])
            run = kt.TrainingRun(directory)[-1:]
            few = x[:_CANDIDATES], y[:_CANDIDATES]
            scores = {
                form: kt.TracIn(
                    model, few, run, optimizer_aware=form == "aware"
                )
                .influence(queries, verbose=0)
                .scores
                for form in ("plain", "aware")
            }
        for steps in (1, 5):
            effects = _effects(model, few, train, queries, steps)
            for form, result in scores.items():
                # In a batch of 33, an example weighs a 33rd.
                slope = 33 * (effects * result).sum() / (result**2).sum()
                print(
                    f"| {name} | {form} | {steps} | "
                    f"{_spearman(result, effects):.3f} | {slope:.3g} |",
                    flush=True,
                )

    _against_ideal(train, queries)


def _against_ideal(train, queries) -> None:
    """Compares both forms with TracInIdeal, at all checkpoints."""
    print("| optimizer | form | Spearman with TracInIdeal |")
    for name in ("momentum", "Adam", "RMSprop"):
        model = _model(_OPTIMIZERS[name]())
        with tempfile.TemporaryDirectory() as directory:
            run = pathlib.Path(directory) / "run"
            trace = kt.trace_training(
                model, train, queries, epochs=8, directory=run
            )
            for form in ("plain", "aware"):
                tracin = kt.TracIn(
                    model, train, run, optimizer_aware=form == "aware"
                )
                scores = tracin.influence(queries, verbose=0).scores
                agreement = _spearman(scores, trace.scores)
                print(f"| {name} | {form} | {agreement:.3f} |", flush=True)


def _effects(model, few, train, queries, steps):
    """Decrease of losses, several steps later, by each example in a batch.

    Everything else is the same: in the other training, the example has weight 0
    in the batch. Returns `[m, n]`.
    """
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction=None
    )
    variables = [*model.variables, *model.optimizer.variables]
    state = [v.numpy().copy() for v in variables]

    def losses(place, weight):
        for variable, value in zip(variables, state, strict=True):
            variable.assign(value)
        for step in range(steps):
            rows = slice(32 * step, 32 * step + 32)
            weights = np.ones(33, "float32")
            weights[32] = weight if step == 0 else 0.0
            batch = [
                np.concatenate([all_of_it[rows], one[place : place + 1]])
                for all_of_it, one in zip(train, few, strict=True)
            ]
            model.train_on_batch(*batch, weights)
        x, y = queries
        return np.asarray(loss(y, model(x, training=False)), np.float64)

    without = losses(0, 0.0)
    return np.stack(
        [without - losses(place, 1.0) for place in range(len(few[0]))], axis=1
    )


def checkpoints() -> None:
    """Selected, evenly spaced and last checkpoints of the same trainings."""
    (x, true_labels), queries = _data()
    x, true_labels = x[:_FLIPPED], true_labels[:_FLIPPED]
    queries = tuple(part[:60] for part in queries)
    print("| rate | seed | count | choice | epochs | AUC | Spearman |")
    for rate in (0.02, 0.1):
        for seed in (0, 1):
            labels = kt.evaluation.flip_labels(true_labels, 0.1, seed=seed)
            with tempfile.TemporaryDirectory() as directory:
                _choices(
                    (x, labels),
                    labels != true_labels,
                    queries,
                    rate,
                    seed,
                    pathlib.Path(directory) / "run",
                )


def _choices(train, is_flipped, queries, rate, seed, directory) -> None:
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(128, "relu"),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate), loss)
    trace = kt.trace_training(
        model, train, queries, epochs=24, seed=seed, directory=directory
    )
    run = kt.TrainingRun(directory)
    for count in (3, 5, 8):
        even = np.round(np.arange(1, count + 1) * 24 / count).astype(int) - 1
        choices = {
            "selected": kt.select_checkpoints(run, count, verbose=0),
            "evenly spaced": run.select(even),
            "last": run[-count:],
        }
        for name, chosen in choices.items():
            tracin = kt.TracIn(model, train, chosen)
            result = kt.evaluation.mislabel_detection(
                tracin.self_influence(verbose=0), is_flipped
            )
            scores = tracin.influence(queries, verbose=0).scores
            print(
                f"| {rate} | {seed} | {count} | {name} | "
                f"{[each.epoch for each in chosen]} | "
                f"{result.auc:.4f} | "
                f"{_spearman(scores, trace.scores):.4f} |",
                flush=True,
            )


def _spearman(scores, ideal) -> float:
    """Median over queries, without those whose loss no example changes."""
    pairs = zip(scores, ideal, strict=True)
    return statistics.median(
        scipy.stats.spearmanr(one, other).statistic
        for one, other in pairs
        if np.ptp(other)
    )


def main(_):
    for section in _SECTIONS.value:
        print(f"\n{section}")
        globals()[section]()


if __name__ == "__main__":
    app.run(main)
