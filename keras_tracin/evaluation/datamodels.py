"""The linear datamodeling score: sums of scores against other trainings.

The scores of the examples in a subset, added up, are taken for a prediction of
what training on the subset alone would make of a query (Ilyas et al. 2022; Park
et al. 2023, sec. 2). The score is the rank correlation of prediction and
outcome over random subsets, for each query.

Synopsis:

    retrained = kt.evaluation.retrain_on_subsets(fit, train, test, directory)
    found = kt.evaluation.lds(scores, retrained)
    found.mean, found.confidence_interval
"""

from __future__ import annotations

import dataclasses

import numpy as np

from keras_tracin.evaluation.rank_correlation import rank_correlations
from keras_tracin.evaluation.subsets import Retrained
from keras_tracin.evaluation.training_again import check_same
from keras_tracin.results import Attribution


@dataclasses.dataclass(frozen=True)
class LDS:
    """How well sums of scores predict trainings on subsets.

    Attributes:
        query_ids: `[m]`.
        per_query: `[m]` rank correlations over the subsets; NaN where a
            prediction or an outcome does not vary.
        confidence_interval: of `mean`, by the bootstrap over subsets and
            queries together, `(low, high)`.
    """

    query_ids: np.ndarray
    per_query: np.ndarray
    confidence_interval: tuple[float, float]

    @property
    def mean(self) -> float:
        """The mean over queries, those without a correlation left out."""
        return _mean(self.per_query)

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
    """Holds scores against trainings on random subsets.

    Args:
        scores: of these queries (the rows) and training examples.
        retrained: the outcomes.
        resamples: of the bootstrap.
        confidence: of the interval, which covers the choice of queries and
            of subsets.
        seed: that of the bootstrap.

    Returns:
        An `LDS`. Where trainings vary by chance no scores reach 1; see
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
    # Lower values are better, higher scores too: hence the minus.
    predicted = retrained.masks @ np.asarray(scores.scores, np.float64).T
    actual = -retrained.outputs
    per_query = rank_correlations(predicted, actual)
    rng = np.random.default_rng(seed)
    subsets, queries = actual.shape
    means = []
    for _ in range(resamples):
        rows = rng.integers(subsets, size=subsets)
        columns = rng.integers(queries, size=queries)
        chosen = np.ix_(rows, columns)
        means.append(
            _mean(rank_correlations(predicted[chosen], actual[chosen]))
        )
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(means, [tail, 1 - tail])
    return LDS(scores.query_ids, per_query, (float(low), float(high)))


def _mean(correlations: np.ndarray) -> float:
    if np.isnan(correlations).all():
        return float("nan")
    return float(np.nanmean(correlations))
