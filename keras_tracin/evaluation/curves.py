"""How good models are that were trained on growing parts of the data.

Synopsis:

    curves = RetrainingCurves.concat(parts)    # of several seeds
    curves.mean("loss"), curves.interval("loss")     # [s], [s]
    curves.difference("loss", "random")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import scipy

from keras_tracin.results.frames import pandas

RANDOM = "random"


@dataclasses.dataclass(frozen=True)
class RetrainingCurves:
    """What models are worth that were trained on parts of the data.

    Attributes:
        kind: "removed" or "kept": what was done with the first examples by
            each of the scores.
        metric: what was measured.
        shares: shares of the examples that were removed or kept, `[s]`.
        values: by the name of the scores, the metric after training with each
            of `r` seeds, `[s, r]`; those of "random" are means over its draws.
        random_each: the metric for each random draw, `[s, r, d]`.
        everything: the metric after training on all examples, `[r]`.
    """

    kind: str
    metric: str
    shares: np.ndarray
    values: Mapping[str, np.ndarray]
    random_each: np.ndarray
    everything: np.ndarray

    @classmethod
    def concat(cls, parts: Sequence[RetrainingCurves]) -> RetrainingCurves:
        """Curves of several calls as those of one with all their seeds.

        For scores that are of one training each, with data of its own.

        Args:
            parts: curves with the same names, shares and metric.

        Raises:
            ValueError: if there are none, or they differ in these.
        """
        kinds = {
            (p.kind, p.metric, tuple(p.shares), tuple(p.values)) for p in parts
        }
        if len(kinds) != 1:
            raise ValueError(
                "`parts` should be curves with the same names, shares and "
                f"metric. Received {len(kinds)} kinds: {sorted(kinds)}."
            )
        first = parts[0]
        return dataclasses.replace(
            first,
            values={
                name: np.concatenate([p.values[name] for p in parts], axis=1)
                for name in first.values
            },
            random_each=np.concatenate([p.random_each for p in parts], axis=1),
            everything=np.concatenate([p.everything for p in parts]),
        )

    def __repr__(self) -> str:
        shares = ", ".join(f"{share:.0%}" for share in self.shares)
        means = [f"all examples {self.everything.mean():.3f}"]
        for name in self.values:
            numbers = ", ".join(f"{value:.3f}" for value in self.mean(name))
            means.append(f"{name} {numbers}")
        return (
            f"<RetrainingCurves: {self.metric} with {shares} {self.kind}, mean "
            f"of {len(self.everything)} seeds: {'; '.join(means)}>"
        )

    def mean(self, name: str) -> np.ndarray:
        """Mean of the metric over the seeds, `[s]`.

        Args:
            name: name of the scores, or "random".
        """
        return self.values[name].mean(axis=1)

    def interval(self, name: str) -> np.ndarray:
        """Half of the 95% interval of that mean, `[s]`; NaN for one seed.

        Args:
            name: name of the scores, or "random".
        """
        return _half_interval(self.values[name])

    def difference(
        self, name: str, other: str = RANDOM
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean differences to other scores, seed by seed, `[s]`.

        The second array is half of their 95% intervals.

        Args:
            name: name of the scores.
            other: name of those to compare with.
        """
        differences = self.values[name] - self.values[other]
        return differences.mean(axis=1), _half_interval(differences)

    def to_dataframe(self):
        """A `pandas.DataFrame` of all trainings. Needs pandas.

        Columns: `scores`, `share`, `seed` (its place among the seeds), `draw`
        of "random", and the metric. A share of 0 removed, or 1 kept, is that
        of all examples.
        """
        pd = pandas()
        rows: list[tuple] = []
        whole = 0.0 if self.kind == "removed" else 1.0
        for j, value in enumerate(self.everything):
            rows.append(("everything", whole, j, 0, value))
        each = {name: v[..., np.newaxis] for name, v in self.values.items()}
        for name, values in {**each, RANDOM: self.random_each}.items():
            for (i, j, draw), value in np.ndenumerate(values):
                rows.append((name, self.shares[i], j, draw, value))
        columns = ["scores", "share", "seed", "draw", self.metric]
        return pd.DataFrame(rows, columns=columns)


def _half_interval(values: np.ndarray) -> np.ndarray:
    """Half of the 95% intervals of means over the last axis."""
    count = values.shape[-1]
    if count < 2:
        return np.full(values.shape[:-1], np.nan)
    error = values.std(axis=-1, ddof=1) / np.sqrt(count)
    return scipy.stats.t.ppf(0.975, count - 1) * error
