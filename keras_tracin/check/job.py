"""A small part of the job, done: do examples mix, and how long will it take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.check.report import Finding
from keras_tracin.diagnosis import Suspect, not_finite
from keras_tracin.gradients.interaction import rounding
from keras_tracin.runs import Checkpoint
from keras_tracin.scoring import Queries, Rates, Scorer
from keras_tracin.sweep import Plan

_COMPARED = 4  # examples whose gradients are taken alone and together
_TIMED = 64  # at most, training examples in the batch that is timed
_REPEATS = 3


def compare_gradients(scorer: Scorer, where: str) -> Finding | None:
    """The gradient of an example alone, and of the same among others.

    Args:
        scorer: the model, with the weights to look at, and its training data.
        where: these weights in words.

    Raises:
        ValueError: if a gradient is NaN or infinite, naming the reason.
    """
    batch = scorer.train.first(_COMPARED)
    count = min(len(batch), _COMPARED)
    if count < 2:
        return None
    lengths = scorer.train_steps.squared_norms

    def of_rows(start: int, stop: int) -> np.ndarray:
        rows = tf.nest.map_structure(lambda leaf: leaf[start:stop], batch.data)
        return lengths(rows, np.float32(1)).numpy()

    together = of_rows(0, count)
    if not np.isfinite(together).all():
        suspect = Suspect("training", batch, scorer.train_steps)
        raise not_finite(scorer.model, [suspect], where)
    alone = np.concatenate([of_rows(i, i + 1) for i in range(count)])
    # Twice the rounding of a gradient, in a sum of many of them.
    tolerance = 10 * rounding(scorer.model)
    apart = ~np.isclose(
        alone, together, tolerance, tolerance * np.abs(together).max()
    )
    if not apart.any():
        return None
    row = int(np.flatnonzero(apart)[0])
    return Finding(
        "error",
        "job",
        "An example's gradient depends on the rest of its batch: the squared "
        f"length for id {batch.ids[row]} is {alone[row]:.6g} alone and "
        f"{together[row]:.6g} among {count}, expected the same.",
    )


def estimate(
    scorer: Scorer,
    rates: Rates,
    queries: Queries | None,
    num_queries: int | None,
    load: Callable[[Checkpoint], None],
) -> tuple[Plan, float | None]:
    """What the job will do, and how many seconds it will take here.

    Args:
        scorer: the model and its training data.
        rates: the checkpoints to visit.
        queries: the first block of queries; None for self-influence.
        num_queries: how many there are in all, if that is known.
        load: puts a checkpoint's weights into the model.

    Returns:
        The plan of the first block, and the time of all blocks; None if the
        size of the data is not known.
    """
    step, factors, blocks = scorer.train_steps.squared_norms, [], 1
    if queries is not None:
        step, factors = queries.steps.train.products, [queries.factors()]
        blocks = math.ceil((num_queries or 0) / len(queries.ids))
    plan = scorer.plan(step, rates, queries)
    batch = scorer.train.first(min(plan.batch_size, _TIMED))
    rate = np.float32(1)
    per_batch = _seconds(lambda: step(batch.data, *factors, rate).numpy())
    per_checkpoint = _seconds(queries.factors) if queries else 0.0
    checkpoint = next(iter(rates))
    if checkpoint is not None:
        per_checkpoint += _seconds(lambda: load(checkpoint))
    if not blocks or plan.num_train is None:
        return plan, None
    per_checkpoint += per_batch / len(batch) * plan.num_train
    return plan, blocks * len(rates) * per_checkpoint


def _seconds(work: Callable[[], Any]) -> float:
    """The median time of some work, after it was done once."""
    work()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[_REPEATS // 2]
