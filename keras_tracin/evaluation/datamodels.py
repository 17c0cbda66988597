"""The linear datamodeling score (LDS) of attribution scores.

The sum of scores over a subset of the examples predicts the output of a model
that is trained on this subset alone (Ilyas et al. 2022; Park et al. 2023,
sec. 2). The LDS of a query is the rank correlation of prediction and output
over random subsets.

Synopsis:

    retrained = kt.evaluation.retrain_on_subsets(fit, train, test, directory)
    result = kt.evaluation.lds(scores, retrained)
    result.mean, result.confidence_interval
"""

from __future__ import annotations

import dataclasses

import numpy as np

from keras_tracin.evaluation.rank_correlation import (
    mean_correlation,
    rank_correlations,
)
from keras_tracin.evaluation.retraining import check_same
from keras_tracin.evaluation.subsets import Retrained
from keras_tracin.results import Attribution


@dataclasses.dataclass(frozen=True)
class LDS:
    """Linear datamodeling scores of queries.

    Attributes:
        query_ids: ids of the queries, `[m]`.
        per_query: rank correlations over the subsets, `[m]`; NaN if
            predictions or outputs do not vary.
        confidence_interval: confidence interval `(low, high)` of `mean`, from
            a bootstrap over subsets and queries.
    """

    query_ids: np.ndarray
    per_query: np.ndarray
    confidence_interval: tuple[float, float]

    @property
    def mean(self) -> float:
        """Mean over queries, leaving out NaN."""
        return mean_correlation(self.per_query)

    def __repr__(self) -> str:
        low, high = self.confidence_interval
        return (
            f"<LDS {self.mean:.3f} ({low:.3f} to {high:.3f}) of "
            f"{len(self.per_query)} queries>"
        )


def lds(
    scores: Attribution,
    retrained: Retrained,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> LDS:
    """Computes the linear datamodeling score (LDS) of scores.

    Args:
        scores: scores `[m, n]` of the queries and training examples below.
        retrained: outputs of models that were trained on random subsets.
        resamples: number of resamples of the bootstrap.
        confidence: confidence level of the interval, which covers the choice
            of queries and of subsets.
        seed: seed of the bootstrap.

    Returns:
        An `LDS`. If trainings vary by chance, no scores reach 1; see
        `retrained.ceiling`.

    Raises:
        ValueError: if the scores are of other examples or queries, if one is
            NaN, or if `confidence` is not between 0 and 1.
    """
    check_same("training examples", scores.train_ids, retrained.train_ids)
    check_same("queries", scores.query_ids, retrained.query_ids)
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(
            "`confidence` should be between 0 and 1, `resamples` 1 or more. "
            f"Received: {confidence!r} and {resamples!r}."
        )
    if not np.isfinite(scores.scores).all():
        raise ValueError("`scores` should be numbers. Received NaN or infinity")
    # Outputs are losses: lower is better; higher scores are better.
    predicted = retrained.masks @ np.asarray(scores.scores, np.float64).T
    actual = -retrained.outputs
    per_query = rank_correlations(predicted, actual)
    rng = np.random.default_rng(seed)
    subsets, queries = actual.shape
    means = []
    for _ in range(resamples):
        rows = rng.integers(subsets, size=subsets)
        columns = rng.integers(queries, size=queries)
        sample = np.ix_(rows, columns)
        means.append(
            mean_correlation(
                rank_correlations(predicted[sample], actual[sample])
            )
        )
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(means, [tail, 1 - tail])
    return LDS(scores.query_ids, per_query, (float(low), float(high)))
