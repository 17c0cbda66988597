"""Methods for causal models of sequences, by name."""

import inspect
from collections.abc import Callable

import keras_tracin as kt
from benchmarks._quality_methods import (
    ENSEMBLE,
    Method,
    Problem,
    Scores,
    cosine,
    five,
    influence,
    last,
    several,
    ten,
    tracin,
    trak,
    unrolled,
)

_DIM = 8192  # of projections


def similar(name: str, **options) -> Method:
    """Similarities of the words: "BM25" or "TFIDF"."""

    def scores(problem: Problem, seed: int) -> Scores:
        method = getattr(kt.evaluation, name)(problem.train, **options)
        return method.influence(problem.test, verbose=0)

    return scores


def embeddings(problem: Problem, seed: int) -> Scores:
    """Cosines of the mean inputs of the last layer."""
    model = problem.trained(seed).model
    method = kt.evaluation.EmbeddingSimilarity(model, problem.train)
    return method.influence(problem.test, verbose=0)


def methods(damping: Callable[[str, str], float]) -> dict[str, Method]:
    """The methods, in the order of the table's rows.

    Args:
        damping: function that chooses λ for a curvature and a name of
            `CHECKPOINTS`.
    """

    def ekfac(checkpoints: str, choose: Callable) -> Method:
        def scores(problem: Problem, seed: int) -> Scores:
            chosen = damping("ekfac", checkpoints)
            solver = kt.EKFAC(problem.setting.draws)
            return influence(chosen, solver, "ekfac", choose)(problem, seed)

        return scores

    by_name: dict[str, Method] = {
        "TracIn, 1 checkpoint": tracin(last),
        "TracIn, 5": tracin(five),
        "TracIn, 10": tracin(ten),
        "TracIn, 10, optimizer-aware": tracin(ten, optimizer_aware=True),
        "gradient cosine": cosine,
    }
    if "normalize" in inspect.signature(kt.TracIn).parameters:
        sketch = kt.TensorSketch(_DIM)
        by_name |= {
            "gradient cosine, 10": tracin(ten, normalize="both"),
            "LESS: TracIn, 10, cosine, optimizer-aware, TensorSketch": tracin(
                ten, normalize="both", optimizer_aware=True, projection=sketch
            ),
            "TracIn, 10, cosine, factored second moment": tracin(
                ten, normalize="both", optimizer_aware="factored"
            ),
        }
    by_name |= {
        "influence, EK-FAC": ekfac("last", last),
        "influence, EK-FAC, 5 checkpoints": ekfac("five", five),
        "UnrolledInfluence": unrolled,
        "TRAK, 1 checkpoint": trak(last, dim=_DIM),
        "TRAK, 10": trak(ten, dim=_DIM),
    }
    if hasattr(kt.evaluation, "BM25"):
        by_name |= {
            "BM25": similar("BM25"),
            "TF-IDF": similar("TFIDF"),
            "embedding similarity": embeddings,
        }
    return by_name | {
        f"influence, EK-FAC, {ENSEMBLE} trainings": several(
            ekfac("last", last)
        ),
    }
