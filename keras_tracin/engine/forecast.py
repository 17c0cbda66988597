"""How long a call will take here, from a small part of its work.

Synopsis:

    print(forecast_plainly(scorer, rates, test))  # memory and time
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_tracin.data.preprocessing import open_for_model
from keras_tracin.engine.scoring import Queries, Rates, Scorer, nothing
from keras_tracin.engine.sweep import Plan
from keras_tracin.results import TopKMerger
from keras_tracin.runs import run_weights

_K = 10  # as in `top_k`
_REPEATS = 3
_RANKED = 64  # rows
_LONG = 1.0  # seconds after which a piece of work is not repeated


def forecast(
    scorer: Scorer,
    rates: Rates,
    step: Callable,
    test: Any = None,
    *,
    queries: Queries | None = None,
    prepare: Callable[..., Any] = nothing,
    held: int = 0,
) -> Plan:
    """What a call will do, what memory it needs, and how long it will take.

    A batch of training examples is read and scored, a block of queries
    prepared, and a checkpoint loaded, for real: a second or so, and longer
    for large models. The model gets its weights back.

    Args:
        scorer: the model and its training data.
        rates: the checkpoints to visit.
        step: as in `Scorer.sweep`.
        test: the queries; None for self-influence.
        queries: the first block of them.
        prepare: as in `Scorer.sweep`.
        held: as in `Scorer.sweep`.

    Returns:
        The plan of the first block, with the number of blocks and the time
        of all; without a time if the size of the data is not known.

    Raises:
        ValueError: if a step cannot take the data, naming the reason.
    """
    plan, blocks = scorer.plan(step, rates, queries, held), 1
    if queries is not None:
        total = open_for_model(scorer.model, test, "test").size
        blocks = math.ceil((total or 0) / len(queries.ids))
        plan = dataclasses.replace(
            plan,
            num_queries=total or plan.num_queries,
            num_blocks=max(1, blocks),
        )
    if not blocks or plan.num_train is None:
        return plan
    seconds = _per_block(scorer, rates, step, plan, queries, prepare)
    return dataclasses.replace(plan, seconds=blocks * seconds)


def forecast_plainly(scorer: Scorer, rates: Rates, test: Any = None) -> Plan:
    """The forecast for plain inner products, of queries or with itself."""
    if test is None:
        return forecast(scorer, rates, scorer.train_steps.squared_norms)
    queries = next(scorer.blocks(test))
    step = queries.steps.train.products
    return forecast(
        scorer, rates, step, test, queries=queries, prepare=queries.factors
    )


def _per_block(
    scorer: Scorer,
    rates: Rates,
    step: Callable,
    plan: Plan,
    queries: Queries | None,
    prepare: Callable[..., Any],
) -> float:
    assert plan.num_train is not None
    batch = scorer.train.first(plan.batch_size)
    reading = _seconds(lambda: scorer.train.first(plan.batch_size))
    reading -= _seconds(lambda: scorer.train.first(1))  # what opening takes
    checkpoint, rate = list(rates.items())[-1]
    position = () if scorer.projection is None else (np.int32(0),)
    starting = 0.0  # of a chunk at a checkpoint
    with run_weights(scorer.model) as load:
        if checkpoint is not None:
            starting += _seconds(lambda: load(checkpoint))
        with scorer.visiting(checkpoint), scorer.explaining(queries, batch):
            prepared = prepare(checkpoint, *position)
            extra = () if prepared is None else (prepared,)
            if extra:
                starting += _seconds(lambda: prepare(checkpoint, *position))

            def score() -> np.ndarray:
                rated = np.float32(rate)
                return step(batch.data, *extra, rated, *position).numpy()

            scores = score()
            scoring = _seconds(score)
    size = min(plan.chunk, plan.num_train)
    ranking = 0.0 if queries is None else _ranking(scores, size)
    batches = plan.num_train / len(batch)
    chunks = plan.num_train / size
    return (
        batches * (max(0.0, reading) + len(rates) * scoring)
        + math.ceil(chunks) * len(rates) * starting
        + chunks * ranking
    )


def _ranking(scores: np.ndarray, size: int) -> float:
    """What it takes to rank a chunk of `size` examples, from a batch's scores.

    A chunk is ranked at once, and row by row, so that some rows tell of all.
    """
    rows = scores[:_RANKED]
    chunk = np.take(rows, np.arange(size), axis=1, mode="wrap")
    merger = TopKMerger(np.arange(len(rows)), min(_K, size))
    taken = _seconds(lambda: merger.add(np.arange(size), chunk))
    return taken * len(scores) / len(rows)


def _seconds(work: Callable[[], Any]) -> float:
    """The median time of some work, whose first run may be the slowest."""
    times: list[float] = []
    while len(times) < _REPEATS and sum(times) < _LONG:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]
