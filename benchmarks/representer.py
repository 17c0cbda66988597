"""Measures the accuracy of representer points, and the cost of retuning.

    python -m benchmarks.representer --sections=digits,mnist,memory

`digits` and `mnist`: a network with convolutions is trained, its last layer is
retuned for each λ, and the sums of scores are compared with the retuned logits,
and these with the model's logits. `memory`: the peak memory of `top_k` in a new
process, at two sizes. With `--peer=dattri` the scores are compared with those
of dattri's `RPSAttributor` on the same representations.
"""

import functools
import os
import time

import keras
import numpy as np
import sklearn.datasets
from absl import app, flags
from keras import layers

import keras_tracin as kt
from benchmarks import _cases, _measure, _models
from keras_tracin.methods.representer.problem import Problem
from keras_tracin.methods.representer.retune import retune

SECTIONS = ("digits", "mnist", "memory")

_SECTIONS = flags.DEFINE_list("sections", list(SECTIONS), "What to measure.")
_L2 = flags.DEFINE_list("l2", ["1e-1", "1e-2", "1e-3", "1e-4"], "Values of λ.")
_REPEATS = flags.DEFINE_integer(
    "repeats", 3, "Runs of which the median is taken.", lower_bound=1
)
_NUM_TRAIN = flags.DEFINE_integer(
    "num_train", 60_000, "Number of MNIST's training examples.", lower_bound=1
)
_PEER = flags.DEFINE_enum(
    "peer", "none", ["none", "dattri"], "Library to compare with (mnist)."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    os.environ.get("KERAS_TRACIN_DATA", "../shared/data"),
    "Folder that holds tfds/mnist. Without it the input is random.",
)

_EPOCHS = {"digits": 30, "mnist": 2}
_BATCH_SIZE = 32
_PEER_L2 = 1e-3
_MEMORY_QUERIES = 10_000


def _digits() -> tuple[keras.Model, _models.Arrays, _models.Arrays]:
    """A small network with a convolution, and scikit-learn's digits."""
    x, y = sklearn.datasets.load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )
    return model, (x[:1500], y[:1500]), (x[1500:], y[1500:])


def _mnist() -> tuple[keras.Model, _models.Arrays, _models.Arrays]:
    """The network with convolutions of all benchmarks, and all of MNIST."""
    workload = _models.WORKLOADS["cnn"]
    known = _models.mnist_in(_DATA_DIR.value)
    train, test = _models.load_examples(workload, _NUM_TRAIN.value, known)
    keras.utils.set_random_seed(0)
    return workload.build(), train, test


def measure(name: str) -> None:
    """Retunes a network's last layer for each λ, and prints a row for each."""
    model, train, test = {"digits": _digits, "mnist": _mnist}[name]()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    model.fit(*train, batch_size=_BATCH_SIZE, epochs=_EPOCHS[name], verbose=0)
    learner = keras.models.clone_model(model)
    learner.compile(keras.optimizers.Adam(1e-3), loss)

    def read() -> Problem:
        problem = Problem(model, train)
        problem.represent()
        return problem

    problem = read()
    calls = {
        "epoch": _cases.fit_epoch(learner, train, _BATCH_SIZE),
        "representations": read,
    }
    for l2 in map(float, _L2.value):
        objective = problem.objective(l2)
        calls[l2] = functools.partial(retune, objective, problem.head.weights)
    seconds = _measure.medians(calls, _REPEATS.value)
    epoch = seconds.pop("epoch")
    print(
        f"{name}: {len(train[0]):,} examples × {len(problem.head.weights)} "
        f"features, {len(test[0])} queries; one epoch {epoch:.2f} s; "
        f"representations {seconds.pop('representations'):.2f} s"
    )
    print("| λ | s | epochs | gradient | sums off | correlation | accuracy |")
    for l2, taken in seconds.items():
        points = kt.RepresenterPoints(model, train, l2=l2, verbose=0)
        report = points.faithfulness(test, verbose=0)
        print(
            f"| {l2:g} | {taken:.2f} | {taken / epoch:.2f} | "
            f"{report.gradient_ratio:.1e} | {_sums_off(points, test):.1e} | "
            f"{report.correlation:.3f} | {_accuracy(points, test):.3f} |",
            flush=True,
        )
    own = (model.predict(test[0], verbose=0).argmax(1) == test[1]).mean()
    print(f"accuracy of the model itself {own:.3f}", flush=True)
    if _PEER.value == "dattri":
        _beside_dattri(problem, test)


def _sums_off(points: kt.RepresenterPoints, test: _models.Arrays) -> float:
    """max|Σ scores − logits| / max|logit|, over queries and classes.

    Scores are float32, as returned; logits are those of the retuned model.
    """
    logits = points.retuned_model.predict(test[0], verbose=0)
    sums = np.concatenate(
        [
            points.class_scores(
                tuple(part[at : at + 100] for part in test), verbose=0
            ).sum(axis=1, dtype=np.float64)
            for at in range(0, len(test[0]), 100)
        ]
    )
    return float(np.abs(sums - logits).max() / np.abs(logits).max())


def _accuracy(points: kt.RepresenterPoints, test: _models.Arrays) -> float:
    return (points.logits(test, verbose=0).argmax(1) == test[1]).mean()


def _beside_dattri(problem: Problem, test: _models.Arrays) -> None:
    """Both libraries on the same representations, labels and first weights."""
    from benchmarks import _torch  # Needs PyTorch, which only this does.

    _torch.hide_triton()
    from benchmarks import _dattri

    (queries,) = problem.blocks(test, len(test[0]))
    # dattri has no bias: it is given the constant feature, as all features.
    x, weights = problem.train.features.astype(np.float32), problem.head.weights
    inputs = queries.features.astype(np.float32), test[1]
    head = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            layers.Dense(weights.shape[1], use_bias=False),
        ]
    )
    head.set_weights([weights])
    head.compile(loss=keras.losses.CategoricalCrossentropy(from_logits=True))
    # It retunes on the model's own probabilities, in place of the labels.
    logits = head.predict(x, batch_size=1024, verbose=0)
    train = x, keras.ops.convert_to_numpy(keras.ops.softmax(logits))
    peer = _dattri.Representer(weights, x, _PEER_L2)

    def call() -> tuple[kt.RepresenterPoints, np.ndarray]:
        points = kt.RepresenterPoints(head, train, l2=_PEER_L2, verbose=0)
        return points, points.influence(inputs, verbose=0).scores

    seconds = _measure.medians({"ours": call}, _REPEATS.value)
    points, ours = call()
    start = time.perf_counter()
    theirs = peer.retuned().scores(inputs)
    seconds["dattri"] = time.perf_counter() - start
    # Its loss is a mean already, and is divided by n once more.
    scale = len(x)
    for name, scores, final in (
        ("ours", ours, points.weights),
        ("dattri", theirs, peer.weights),
        ("dattri × n", scale * theirs, peer.weights),
        (
            "dattri × n at our weights",
            scale * peer.with_weights(points.weights).scores(inputs),
            points.weights,
        ),
    ):
        logits = (queries.features @ final)[np.arange(len(test[1])), test[1]]
        off = np.abs(scores.sum(axis=1) - logits).max() / np.abs(logits).max()
        alike = np.corrcoef(scores.ravel(), ours.ravel())[0, 1]
        print(
            f"{name}: sums off by {off:.1e}, correlation with ours "
            f"{alike:.6f}, largest difference "
            f"{np.abs(scores - ours).max() / np.abs(ours).max():.1e}"
        )
    print(f"{len(x):,} × {len(test[1])}, seconds: {seconds}", flush=True)


def memory() -> None:
    """The peak of `top_k`, which never holds all the scores."""
    for num_train in (10_000, 60_000):
        usage = _measure.in_new_process(
            _cases.representer_memory, num_train, _MEMORY_QUERIES
        )
        print(
            f"top_k {num_train:,} × {_MEMORY_QUERIES:,}: peak "
            f"{usage.peak / 2**20:,.0f} MiB, above its start "
            f"{(usage.peak - usage.before) / 2**20:,.0f} MiB; all scores would "
            f"be {4 * num_train * _MEMORY_QUERIES / 2**20:,.0f} MiB",
            flush=True,
        )


def main(_) -> None:
    """Runs the selected sections."""
    for name in _SECTIONS.value:
        if name == "memory":
            memory()
        else:
            measure(name)


if __name__ == "__main__":
    app.run(main)
