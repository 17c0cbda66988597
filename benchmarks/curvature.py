"""Influence functions: how close each solver comes, and what it costs.

    python -m benchmarks.curvature --sections=digits,sketch

`digits`: a network 64-25-10 on scikit-learn's digits, every solver against
`Exact` at the same damping, beside the time of one epoch of `model.fit`.
`sketch`: the paper's randomized sketch on the same network, against S made
exactly for the same G, and against `Exact`.
"""

import time
import warnings
from collections.abc import Callable

import keras
import numpy as np
import scipy.stats
import sklearn.datasets
import tensorflow as tf
from absl import app, flags

import keras_tracin as kt
from keras_tracin.curvature.objective import GaussNewton, Hessian
from keras_tracin.curvature.operators import Damped
from keras_tracin.curvature.sketch import gaussian_rows
from keras_tracin.curvature.solvers import solve
from keras_tracin.curvature.solvers.exact import as_matrix
from keras_tracin.datasets import open_examples
from keras_tracin.losses import per_example_loss

_SECTIONS = flags.DEFINE_list(
    "sections", ["digits", "sketch"], "What to measure."
)
_DAMPING = flags.DEFINE_float("damping", 0.1, "λ of the digits network.")

_QUERIES = 50


def _digits_network():
    """A network of 1,885 numbers, trained, with its data and queries."""
    x, y = sklearn.datasets.load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    train, test = (x[:1500], y[:1500]), (x[1500:], y[1500:])
    test = tuple(part[:_QUERIES] for part in test)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(25, activation="tanh"),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.003), loss)
    model.fit(*train, epochs=60, batch_size=32, verbose=0)
    return model, train, test


def digits() -> None:
    """Every solver against `Exact`."""
    model, train, test = _digits_network()
    epoch = _fit_epoch(model, train)
    damping = _DAMPING.value
    hessian, newton = (
        _operator(k, model, train) for k in (Hessian, GaussNewton)
    )
    smallest = np.linalg.eigvalsh(as_matrix(hessian))[0]
    print(
        f"one epoch {epoch:.2f} s; λ {damping}, smallest eigenvalue of H "
        f"{smallest:.4f}"
    )
    _products(hessian, newton, model, train)

    def scores(solver=None, curvature="hessian", damping=damping):
        method = kt.InfluenceFunctions(
            model, train, damping=damping, solver=solver, curvature=curvature
        )
        return _timed(lambda: method.influence(test, verbose=0).scores)

    exact, _ = scores(kt.Exact())
    for name, solver in {
        "Exact": kt.Exact(),
        "CG": kt.CG(),
        "LiSSA": kt.LiSSA(),
        "Arnoldi(200)": kt.Arnoldi(200),
        "Arnoldi(200), nothing beside": kt.Arnoldi(200, complement=False),
    }.items():
        found, seconds = scores(solver)
        _say(name, found, exact, seconds, epoch)
    gauss, _ = scores(kt.Exact(), "gauss_newton")
    found, seconds = scores(curvature="ekfac")
    _say("EK-FAC against Gauss-Newton", found, gauss, seconds, epoch)
    block, seconds = _block_diagonal(model, train, test, damping)
    _say("block-diagonal Gauss-Newton", block, gauss, seconds, epoch)


def sketch() -> None:
    """The sketch against a perfect one of the same G, and `Exact`."""
    model, train, test = _digits_network()
    epoch = _fit_epoch(model, train)
    damping = _DAMPING.value
    operator = Damped(_operator(Hessian, model, train), damping)
    size = operator.size
    exact = (
        kt.InfluenceFunctions(model, train, damping=damping, solver=kt.Exact())
        .influence(test, verbose=0)
        .scores
    )
    for dim, method in ((200, "sgd"), (200, "cg"), (size // 2, "cg")):
        solver = kt.RandomizedSketch(dim, method=method)
        made, seconds = _timed(lambda solver=solver: solver.prepare(operator))
        rows = gaussian_rows(dim, size, 0, tf.float32)
        perfect = solve(operator, rows, kt.Exact()).value
        error = np.linalg.norm(made.rows - perfect) / np.linalg.norm(perfect)
        ideal = kt.InverseSketch(perfect, 0, made.history, 1.0)
        pair = [
            kt.InfluenceFunctions(model, train, damping=damping, solver=sketch)
            .influence(test, verbose=0)
            .scores
            for sketch in (made, ideal)
        ]
        print(
            f"sketch dim {dim} by {method}: {int(made.history[-1, 0])} steps, "
            f"{seconds:.1f} s ({seconds / epoch:.0f} epochs), S off by "
            f"{error:.3f}, residual {made.residual:.3f}; Spearman with the "
            f"perfect S {_spearman(*pair):.3f}, with Exact "
            f"{_spearman(pair[0], exact):.3f} (a perfect S "
            f"{_spearman(pair[1], exact):.3f})",
            flush=True,
        )


def _block_diagonal(model, train, test, damping):
    """Gauss-Newton without what lies between layers, solved exactly."""

    def scores():
        return sum(
            kt.InfluenceFunctions(
                model,
                train,
                damping=damping,
                solver=kt.Exact(),
                curvature="gauss_newton",
                layers=[layer.name],
            )
            .influence(test, verbose=0)
            .scores
            for layer in model.layers
        )

    return _timed(scores)


def _products(hessian, newton, model, train) -> None:
    """What a product costs, in gradients of the same data."""
    vectors = tf.random.stateless_normal([16, hessian.size], [0, 0])
    calls = {
        "gradient": hessian.gradient,
        "one product": lambda: hessian.matmat(vectors[:1]),
        "16 products": lambda: hessian.matmat(vectors),
        "one product, Gauss-Newton": lambda: newton.matmat(vectors[:1]),
    }
    seconds = {}
    for name, call in calls.items():
        call()
        seconds[name] = min(_timed(call)[1] for _ in range(5))
    for name, value in seconds.items():
        print(f"{name}: {value / seconds['gradient']:.2f} gradients")


def _operator(kind, model, train):
    variables = model.trainable_variables
    examples = open_examples(train)
    return kind(model, per_example_loss(model), examples, variables)


def _fit_epoch(model, train) -> float:
    twin = keras.models.clone_model(model)
    twin.compile("sgd", model.loss)
    twin.fit(*train, batch_size=32, verbose=0)
    return _timed(lambda: twin.fit(*train, batch_size=32, verbose=0))[1]


def _timed(call: Callable):
    start = time.perf_counter()
    return call(), time.perf_counter() - start


def _spearman(a, b) -> float:
    """The median over queries of the rank correlation of two scores."""
    each = [
        scipy.stats.spearmanr(*pair).statistic
        for pair in zip(a, b, strict=True)
    ]
    return float(np.median(each))


def _say(name, found, exact, seconds, epoch) -> None:
    print(
        f"{name}: Spearman {_spearman(found, exact):.4f}, {seconds:.1f} s "
        f"({seconds / epoch:.0f} epochs)",
        flush=True,
    )


def main(_) -> None:
    """Runs the sections that were asked for."""
    warnings.simplefilter("once")
    for name in _SECTIONS.value:
        {"digits": digits, "sketch": sketch}[name]()


if __name__ == "__main__":
    app.run(main)
