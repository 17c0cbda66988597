"""The memory that a compiled step needs, read off its trace.

Synopsis:

    needs = footprint(functions.products, num_queries=100)
    batch_size = (memory - needs.fixed) // needs.peak
"""

from __future__ import annotations

import dataclasses
import math

import tensorflow as tf

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
    second open one is that of the queries. What happens inside loops and
    nested functions is not seen, only what comes out.

    Args:
        step: the compiled step.
        num_queries: number of queries that it is given.
    """
    graph = step.get_concrete_function().graph
    operations = graph.get_operations()
    buffers = _Buffers(num_queries)
    for at, operation in enumerate(operations):
        buffers.add(operation, at)
    for output in graph.outputs:
        buffers.keep(output, len(operations))
    fixed = _FIRST_STEP
    if any("Conv" in operation.type for operation in operations):
        fixed += _CONVOLUTIONS
    return Footprint(buffers.peak(len(operations)), buffers.largest, fixed)


class _Buffers:
    """The spans of operations over which each piece of memory is needed."""

    def __init__(self, num_queries: int):
        self._num_queries = num_queries
        self._owner: dict = {}  # tensor: the tensor whose memory it is
        self._spans: dict = {}  # owner: [bytes, first operation, last]

    def add(self, operation: tf.Operation, at: int) -> None:
        for tensor in operation.inputs:
            self.keep(tensor, at)
        aliases = zip(operation.outputs, operation.inputs, strict=False)
        if operation.type in _ALIASES:
            for output, source in aliases:
                self._owner[output.ref()] = self._owner.get(source.ref())
            return
        for output in operation.outputs:
            size = self._bytes_per_example(output)
            if operation.type == "Placeholder":
                size = 0  # an argument
            elif operation.type in _REDUCTIONS:
                reduced = self._bytes_per_example(operation.inputs[0])
                size = min(size, reduced)
            self._owner[output.ref()] = output.ref()
            self._spans[output.ref()] = [size, at, at]

    def keep(self, tensor: tf.Tensor, at: int) -> None:
        """Says that `tensor` is still needed at operation `at`."""
        owner = self._owner.get(tensor.ref())
        if owner is not None:
            self._spans[owner][2] = at

    @property
    def largest(self) -> int:
        return max((size for size, *_ in self._spans.values()), default=0)

    def peak(self, length: int) -> int:
        changes = [0] * (length + 2)
        for size, first, last in self._spans.values():
            changes[first] += size
            changes[last + 1] -= size
        live = highest = 0
        for change in changes:
            live += change
            highest = max(highest, live)
        return highest

    def _bytes_per_example(self, tensor: tf.Tensor) -> int:
        shape = tensor.shape
        if not shape.rank or shape[0] is not None:
            return 0
        rest = [self._num_queries if n is None else n for n in shape[1:]]
        return math.prod(rest) * tensor.dtype.size
