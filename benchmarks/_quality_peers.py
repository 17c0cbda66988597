"""Methods of other libraries, on the same weights and data.

Only this module needs PyTorch and the library.
"""

from collections.abc import Callable

import numpy as np

import keras_tracin as kt
from benchmarks import _torch
from benchmarks._quality_methods import (
    Method,
    Problem,
    Scores,
    influence,
    last,
    ten,
    tracin,
    trak,
)

_DIM = 512  # of both sides' TRAK, without λ
_DAMPING = 0.01


def pairs(peer: str, convex: bool) -> dict[str, tuple[Method, Method]]:
    """Pairs of a method of ours and of the other library, by name.

    Args:
        peer: "captum" or "dattri".
        convex: If true, methods are included that are too slow for networks.
    """
    _torch.hide_triton()
    if peer == "captum":
        from benchmarks import _captum

        return {
            "captum, TracIn, 10": (
                tracin(ten),
                _theirs(_captum.over_checkpoints, ten),
            )
        }
    from benchmarks import _dattri

    trained = {
        "dattri, TracIn, 10": (tracin(ten), _theirs(_dattri.tracin, ten)),
        "dattri, TRAK, 1 checkpoint": (
            trak(last, damping=0, dim=_DIM),
            _theirs(_dattri.trak, last, _DIM),
        ),
    }
    if convex:
        trained["dattri, influence, CG"] = (
            influence(_DAMPING, kt.CG(), "hessian"),
            _conjugate_gradients,
        )
    return trained


def _theirs(call: Callable, choose: Callable, *options) -> Method:
    def scores(problem: Problem, seed: int) -> Scores:
        trained = problem.trained(seed)
        return _with_ids(
            call(
                trained.model,
                choose(trained.run),
                problem.train,
                problem.test,
                *options,
            )
        )

    return scores


def _conjugate_gradients(problem: Problem, seed: int) -> Scores:
    from benchmarks import _dattri

    model = problem.trained(seed).model
    call = _dattri.conjugate_gradients(
        model, problem.train, problem.test, _DAMPING, steps=50
    )
    return _with_ids(call())


def _with_ids(scores: np.ndarray) -> Scores:
    m, n = scores.shape
    return Scores(scores, np.arange(m), np.arange(n))
