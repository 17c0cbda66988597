"""The memory that a compiled step needs, read off its trace.

Synopsis:

    needs = footprint(functions.products, num_queries=100)
    batch_size = (memory - needs.fixed) // needs.peak
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import tensorflow as tf

from keras_tracin.gradients.graphs import called_graph

# Their outputs are their inputs under another name or shape.
_ALIASES = {
    "EnsureShape",
    "ExpandDims",
    "Identity",
    "IdentityN",
    "PreventGradient",
    "Reshape",
    "Squeeze",
    "StopGradient",
}
# Their outputs are no larger than their inputs, whatever is known of a shape.
_REDUCTIONS = {"Max", "Mean", "Min", "Prod", "Sum"}


# Code and threads' buffers that come into memory with a first step, and buffers
# that convolutions unfold patches into, which have the size of a CPU's cache.
# Measured as the memory that plans without them lacked (benchmarks/README.md,
# "Plans").
_FIRST_STEP = 28 * 2**20
_CONVOLUTIONS = 72 * 2**20


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes that a compiled step takes beside its arguments.

    Attributes:
        peak: largest size of an example's tensors that exist at the same
            time, if operations run in the order of the trace and free what
            none after them reads.
        largest: size of an example's largest tensor.
        fixed: size of all that does not depend on the number of examples.
    """

    peak: int
    largest: int
    fixed: int = 0


def footprint(step, num_queries: int = 0) -> Footprint:
    """The footprint of a `tf.function` that has one trace.

    Tensors count where their first dimension is open, as the batch's is; a
    second open one is that of the queries. Functions that the step calls are
    looked into; of loops only what comes out is seen.

    Args:
        step: the compiled step.
        num_queries: number of queries that it is given.
    """
    graph = step.get_concrete_function().graph
    buffers = _Buffers(num_queries)
    buffers.keep(buffers.add(graph, {}))
    fixed = _FIRST_STEP + (_CONVOLUTIONS if buffers.convolve else 0)
    return Footprint(buffers.peak, buffers.largest, fixed)


@dataclasses.dataclass
class _Buffer:
    """A piece of memory and the operations over which it is needed.

    Attributes:
        size: bytes for an example.
        first: position of the operation that makes it.
        last: position of the last that reads it.
    """

    size: int
    first: int
    last: int


class _Buffers:
    """The memory that operations need, in the order in which they are added.

    Args:
        num_queries: number of queries that the step is given.

    Attributes:
        convolve: whether one of the operations is a convolution.
    """

    def __init__(self, num_queries: int):
        self.convolve = False
        self._num_queries = num_queries
        self._all: list[_Buffer] = []
        self._time = 0

    def add(
        self, graph: tf.Graph, held: dict[Any, _Buffer]
    ) -> list[_Buffer | None]:
        """Adds a graph's operations.

        Args:
            graph: a step's, or that of a function that it calls.
            held: what holds the tensors of the graph, by their references.
                Those of its arguments are there if they are counted.

        Returns:
            What holds each of the graph's results.
        """
        for operation in graph.get_operations():
            sources = [held.get(source.ref()) for source in operation.inputs]
            self.keep(sources)
            made = self._made(operation, sources)
            for tensor, buffer in zip(operation.outputs, made, strict=False):
                if buffer is not None:
                    held[tensor.ref()] = buffer
        return [held.get(output.ref()) for output in graph.outputs]

    def _made(
        self, operation: tf.Operation, sources: list[_Buffer | None]
    ) -> list[_Buffer | None]:
        """What holds an operation's results, given what holds its inputs."""
        called = called_graph(operation)
        if called is not None:
            arguments = zip(called.inputs, sources, strict=True)
            return self.add(
                called,
                {t.ref(): buffer for t, buffer in arguments if buffer},
            )
        self._time += 1
        self.convolve |= "Conv" in operation.type
        if operation.type == "Placeholder":
            return []  # an argument, which is there already
        if operation.type in _ALIASES:
            return sources
        sizes = [self._bytes_per_example(out) for out in operation.outputs]
        if operation.type in _REDUCTIONS:
            reduced = self._bytes_per_example(operation.inputs[0])
            sizes = [min(size, reduced) for size in sizes]
        made = [_Buffer(size, self._time, self._time) for size in sizes]
        self._all += made
        return list(made)

    def keep(self, buffers: list[_Buffer | None]) -> None:
        """Says that the next operation still needs what is held here."""
        for buffer in buffers:
            if buffer is not None:
                buffer.last = self._time + 1

    @property
    def largest(self) -> int:
        return max((buffer.size for buffer in self._all), default=0)

    @property
    def peak(self) -> int:
        changes = [0] * (self._time + 3)
        for buffer in self._all:
            changes[buffer.first] += buffer.size
            changes[buffer.last + 1] -= buffer.size
        return max(itertools.accumulate(changes))

    def _bytes_per_example(self, tensor: tf.Tensor) -> int:
        shape = tensor.shape
        if not shape.rank or shape[0] is not None:
            return 0
        rest = [self._num_queries if n is None else n for n in shape[1:]]
        return math.prod(rest) * tensor.dtype.size
