"""How far scores can be trusted, from a few replays of the training.

A derivative describes a training that is smooth in the weights of its examples
(metasmoothness, Engstrom et al. 2025). So a few random subsets are left out,
each in a replay of its own, and every two of these trainings are compared: is
the one that the scores call worse for a query really worse? With τ the share of
such comparisons that agree minus the share that disagree, over all pairs and
queries, the rank correlation ρ over many subsets is expected to be

    ρ = 6/π asin(½ sin(πτ/2)),

as it is where scores and losses are jointly normal (Kruskal 1958): sums over
many examples nearly are. τ is unbiased for any number of replays, other than a
correlation over so few of them, and m queries make m comparisons of a pair.

Synopsis:

    subsets = random_subsets(5_000, share=0.1, count=5, seed=0)   # [r, n]
    real = unrolled.retrain(test, 1 - subsets).T                  # [m, r]
    Smoothness.of(scores @ subsets.T, real, share=0.1)
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from keras_tracin.results import Attribution

# From which rank correlation on scores rank removals how well.
_WORDS = ((0.9, "very well"), (0.7, "well"), (0.4, "roughly"))


@dataclasses.dataclass(frozen=True)
class Smoothness:
    """How well scores are expected to rank removals by their real effect.

    `str` says it in words.

    Attributes:
        share: the share of the training examples that was left out.
        replays: number of random subsets, each left out of one replay.
        num_queries: number of queries whose losses were compared.
        agreement: share of the comparisons of two replays by a query's loss
            in which scores name the worse one; 0.5 by chance.
        rank_correlation: the Spearman correlation that is expected, over
            random subsets of this size, of the sums of a query's scores with
            the query's real losses without them; the mean over queries.
        interval: a 95% interval of `rank_correlation`, from leaving out each
            replay and each query in turn (the jackknife). It is (-1, 1) for
            two replays, and where all of them are equal.
    """

    share: float
    replays: int
    num_queries: int
    agreement: float
    rank_correlation: float
    interval: tuple[float, float]

    @classmethod
    def of(
        cls, predicted: np.ndarray, real: np.ndarray, share: float
    ) -> Smoothness:
        """From predicted and real losses of `m` queries in `r` replays.

        Args:
            predicted: `[m, r]`, up to a constant for each query.
            real: `[m, r]`.
            share: the share of examples that was left out.

        Raises:
            ValueError: if one of them is not a number, or infinite.
        """
        for what, values in (("scores", predicted), ("losses", real)):
            wrong = np.flatnonzero(~np.isfinite(values).all(axis=0))
            if len(wrong):
                raise ValueError(
                    f"Replays are compared by finite {what}. Received NaN or "
                    f"infinite {what} for {len(wrong)} of {values.shape[1]} "
                    "replays: a training without some of the examples may "
                    "have diverged. Pass a smaller `share=`."
                )
        pairs = list(itertools.combinations(range(predicted.shape[1]), 2))
        left, right = np.transpose(pairs)
        concordance = np.sign(predicted[:, left] - predicted[:, right])
        concordance *= np.sign(real[:, left] - real[:, right])  # [m, pairs]
        tau = concordance.mean()
        error = _standard_error(concordance, left, right)
        ends = np.clip([tau - 1.96 * error, tau + 1.96 * error], -1, 1)
        low, high = map(_rank_correlation, ends)
        return cls(
            share=share,
            replays=predicted.shape[1],
            num_queries=len(predicted),
            agreement=float(1 + tau) / 2,
            rank_correlation=_rank_correlation(tau),
            interval=(low, high),
        )

    def __str__(self) -> str:
        words = [
            word for least, word in _WORDS if self.rank_correlation >= least
        ]
        word = words[0] if words else "poorly"
        low, high = self.interval
        comparisons = self.num_queries * math.comb(self.replays, 2)
        return (
            f"Scores are expected to rank removals of {self.share:.3g} of the "
            f"training examples {word}: at a rank correlation of "
            f"{self.rank_correlation:.2f} with the real effects ({low:.2f} to "
            f"{high:.2f}). {self.replays} replays without random subsets of "
            f"this size agree with the scores in {self.agreement:.0%} of "
            f"{comparisons:,} comparisons of two of them."
        )


def random_subsets(
    num_train: int, share: float, count: int, seed: int
) -> np.ndarray:
    """Indicators `[r, n]` of random subsets, 1 for the examples in them.

    Args:
        num_train: number of training examples.
        share: the share of them in each subset.
        count: number of subsets, two or more.
        seed: of the random numbers.

    Raises:
        ValueError: if `share` makes subsets of none or of all examples, or
            there are fewer than two.
    """
    size = round(share * num_train) if 0 < share < 1 else 0
    if not 0 < size < num_train:
        raise ValueError(
            "`share` should be the share of the training examples to leave "
            f"out, of at least one of the {num_train} and not all. Received: "
            f"{share}."
        )
    if count < 2:
        raise ValueError(
            "`replays` should be two or more, which are compared with one "
            f"another. Received: {count}."
        )
    random = np.random.default_rng(seed)
    subsets = np.zeros((count, num_train))
    for row in subsets:
        row[random.choice(num_train, size, replace=False)] = 1.0
    return subsets


def check_scores(
    scores: Attribution, query_ids: np.ndarray, positions: np.ndarray
) -> None:
    """Raises ValueError if scores are of other queries or examples.

    Args:
        scores: the scores.
        query_ids: ids of the queries, `[m]`.
        positions: where the scored examples are among those trained on, -1
            for those that are not.
    """
    if not np.array_equal(scores.query_ids, query_ids):
        raise ValueError(
            "`scores` should be of the queries that are passed, in this order. "
            f"Received {len(scores.query_ids)} queries with ids "
            f"{scores.query_ids[:3].tolist()} first, expected "
            f"{len(query_ids)} with {query_ids[:3].tolist()}."
        )
    unknown = scores.train_ids[positions < 0]
    if len(unknown):
        raise ValueError(
            "`scores` should be of single examples of the training. Received "
            f"scores of ids that are not among them: {unknown[:5].tolist()}."
        )


def _rank_correlation(tau: float) -> float:
    """Spearman's correlation of a bivariate normal with this Kendall's τ."""
    half = math.sin(math.pi / 2 * float(tau)) / 2
    return 6 / math.pi * math.asin(half)


def _standard_error(
    concordance: np.ndarray, left: np.ndarray, right: np.ndarray
) -> float:
    """Of the mean of `[m, pairs]`: the jackknife over replays and queries."""
    count = right.max() + 1
    if count < 3 or not concordance.any():  # nothing to tell it from
        return math.inf
    without = [
        concordance[:, (left != at) & (right != at)].mean()
        for at in range(count)
    ]
    variance = (count - 1) * np.var(without)
    queries = len(concordance)
    if queries > 1:
        variance += np.var(concordance.mean(axis=1), ddof=1) / queries
    return math.sqrt(variance)
