"""What a compiled step needs in memory, read off its trace.

Synopsis:

    found = footprint(functions.products)
    batch_size = memory // found.peak
"""

from __future__ import annotations

import dataclasses

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


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes per example of the tensors a compiled step makes.

    Attributes:
        peak: of those that exist at the same time, at most, if operations
            run in the order of the trace and free what none after them reads.
        largest: of the largest.
    """

    peak: int
    largest: int


def footprint(step) -> Footprint:
    """The footprint of a `tf.function` that has one trace.

    Tensors count where their first dimension is the batch's, the only one
    that the trace leaves open. What happens inside loops and nested functions
    is not seen, only what comes out.
    """
    graph = step.get_concrete_function().graph
    operations = graph.get_operations()
    buffers = _Buffers()
    for at, operation in enumerate(operations):
        buffers.add(operation, at)
    for output in graph.outputs:
        buffers.keep(output, len(operations))
    return Footprint(buffers.peak(len(operations)), buffers.largest)


class _Buffers:
    """The spans of operations over which each piece of memory is needed."""

    def __init__(self):
        self._owner: dict = {}  # tensor: the tensor whose memory it is
        self._spans: dict = {}  # owner: [bytes, made at, last read at]

    def add(self, operation: tf.Operation, at: int) -> None:
        for tensor in operation.inputs:
            self.keep(tensor, at)
        aliases = zip(operation.outputs, operation.inputs, strict=False)
        if operation.type in _ALIASES:
            for output, source in aliases:
                self._owner[output.ref()] = self._owner.get(source.ref())
            return
        for output in operation.outputs:
            self._owner[output.ref()] = output.ref()
            self._spans[output.ref()] = [_bytes_per_example(output), at, at]

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
        for size, made, read in self._spans.values():
            changes[made] += size
            changes[read + 1] -= size
        live = highest = 0
        for change in changes:
            live += change
            highest = max(highest, live)
        return highest


def _bytes_per_example(tensor: tf.Tensor) -> int:
    shape = tensor.shape
    if not shape.rank or shape[0] is not None or None in shape[1:]:
        return 0
    return shape[1:].num_elements() * tensor.dtype.size
