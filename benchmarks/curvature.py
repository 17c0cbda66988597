"""Influence functions: how close each solver comes, and what it costs.

    python -m benchmarks.curvature --sections=digits,sketch,dims,mnist

`digits`: a network 64-25-10 on scikit-learn's digits, every solver against
`Exact` at the same damping, beside the time of one epoch of `model.fit`.
`sketch`: the paper's randomized sketch on the same network, against S made
exactly for the same G, and against `Exact`. `dims`: the error of that sketch
against its size, beside what the theory predicts. `mnist`: softmax regression,
against training again without each of the 100 most influential examples.
`--peer=dattri` or `kronfluence` scores the digits, and MNIST with a network
784-256-128-10, in both libraries.
"""

import dataclasses
import os
import warnings

import numpy as np
import tensorflow as tf
from absl import app, flags

import keras_tracin as kt
from benchmarks import _curvature, _models, _softmax
from keras_tracin.curvature.objective import GaussNewton, Hessian
from keras_tracin.curvature.operators import Damped
from keras_tracin.curvature.solvers import solve
from keras_tracin.curvature.solvers.exact import as_matrix
from keras_tracin.curvature.solvers.randomized_sketch import gaussian_rows

_SECTIONS = flags.DEFINE_list(
    "sections", ["digits", "sketch", "dims", "mnist"], "What to measure."
)
_PEER = flags.DEFINE_enum(
    "peer",
    "none",
    ["none", "dattri", "kronfluence"],
    "Library to compare with.",
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 3, "Runs of which the median is taken.", lower_bound=1
)
_DAMPING = flags.DEFINE_float("damping", 0.1, "λ of the networks.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    os.environ.get("KERAS_TRACIN_DATA", "../shared/data"),
    "Folder that holds tfds/mnist. Without it the input is random.",
)

_DIMS = (50, 100, 200, 400, 942, 1885)
_SEEDS = 5  # sketches of each size
_MNIST_TRAIN = 5_000
_LEFT_OUT = 100
_PEER_TRAIN, _PEER_QUERIES = 2_000, 20


def digits() -> None:
    """Every solver against `Exact`."""
    model, train, test = _curvature.digits_network()
    epoch = _curvature.fit_epoch(model, train)
    damping = _DAMPING.value
    hessian, newton = (
        _curvature.operator_of(k, model, train) for k in (Hessian, GaussNewton)
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
        return _curvature.timed(
            lambda: method.influence(test, verbose=0).scores
        )

    exact, _ = scores(kt.Exact())
    for name, solver in {
        "Exact": kt.Exact(),
        "CG": kt.CG(),
        "LiSSA": kt.LiSSA(),
        "Arnoldi(200)": kt.Arnoldi(200),
        "Arnoldi(200), nothing beside": kt.Arnoldi(200, complement=False),
    }.items():
        estimate, seconds = scores(solver)
        _say(name, estimate, exact, seconds, epoch)
    gauss, _ = scores(kt.Exact(), "gauss_newton")
    estimate, seconds = scores(curvature="ekfac")
    _say("EK-FAC against Gauss-Newton", estimate, gauss, seconds, epoch)
    block, seconds = _block_diagonal(model, train, test, damping)
    _say("block-diagonal Gauss-Newton", block, gauss, seconds, epoch)


def sketch() -> None:
    """The sketch against a perfect one of the same G, and `Exact`."""
    model, train, test = _curvature.digits_network()
    epoch = _curvature.fit_epoch(model, train)
    damping = _DAMPING.value
    operator = Damped(_curvature.operator_of(Hessian, model, train), damping)
    size = operator.size
    exact = (
        kt.InfluenceFunctions(model, train, damping=damping, solver=kt.Exact())
        .influence(test, verbose=0)
        .scores
    )
    for dim, method in ((200, "sgd"), (200, "cg"), (size // 2, "cg")):
        solver = kt.RandomizedSketch(dim, method=method)
        made, seconds = _curvature.timed(
            lambda solver=solver: solver.prepare(operator)
        )
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
            f"exact S {_curvature.spearman(*pair):.3f}, with Exact "
            f"{_curvature.spearman(pair[0], exact):.3f} (a exact S "
            f"{_curvature.spearman(pair[1], exact):.3f})",
            flush=True,
        )


def dims() -> None:
    """What random projections of each size lose, with a exact S."""
    model, train, test = _curvature.digits_network()
    operator = Damped(
        _curvature.operator_of(Hessian, model, train), _DAMPING.value
    )
    inverse = kt.Exact().prepare(operator)
    gradients, queries = (
        _curvature.gradients_of(model, part) for part in (train, test)
    )
    solved = inverse(gradients).value.numpy()  # u = (H + λI)⁻¹ g
    exact = queries @ solved.T
    print("| dim | error | predicted | Spearman | predicted |")
    for dim in _DIMS:
        estimate, noisy = [], []
        for seed in range(_SEEDS):
            rows = gaussian_rows(dim, operator.size, seed, tf.float32)
            history = np.zeros((1, 2))
            made = kt.InverseSketch(inverse(rows).value, seed, history, 1.0)
            estimate.append(made(queries).value.numpy() @ gradients.T)
            noise = _predicted_noise(queries, dim, seed)
            noisy.append(exact + noise @ solved.T)
        figures = (
            _relative([scores - exact for scores in estimate], exact),
            np.sqrt(_predicted_squares(queries, solved, dim).sum())
            / np.linalg.norm(exact),
            np.mean(
                [_curvature.spearman(scores, exact) for scores in estimate]
            ),
            np.mean([_curvature.spearman(scores, exact) for scores in noisy]),
        )
        print(f"| {dim} | " + " | ".join(f"{f:.3f}" for f in figures) + " |")


def _predicted_squares(queries, solved, dim: int) -> np.ndarray:
    """The variance of each score `[m, n]`: (‖q‖²‖u‖² + (q·u)²) / d."""
    lengths = [np.square(part).sum(axis=1) for part in (queries, solved)]
    return (np.outer(*lengths) + np.square(queries @ solved.T)) / dim


def _predicted_noise(queries, dim: int, seed: int) -> np.ndarray:
    """Gaussian, of the covariance (‖q‖² I + q qᵀ) / d that GᵀGq - q has."""
    rng = np.random.default_rng(seed)
    lengths = np.linalg.norm(queries, axis=1, keepdims=True)
    noise = lengths * rng.normal(size=queries.shape)
    noise += queries * rng.normal(size=(len(queries), 1))
    return noise / np.sqrt(dim)


def _relative(errors, exact) -> float:
    squares = [np.square(error).sum() for error in errors]
    return float(np.sqrt(np.mean(squares)) / np.linalg.norm(exact))


def mnist() -> None:
    """Softmax regression: training again without an example, and costs."""
    train, test = _softmax.examples(
        _MNIST_TRAIN, _curvature.QUERIES, _models.mnist_in(_DATA_DIR.value)
    )
    whole = _softmax.at_minimum(train)
    epoch = _curvature.fit_epoch(whole, train)
    print(
        f"{_MNIST_TRAIN:,} examples, L2 {_softmax.L2}; one epoch {epoch:.2f} s"
    )
    scores, seconds = {}, {}
    for name, solver in {
        "CG": kt.CG(),
        "LiSSA": kt.LiSSA(),
        "Arnoldi(200)": kt.Arnoldi(200),
    }.items():
        # The regularisers make the Hessian positive definite.
        method = kt.InfluenceFunctions(whole, train, damping=0, solver=solver)
        scores[name], seconds[name] = _curvature.timed(
            lambda method=method: method.influence(test, verbose=0)
        )
    report, taken = _curvature.timed(
        lambda: kt.evaluation.leave_one_out(
            scores["CG"],
            train,
            test,
            lambda fewer: _softmax.at_minimum(fewer, whole, _MNIST_TRAIN),
            count=_LEFT_OUT,
        )
    )
    print(f"training again {_LEFT_OUT} times: {taken:.0f} s")
    for name, estimate in scores.items():
        each = dataclasses.replace(
            report, predicted=estimate.scores[:, report.train_ids]
        )
        print(
            f"{name}: Pearson {np.median(each.pearson):.4f} (least "
            f"{each.pearson.min():.4f}), Spearman "
            f"{np.median(each.spearman):.4f}; {seconds[name]:.1f} s "
            f"({seconds[name] / epoch:.0f} epochs)",
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

    return _curvature.timed(scores)


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
        seconds[name] = min(_curvature.timed(call)[1] for _ in range(5))
    for name, value in seconds.items():
        print(f"{name}: {value / seconds['gradient']:.2f} gradients")


def _say(name, estimate, exact, seconds, epoch) -> None:
    print(
        f"{name}: Spearman {_curvature.spearman(estimate, exact):.4f}, "
        f"{seconds:.1f} s ({seconds / epoch:.0f} epochs)",
        flush=True,
    )


def main(_) -> None:
    """Runs the sections that were asked for."""
    warnings.simplefilter("once")
    for name in _SECTIONS.value:
        SECTIONS[name]()
    if _PEER.value != "none":
        from benchmarks import _curvature_peers  # Needs PyTorch.

        model, train, test = _curvature.digits_network()
        queries = tuple(part[:_PEER_QUERIES] for part in test)
        mnist = _curvature.mnist_network(
            _PEER_TRAIN, _PEER_QUERIES, _models.mnist_in(_DATA_DIR.value)
        )
        for name, problem in {
            "digits": (model, train, queries),
            "mnist": mnist,
        }.items():
            _curvature_peers.compare(
                _PEER.value, name, problem, _DAMPING.value, _REPEATS.value
            )


SECTIONS = {"digits": digits, "sketch": sketch, "dims": dims, "mnist": mnist}


if __name__ == "__main__":
    app.run(main)
