"""Scores of influence functions beside those of another library.

Needs PyTorch and the library, which nothing else here does.
"""

import functools

import keras_tracin as kt
from benchmarks import _curvature, _measure, _torch

_STEPS = (10, 20)  # of dattri's conjugate gradients: its default, and more
_BATCH_SIZE = 512  # of kronfluence


def compare(
    peer: str, name: str, problem: tuple, damping: float, repeats: int
) -> None:
    """Prints how alike scores are, and what each side took, in turns.

    Args:
        peer: "dattri", by conjugate gradients, or "kronfluence", by EK-FAC.
        name: what to call the problem.
        problem: the model, its training examples and queries.
        damping: λ.
        repeats: runs of which the median is taken.
    """
    _torch.hide_triton()
    sides = {"dattri": _by_gradients, "kronfluence": _by_ekfac}[peer]
    curvature = {"dattri": "hessian", "kronfluence": "gauss_newton"}[peer]
    reference = _ours(
        problem, damping=damping, solver=kt.CG(1e-4), curvature=curvature
    )
    found: dict = {}
    calls = {
        side: functools.partial(_keep, call, side, found)
        for side, call in sides(problem, damping).items()
    }
    seconds = _measure.medians(calls, repeats)
    for side, scores in found.items():
        print(
            f"{name}, {side}: {seconds[side]:.2f} s, "
            f"{seconds[side] / seconds['ours']:.1f} of ours; with ours "
            f"{_alike(scores, found['ours'])}; with the exact inverse "
            f"{_alike(scores, reference)}",
            flush=True,
        )


def _ours(problem, **options):
    model, train, test = problem
    method = kt.InfluenceFunctions(model, train, **options)
    return method.influence(test, verbose=0).scores


def _by_gradients(problem, damping: float) -> dict:
    """CG of both; of ours also with nothing left to compile."""
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
    """EK-FAC of both, factors and scores."""
    from benchmarks import _kronfluence

    return {
        "ours": lambda: _ours(problem, damping=damping, curvature="ekfac"),
        "kronfluence": _kronfluence.ekfac(*problem, damping, _BATCH_SIZE),
    }


def _keep(call, side, found) -> None:
    found[side] = call()


def _alike(scores, others) -> str:
    return (
        f"Pearson {_curvature.pearson(scores, others):.4f}, Spearman "
        f"{_curvature.spearman(scores, others):.4f}"
    )
