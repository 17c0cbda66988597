"""The time that a call will take here, from a small part of its work.

Synopsis:

    scores = products_pass("TracIn", queries, weights)
    print(forecast(engine, scores, test))     # memory and time
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_tracin.data.preprocessing import open_for_model
from keras_tracin.engine.blocks import blocks
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.passes import (
    Pass,
    no_preparation,
    norms_pass,
    products_pass,
)
from keras_tracin.engine.planning import Plan
from keras_tracin.engine.sweep import plan_pass
from keras_tracin.engine.visits import Weights
from keras_tracin.results import TopKMerger
from keras_tracin.runs import run_weights

_K = 10  # as in `top_k`
_REPEATS = 3
_RANKED = 64  # rows
_LONG = 1.0  # seconds after which a piece of work is not repeated


def forecast(engine: Engine, work: Pass, test: Any = None) -> Plan:
    """The work of a call, the memory it needs, and the time it will take.

    A batch of training examples is read and scored, a block of queries
    prepared, and a checkpoint loaded, for real: a second or so, and longer
    for large models. The model gets its weights back.

    Args:
        engine: the model and its training examples.
        work: the pass of the first block of queries.
        test: all the queries; None for self-influence.

    Returns:
        The plan of the first block, with the number of blocks and the time
        of all; without a time if the size of the data is not known.

    Raises:
        ValueError: if a step cannot take the data, naming the reason.
    """
    plan, num_blocks = plan_pass(engine, work), 1
    if work.queries is not None:
        total = open_for_model(engine.model, test, "test").expected_size
        num_blocks = math.ceil((total or 0) / len(work.queries.ids))
        plan = dataclasses.replace(
            plan,
            num_queries=total or plan.num_queries,
            num_blocks=max(1, num_blocks),
        )
    if not num_blocks or plan.num_train is None:
        return plan
    seconds = num_blocks * _seconds_per_block(engine, work, plan)
    seconds *= work.repeated
    return dataclasses.replace(plan, seconds=seconds)


def forecast_plainly(
    engine: Engine, weights: Weights, test: Any = None
) -> Plan:
    """The forecast for inner products of gradients, as TracIn's.

    Args:
        engine: the model and its training examples.
        weights: the checkpoints to sum over.
        test: the queries; None for self-influence.
    """
    if test is None:
        steps = engine.train_steps
        return forecast(engine, norms_pass("TracIn", steps, weights))
    queries = next(blocks(engine, test))
    return forecast(engine, products_pass("TracIn", queries, weights), test)


def _seconds_per_block(engine: Engine, work: Pass, plan: Plan) -> float:
    assert plan.num_train is not None
    batch = engine.train.first(plan.batch_size)
    reading = _seconds(lambda: engine.train.first(plan.batch_size))
    reading -= _seconds(lambda: engine.train.first(1))  # what opening takes
    visits = work.visits(projects=engine.projection is not None)
    visit = visits[-1]
    starting = 0.0  # of a chunk at a checkpoint
    with run_weights(engine.model) as load:
        checkpoint = visit.checkpoint
        if checkpoint is not None:
            starting += _seconds(lambda: load(checkpoint))
        with (
            engine.updated.visiting(checkpoint),
            engine.explaining(batch, work.queries),
        ):
            prepared = work.prepare(visit)
            arguments = work.arguments(visit, prepared)
            if work.prepare is not no_preparation:
                starting += _seconds(lambda: work.prepare(visit))

            def score() -> np.ndarray:
                return work.finish(work.step(batch.data, *arguments))

            scores = score()
            scoring = _seconds(score)
    size = min(plan.chunk, plan.num_train)
    ranking = 0.0 if work.queries is None else _seconds_to_rank(scores, size)
    batches = plan.num_train / len(batch)
    chunks = plan.num_train / size
    return (
        batches * (max(0.0, reading) + len(visits) * scoring)
        + math.ceil(chunks) * len(visits) * starting
        + chunks * ranking
    )


def _seconds_to_rank(scores: np.ndarray, size: int) -> float:
    """The time to rank a chunk of `size` examples, from a batch's scores.

    A chunk is ranked at once, and row by row, so that the time of some rows
    tells that of all.
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
