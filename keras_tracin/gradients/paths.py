"""Paths from variables to the loss in a traced graph.

A layer's call is a range of the graph's operations. Its gradients can be taken
at its outputs if every differentiable path from its variables to the loss goes
through them; a tensor that the layer stores on `self`, or returns in an object
that `tf.nest` does not look into, opens another path. And the call can be
repeated for one example if its arguments are the only tensors of examples that
it reads.

Synopsis:

    paths = Paths(graph, inputs=[x], ends=[losses])
    paths.leaves(span, handles, gates, returned)  # another path out?
    paths.enters(span, arguments)                 # another path in?
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Collection, Iterable, Sequence

import tensorflow as tf

Span = tuple[int, int]  # of operations, in the order of their creation

# Types of operations that stop gradients.
_BARRIERS = frozenset({"StopGradient", "PreventGradient"})
# Types of operations that depend on shapes, not on values.
_SHAPES = frozenset({"Shape", "ShapeN", "Size", "Rank"})


class Paths:
    """The paths in a graph.

    Args:
        graph: a complete `FuncGraph`.
        inputs: tensors of the examples.
        ends: tensors that are differentiated.
    """

    def __init__(
        self,
        graph: tf.Graph,
        inputs: Iterable[tf.Tensor],
        ends: Iterable[tf.Tensor],
    ):
        self._operations = graph.get_operations()
        self._index_of = {op.name: i for i, op in enumerate(self._operations)}
        self._captured = {
            id(outer): inner.name for outer, inner in graph.captures
        }
        self._inputs = [tensor.name for tensor in inputs]
        self._ends = [tensor.name for tensor in ends]
        self._sources = [list(op.inputs) for op in self._operations]
        self._consumers: dict[str, list[int]] = collections.defaultdict(list)
        for i, tensors in enumerate(self._sources):
            for tensor in tensors:
                self._consumers[tensor.name].append(i)

    def reads(self, span: Span, handles: Iterable[tf.Tensor]) -> bool:
        """Whether a range of operations reads a variable differentiably.

        Args:
            span: the range of operations.
            handles: handles of the variable.
        """
        return bool(self._readers(span, handles))

    def leaves(
        self,
        span: Span,
        handles: Iterable[tf.Tensor],
        gates: Collection[str],
        returned: Collection[str],
    ) -> bool:
        """Whether a path from a variable to the ends avoids the gates.

        Args:
            span: range of operations of a call that reads the variable.
            handles: handles of the variable.
            gates: names of operations at which gradients are taken.
            returned: names of tensors that will be gates.
        """
        start, stop = span
        visited = set(self._readers(span, handles)) - self._indices(gates)
        waiting = list(visited)
        barred = self._indices(gates)
        while waiting:
            for tensor in self._operations[waiting.pop()].outputs:
                if not _carries_gradients(tensor) or tensor.name in returned:
                    continue
                if tensor.name in self._ends:
                    return True
                for i in self._consumers[tensor.name]:
                    if i in visited or i in barred or i not in self._useful:
                        continue
                    if not start <= i < stop:
                        return True
                    visited.add(i)
                    waiting.append(i)
        return False

    def enters(self, span: Span, arguments: Collection[str]) -> bool:
        """Whether a call reads examples that are not among its arguments.

        Args:
            span: range of operations of the call.
            arguments: names of tensors among the arguments of the call.
        """
        start, stop = span
        return any(
            tensor.name not in arguments
            and self._index_of[tensor.op.name] < start
            and self._index_of[tensor.op.name] in self._on_examples
            for i in range(start, stop)
            if i in self._needed
            for tensor in self._sources[i]
        )

    def kinds(self, span: Span) -> set[str]:
        """Types of the operations in a range."""
        return {op.type for op in self._operations[slice(*span)]}

    def uses(self, handles: Iterable[tf.Tensor]) -> bool:
        """Whether the values of the ends depend on a variable.

        Args:
            handles: handles of the variable.
        """
        return any(i in self._needed for i in self._consumers_of(handles))

    def _readers(
        self, span: Span, handles: Iterable[tf.Tensor]
    ) -> Iterable[int]:
        return [
            i
            for i in self._consumers_of(handles)
            if span[0] <= i < span[1] and i in self._useful
        ]

    def _consumers_of(self, handles: Iterable[tf.Tensor]) -> Iterable[int]:
        captured = (self._captured.get(id(handle)) for handle in handles)
        return [
            i
            for name in captured
            if name is not None
            for i in self._consumers[name]
        ]

    def _indices(self, names: Iterable[str]) -> set[int]:
        return {self._index_of[name] for name in names}

    @functools.cached_property
    def _useful(self) -> set[int]:
        """Operations with a differentiable path to the ends."""
        return self._before(_carries_gradients, _BARRIERS)

    @functools.cached_property
    def _needed(self) -> set[int]:
        """Operations that the values of the ends depend on."""
        return self._before(lambda tensor: True, frozenset())

    def _before(
        self, follows: Callable[[tf.Tensor], bool], barriers: frozenset[str]
    ) -> set[int]:
        ends = [name.rpartition(":")[0] for name in self._ends]
        visited = self._indices(ends)
        waiting = list(visited)
        while waiting:
            i = waiting.pop()
            if self._operations[i].type in barriers:
                visited.discard(i)
                continue
            for tensor in filter(follows, self._sources[i]):
                j = self._index_of[tensor.op.name]
                if j not in visited:
                    visited.add(j)
                    waiting.append(j)
        return visited

    @functools.cached_property
    def _on_examples(self) -> set[int]:
        """Operations whose results depend on the examples."""
        names = [name.rpartition(":")[0] for name in self._inputs]
        visited = self._indices(names)
        waiting = list(visited)
        while waiting:
            for tensor in self._operations[waiting.pop()].outputs:
                for i in self._consumers[tensor.name]:
                    if i in visited or self._operations[i].type in _SHAPES:
                        continue
                    visited.add(i)
                    waiting.append(i)
        return visited


def handles_of(value: tf.Variable) -> Sequence[tf.Tensor]:
    """Handles of a variable, one for each replica."""
    return [part.handle for part in replicas_of(value)]


def replicas_of(value: tf.Variable) -> Sequence[tf.Variable]:
    """The variables of all replicas, or the variable itself."""
    return getattr(value, "values", (value,))


def _carries_gradients(tensor: tf.Tensor) -> bool:
    dtype = tensor.dtype
    return (
        dtype.is_floating
        or dtype.is_complex
        or dtype in (tf.variant, tf.resource)
    )
