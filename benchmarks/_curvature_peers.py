"""Compares scores of influence functions with those of another library.

Only this module needs PyTorch and the library.
"""

import functools

import keras_tracin as kt
from benchmarks import _curvature, _measure, _torch

_STEPS = (10, 20)  # of dattri's conjugate gradients: its default, and more
_BATCH_SIZE = 512  # of kronfluence


def compare(
    peer: str, name: str, problem: tuple, damping: float, repeats: int
) -> None:
    """Prints the agreement of scores, and times, taken in turns.

    Args:
        peer: "dattri", by conjugate gradients, or "kronfluence", by EK-FAC.
        name: name of the problem.
        problem: the model, its training examples and queries.
        damping: damping λ.
        repeats: number of runs, of which the median is taken.
    """
    _torch.hide_triton()
    sides = {"dattri": _by_gradients, "kronfluence": _by_ekfac}[peer]
    curvature = {"dattri": "hessian", "kronfluence": "gauss_newton"}[peer]
    reference = _ours(
        problem, damping=damping, solver=kt.CG(1e-4), curvature=curvature
    )
    results: dict = {}
    calls = {
        side: functools.partial(_keep, call, side, results)
        for side, call in sides(problem, damping).items()
    }
    seconds = _measure.medians(calls, repeats)
    for side, scores in results.items():
        print(
            f"{name}, {side}: {seconds[side]:.2f} s, "
            f"{seconds[side] / seconds['ours']:.1f} of ours; with ours "
            f"{_alike(scores, results['ours'])}; with the exact inverse "
            f"{_alike(scores, reference)}",
            flush=True,
        )


def _ours(problem, **options):
    model, train, test = problem
    method = kt.InfluenceFunctions(model, train, **options)
    return method.influence(test, verbose=0).scores


def _by_gradients(problem, damping: float) -> dict:
    """CG of both libraries; ours also after compilation."""
    from benchmarks import _dattri

    model, train, test = problem
    method = kt.InfluenceFunctions(model, train, damping=damping)
    return {
        "ours": lambda: _ours(problem, damping=damping),
        "ours, compiled": lambda: method.influence(test, verbose=0).scores,
        **{
            f"dattri, {steps} steps": _dattri.conjugate_gradients(
                *problem, damping, steps
            )
            for steps in _STEPS
        },
    }


def _by_ekfac(problem, damping: float) -> dict:
    """EK-FAC of both libraries: factors and scores."""
    from benchmarks import _kronfluence

    return {
        "ours": lambda: _ours(problem, damping=damping, curvature="ekfac"),
        "kronfluence": _kronfluence.ekfac(*problem, damping, _BATCH_SIZE),
    }


def _keep(call, side, results) -> None:
    results[side] = call()


def _alike(scores, others) -> str:
    return (
        f"Pearson {_curvature.pearson(scores, others):.4f}, Spearman "
        f"{_curvature.spearman(scores, others):.4f}"
    )
