"""The pass over checkpoints and training batches that every score needs.

Training examples are read once, in chunks that fit memory. Each checkpoint's
weights are put into the model once per chunk (as a rule there is one chunk),
and all checkpoints of a chunk are put together before anybody ranks anything.
This is the only loop over checkpoints × batches; what goes wrong in it is
noticed and explained here.

Synopsis:

    scores = products_pass("TracIn", queries, weights)
    print(plan_pass(engine, scores))
    sweep(engine, scores, Sink(columns.add), call)
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch
from keras_tracin.data.preprocessing import announce
from keras_tracin.engine.call import Call
from keras_tracin.engine.chunks import Chunk, Sink, read_chunks
from keras_tracin.engine.diagnosis import explaining
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.footprint import footprint
from keras_tracin.engine.looking import look
from keras_tracin.engine.passes import Pass
from keras_tracin.engine.planning import Plan, make_plan
from keras_tracin.engine.progress import Progress
from keras_tracin.engine.spot_checks import SpotChecks
from keras_tracin.engine.underflow import UnderflowWatch
from keras_tracin.engine.visits import Visit, Weights
from keras_tracin.gradients.flat import nbytes
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.runs import run_weights

_HELD = 2**24  # bytes of results that are left where they were computed


@exclusive_access
def sweep(
    engine: Engine,
    work: Pass,
    sink: Sink,
    call: Call,
    *,
    chunks: Iterable[Chunk] | None = None,
    plan: Plan | None = None,
) -> None:
    """Runs a compiled step at all weights, for all training examples.

    The model gets its own weights back however this ends.

    Args:
        engine: the model and its training examples.
        work: the pass to run.
        sink: takes each chunk's ids `[c]` and its gathered results `[..., c]`.
        call: the call that the pass is part of.
        chunks: the training examples, where they are not the call's, or the
            engine's own in the chunks of the plan.
        plan: the sizes of batches and chunks; by default those that fit
            memory and that all processes of the call have agreed on.

    Raises:
        ValueError: if a result is NaN or infinite, naming the weights, the
            layer and the ids.
    """
    if call.verbose:
        announce(engine.model, engine.train)
    if plan is None:
        plan = call.cut(plan_pass(engine, work))
    if chunks is None and call.chunk is not None:
        chunks = [call.chunk]
    elif chunks is None:
        chunks = read_chunks(engine.train, plan.batch_size, plan.chunk)
    _warn_of_weights(engine, plan, call)
    progress = Progress(plan, call.verbose, work.title)
    runner = _Runner(engine, work, plan, call)
    visits = work.visits(projects=engine.projection is not None)
    try:
        with run_weights(engine.model) as load:
            for chunk in chunks:
                if not sink.wants(chunk):
                    progress.advance(len(chunk.batches) * len(visits))
                    continue
                gathering = work.gather(chunk)
                for visit in visits:
                    if visit.checkpoint is not None:
                        load(visit.checkpoint)
                    arguments = runner.arrive(visit)
                    for batch, rows, values in runner.results(
                        visit, chunk, arguments
                    ):
                        gathering.add(visit, batch, rows, values)
                        progress.advance()
                    del arguments  # before the next weights are read
                gathered = work.rescale(gathering.result(), chunk)
                del gathering
                sink.add(chunk.ids, gathered)
                del gathered  # before the next chunk's are made
        progress.finish()
    finally:
        engine.updated.leave()


def plan_pass(engine: Engine, work: Pass) -> Plan:
    """The batches and chunks of a pass, and what it will need."""
    weights, loading = _bytes_of_loans(engine, work.weights)
    num_queries = bytes_per_query = query_batch = 0
    sparing = False
    queries = work.queries
    if queries is not None:
        num_queries = len(queries.ids)
        if queries.held is None:
            bytes_per_query = queries.steps.query.factor_bytes
        else:
            bytes_per_query = queries.held // 2  # of all its copies
        query_batch = max(map(len, queries.batches))
        sparing = queries.steps.query.sparing
    plan = make_plan(
        engine.train,
        num_queries=num_queries,
        num_checkpoints=len(work.weights),
        footprint=footprint(work.step, num_queries),
        bytes_per_query=bytes_per_query,
        execution=engine.execution,
        query_batch=query_batch,
        weights=weights,
        loading=loading,
        prepared=work.held,
        gathered=work.gathered,
    )
    return dataclasses.replace(plan, sparing=sparing)


def _bytes_of_loans(engine: Engine, weights: Weights) -> tuple[int, int]:
    """Bytes held of weights in a sweep, and more while some are loaded."""
    if all(checkpoint is None for checkpoint in weights):
        return 0, 0
    sizes = [nbytes(v.value) for v in engine.model.variables]
    # An array of a file is held twice as it becomes a tensor.
    return sum(sizes), 2 * max(sizes)


def _warn_of_weights(engine: Engine, plan: Plan, call: Call) -> None:
    """Says that copies of the weights exceed the limit."""
    limit = engine.execution.memory_limit
    if limit is None or plan.weights <= limit:
        return
    call.warn(
        "weights",
        f"Received memory_limit={limit:,} bytes, but {plan.weights:,} are "
        "needed for weights alone, whatever the limit: the model's own, while "
        "it is lent those of checkpoints, and with `optimizer_aware=True` the "
        "state of its optimizer. In all this takes about "
        f"{plan.memory / 2**20:,.0f} MB; `layers=` makes it no less.",
    )


class _Runner:
    """Runs a pass's step, and notices what goes wrong.

    Args:
        engine: the model and its training examples.
        work: the pass.
        plan: the sizes of batches and chunks.
        call: the call that it is part of.
    """

    def __init__(self, engine: Engine, work: Pass, plan: Plan, call: Call):
        self._engine, self._work = engine, work
        # XLA compiles for each size: the last batch is made like the others.
        self._size = None
        if engine.execution.jit_compile:
            known = plan.num_train or plan.batch_size
            self._size = min(plan.batch_size, known)
        self._spots = SpotChecks(
            engine.model, engine.loss, engine.execution.jit_compile
        )
        self._watch = UnderflowWatch(engine, work.queries, call)

    def arrive(self, visit: Visit) -> tuple:
        """Makes the step's arguments, with a checkpoint's weights in place."""
        engine, work = self._engine, self._work
        if work.gradients:
            look(engine, work.queries, self._size)
        engine.updated.visit(visit.checkpoint)
        with engine.explaining(engine.like, work.queries):
            return work.arguments(visit, work.prepare(visit))

    def results(
        self, visit: Visit, chunk: Chunk, arguments: tuple
    ) -> Iterator[tuple[Batch, slice, Any]]:
        """The results of a chunk's batches: arrays `[..., b]`, or several.

        They stay where they were computed until a few MB have come together,
        so that an accelerator goes on while the host reads nothing.

        Args:
            visit: the checkpoint whose weights the model has.
            chunk: the examples.
            arguments: the step's arguments, as `arrive` makes them.

        Yields:
            Each batch, its rows in the chunk, and its results.
        """
        recall = self._work.recall
        started: collections.deque[_Started] = collections.deque()
        held = stop = 0
        for number, batch in enumerate(chunk.batches):
            start, stop = stop, stop + len(batch)
            rows = slice(start, stop)
            if recall is not None:
                yield batch, rows, recall(visit, chunk, rows, arguments)
                continue
            result = self._run(batch, arguments)
            held += sum(map(nbytes, tf.nest.flatten(result)))
            started.append(_Started(number, batch, rows, result))
            del result  # so that each is freed once it is read
            if held >= _HELD or stop == len(chunk):
                held = 0
                while started:
                    yield self._read(visit, arguments, started.popleft())

    def _run(self, batch: Batch, arguments: tuple) -> Any:
        """Starts the step for a batch."""
        with explaining(self._engine.suspects(batch, self._work.queries)):
            return self._work.step(self._fill(batch.data), *arguments)

    def _read(
        self, visit: Visit, arguments: tuple, started: _Started
    ) -> tuple[Batch, slice, Any]:
        """A batch, its rows and its results, once they were looked at.

        Args:
            visit: the checkpoint whose weights the model has.
            arguments: the step's arguments.
            started: the batch.
        """
        engine, work = self._engine, self._work
        batch, raw = started.batch, started.result
        suspects = engine.suspects(batch, work.queries)
        with explaining(suspects):
            values = _first(work.finish(raw), len(batch))
        if not all(np.isfinite(array).all() for array in _arrays(values)):
            raise engine.not_finite(batch, work.queries, visit.checkpoint)
        if work.scores:
            with explaining(suspects):
                self._watch.look(values, batch, float(visit.rate))
        number = started.number
        if visit.position == 0 and self._spots.wants(number):
            compare = work.compared or work.finish

            def again(alone: Any) -> np.ndarray:
                return compare(work.step(self._fill(alone), *arguments))

            compared = compare(raw)[..., : len(batch)]
            self._spots.look(number, batch, compared, again)
        return batch, started.rows, values

    def _fill(self, data: Any) -> Any:
        """A batch's data, where XLA compiles with its last example repeated."""
        if self._size is None:
            return data
        missing = max(0, self._size - len(tf.nest.flatten(data)[0]))
        return tf.nest.map_structure(
            lambda leaf: np.concatenate(
                [np.asarray(leaf), np.repeat(np.asarray(leaf)[-1:], missing, 0)]
            ),
            data,
        )


@dataclasses.dataclass(frozen=True)
class _Started:
    """A batch whose step was started.

    Attributes:
        number: the batch's place in its chunk.
        batch: the examples.
        rows: their rows in the chunk.
        result: what the step returned, not read yet.
    """

    number: int
    batch: Batch
    rows: slice
    result: Any


def _arrays(values: Any) -> tuple:
    return values if isinstance(values, tuple) else (values,)


def _first(values: Any, count: int) -> Any:
    """The first `count` examples, along the last axis of each array."""
    if isinstance(values, tuple):
        return tuple(array[..., :count] for array in values)
    return values[..., :count]
