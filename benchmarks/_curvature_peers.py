"""Scores of influence functions beside those of another library.

Needs PyTorch and the library, which nothing else here does.
"""

import functools

import keras_tracin as kt
from benchmarks import _curvature, _measure, _torch

_STEPS = (10, 50)  # of dattri's conjugate gradients: its default, and enough
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
    model, train, test = problem

    def ours(**options):
        method = kt.InfluenceFunctions(model, train, damping=damping, **options)
        return method.influence(test, verbose=0).scores

    _torch.hide_triton()
    if peer == "dattri":
        options = {"solver": kt.CG()}
        reference = ours(solver=kt.CG(1e-6))
        from benchmarks import _dattri

        calls = {
            f"dattri, {steps} steps": _dattri.conjugate_gradients(
                *problem, damping, steps
            )
            for steps in _STEPS
        }
    else:
        options = {"curvature": "ekfac"}
        reference = ours(solver=kt.CG(1e-6), curvature="gauss_newton")
        from benchmarks import _kronfluence

        calls = {
            "kronfluence": _kronfluence.ekfac(*problem, damping, _BATCH_SIZE)
        }
    calls = {"ours": functools.partial(ours, **options), **calls}
    found = {side: call() for side, call in calls.items()}
    seconds = _measure.medians(calls, repeats)
    for side, scores in found.items():
        print(
            f"{name}, {side}: {seconds[side]:.2f} s, "
            f"{seconds[side] / seconds['ours']:.1f} of ours; with ours "
            f"{_alike(scores, found['ours'])}; with the exact inverse "
            f"{_alike(scores, reference)}",
            flush=True,
        )


def _alike(scores, others) -> str:
    return (
        f"Pearson {_curvature.pearson(scores, others):.4f}, Spearman "
        f"{_curvature.spearman(scores, others):.4f}"
    )
