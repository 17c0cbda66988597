"""Faithfulness of representer points to the logits and to the model.

Synopsis:

    sweep = kt.sweep_l2(model, train, l2=(1e-1, 1e-2, 1e-3))
    print(sweep)                # a row for each λ
    points = kt.RepresenterPoints(model, train, l2=sweep.best())
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_tracin.engine.distribution import Strategy
from keras_tracin.methods.representer.decomposition import L2Points
from keras_tracin.methods.representer.problem import Problem, validate_l2
from keras_tracin.methods.representer.retune import retune
from keras_tracin.results.frames import pandas


@dataclasses.dataclass(frozen=True)
class Faithfulness:
    """Differences between representer points, logits and model.

    Attributes:
        residual: distance of the sum of the points from the weights of the
            layer they explain, as a share of their length. For a retuned layer
            this is its stationarity residual ‖∇J‖ / (2λ‖w2‖).
        gradient_ratio: ‖∇J‖ of the retuned layer, as a share of that of the
            layer before; None with `method="lje"`.
        agreement: the largest difference between the sum of the scores and
            the explained layer's logit, as a share of the largest logit.
        correlation: correlation of the logits that the points add up to with
            those of the user's model. Each example's mean over the classes,
            which a softmax ignores, is subtracted first.
    """

    residual: float
    gradient_ratio: float | None
    agreement: float
    correlation: float

    def __str__(self) -> str:
        ratio = (
            ""
            if self.gradient_ratio is None
            else f", gradient {self.gradient_ratio:.1e} of the initial"
        )
        return (
            f"residual {self.residual:.1e}{ratio}; sums of scores within "
            f"{self.agreement:.1e} of the logits; correlation with the "
            f"model's logits {self.correlation:.4f}"
        )


def compare(
    features: np.ndarray,
    *,
    original: np.ndarray,
    explained: np.ndarray,
    points: np.ndarray,
    gradient_ratio: float | None,
) -> Faithfulness:
    """Compares the logits of three last layers on the same features.

    Args:
        features: `[n, f]`.
        original: the user's weights, `[f, k]`.
        explained: the weights that the points decompose.
        points: the sum of the points.
        gradient_ratio: as in `Faithfulness`.
    """
    sums, logits = features @ points, features @ explained
    length = float(np.linalg.norm(explained))
    largest = np.abs(logits).max()
    return Faithfulness(
        residual=_share(float(np.linalg.norm(points - explained)), length),
        gradient_ratio=gradient_ratio,
        agreement=_share(np.abs(sums - logits).max(), largest),
        correlation=_correlation(sums, features @ original),
    )


def _share(value: float, whole: float) -> float:
    if whole == 0:
        return 0.0 if value == 0 else float("inf")
    return float(value / whole)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's, of class-centred logits `[n, k]`; NaN if any is constant."""
    centred = []
    for logits in (first, second):
        if logits.shape[1] > 1:
            logits = logits - logits.mean(axis=1, keepdims=True)
        centred.append(logits - logits.mean())
    a, b = centred
    scale = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.sum(a * b) / scale) if scale else float("nan")


@dataclasses.dataclass(frozen=True)
class L2Sweep:
    """Faithfulness of representer points for several λ.

    Attributes:
        l2: the values of λ, descending.
        rows: a `Faithfulness` for each.
    """

    l2: tuple[float, ...]
    rows: tuple[Faithfulness, ...]

    def best(self) -> float:
        """The λ with the highest correlation with the user's model."""
        correlations = [row.correlation for row in self.rows]
        return self.l2[int(np.nanargmax(correlations))]

    def to_dataframe(self):
        """A `pandas.DataFrame` with a row for each λ. Needs pandas."""
        pd = pandas()
        index = pd.Index(self.l2, name="l2")
        return pd.DataFrame(map(dataclasses.asdict, self.rows), index=index)

    def __str__(self) -> str:
        pairs = zip(self.l2, self.rows, strict=True)
        return "\n".join(f"λ = {l2:g}: {row}" for l2, row in pairs)


def sweep_l2(
    model: keras.Model,
    train: Any,
    l2: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4),
    *,
    layer: str | keras.Layer | None = None,
    loss: Any = None,
    strategy: Strategy | None = None,
    memory_limit: int | None = None,
    verbose: int = 1,
) -> L2Sweep:
    """Retunes the last layer for several λ, to choose among them.

    The representations are computed once. Retuning begins with the largest λ
    and continues for each λ from the weights for the one before.

    Args:
        model: as in `RepresenterPoints`, and so the arguments after `l2`.
        train: the training examples.
        l2: the values of λ to try, each above zero.
        layer: the Dense layer that makes the logits.
        loss: used in place of the compiled loss.
        strategy: a `tf.distribute.Strategy` under which the model was built.
        memory_limit: bytes the computation may use.
        verbose: 0 for silence.

    Raises:
        ValueError: if `l2` is empty; and as `RepresenterPoints`.
    """
    values = sorted(map(validate_l2, l2), reverse=True)
    if not values:
        raise ValueError("`l2` should hold at least one λ. Received none.")
    problem = Problem(
        model,
        train,
        layer=layer,
        loss=loss,
        strategy=strategy,
        memory_limit=memory_limit,
        verbose=verbose,
    )
    problem.represent(verbose)
    original = weights = problem.head.weights
    rows = []
    for value in values:
        objective = problem.objective(value)
        retuned = retune(objective, weights, reference=original)
        weights = retuned.weights
        rows.append(
            compare(
                problem.train.features,
                original=original,
                explained=weights,
                points=L2Points(objective, weights).total,
                gradient_ratio=retuned.gradient_ratio,
            )
        )
    return L2Sweep(tuple(values), tuple(rows))
