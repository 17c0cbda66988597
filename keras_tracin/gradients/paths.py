"""Which ways lead from a variable to the loss, read off a traced graph.

A layer's call is a range of the graph's operations. Its gradients can be taken
at what it returns if every differentiable way from its variables to the loss
goes through that; a tensor that the layer keeps on `self`, or returns in an
object that `tf.nest` does not look into, is another way. And the call can be
repeated for one example if it reads no tensor of examples but its arguments.

Synopsis:

    paths = Paths(graph, inputs=[x], ends=[losses])
    paths.leaves(span, handles, gates, returned)  # another way out?
    paths.enters(span, arguments)                 # another way in?
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Collection, Iterable, Sequence

import tensorflow as tf

Span = tuple[int, int]  # of operations, in the order that they were made in

# What lets no gradient through, though numbers go in and come out.
_BARRIERS = frozenset({"StopGradient", "PreventGradient"})
# What depends on the shape of a tensor, and not on the examples in it.
_SHAPES = frozenset({"Shape", "ShapeN", "Size", "Rank"})


class Paths:
    """A graph, looked through once.

    Args:
        graph: a `FuncGraph` that is complete.
        inputs: the tensors that hold the examples.
        ends: the tensors that are differentiated.
    """

    def __init__(
        self,
        graph: tf.Graph,
        inputs: Iterable[tf.Tensor],
        ends: Iterable[tf.Tensor],
    ):
        self._operations = graph.get_operations()
        self._places = {op.name: at for at, op in enumerate(self._operations)}
        self._captured = {
            id(outer): inner.name for outer, inner in graph.captures
        }
        self._inputs = [tensor.name for tensor in inputs]
        self._ends = [tensor.name for tensor in ends]
        self._sources = [list(op.inputs) for op in self._operations]
        self._consumers: dict[str, list[int]] = collections.defaultdict(list)
        for at, tensors in enumerate(self._sources):
            for tensor in tensors:
                self._consumers[tensor.name].append(at)

    def reads(self, span: Span, handles: Iterable[tf.Tensor]) -> bool:
        """Whether the ends have a gradient by a variable that is read there.

        Args:
            span: a range of operations.
            handles: those of the variable.
        """
        return bool(self._readers(span, handles))

    def leaves(
        self,
        span: Span,
        handles: Iterable[tf.Tensor],
        gates: Collection[str],
        returned: Collection[str],
    ) -> bool:
        """Whether a way from a variable to the ends passes the gates by.

        Args:
            span: the operations of a call, in which the variable is read.
            handles: those of the variable.
            gates: names of operations that gradients are taken at.
            returned: names of tensors that will be made gates of.
        """
        start, stop = span
        seen = set(self._readers(span, handles)) - self._at(gates)
        waiting = list(seen)
        barred = self._at(gates)
        while waiting:
            for tensor in self._operations[waiting.pop()].outputs:
                if not _carries_gradients(tensor) or tensor.name in returned:
                    continue
                if tensor.name in self._ends:
                    return True
                for at in self._consumers[tensor.name]:
                    if at in seen or at in barred or at not in self._useful:
                        continue
                    if not start <= at < stop:
                        return True
                    seen.add(at)
                    waiting.append(at)
        return False

    def enters(self, span: Span, arguments: Collection[str]) -> bool:
        """Whether a call reads examples that are not among its arguments.

        Args:
            span: the operations of the call.
            arguments: names of the tensors that the call was given.
        """
        start, stop = span
        return any(
            tensor.name not in arguments
            and self._places[tensor.op.name] < start
            and self._places[tensor.op.name] in self._on_examples
            for at in range(start, stop)
            if at in self._needed
            for tensor in self._sources[at]
        )

    def kinds(self, span: Span) -> set[str]:
        """The types of a range's operations."""
        return {op.type for op in self._operations[slice(*span)]}

    def uses(self, handles: Iterable[tf.Tensor]) -> bool:
        """Whether the values of the ends depend on a variable.

        Args:
            handles: those of the variable.
        """
        return any(at in self._needed for at in self._consumers_of(handles))

    def _readers(
        self, span: Span, handles: Iterable[tf.Tensor]
    ) -> Iterable[int]:
        return [
            at
            for at in self._consumers_of(handles)
            if span[0] <= at < span[1] and at in self._useful
        ]

    def _consumers_of(self, handles: Iterable[tf.Tensor]) -> Iterable[int]:
        captured = (self._captured.get(id(handle)) for handle in handles)
        return [
            at
            for name in captured
            if name is not None
            for at in self._consumers[name]
        ]

    def _at(self, names: Iterable[str]) -> set[int]:
        return {self._places[name] for name in names}

    @functools.cached_property
    def _useful(self) -> set[int]:
        """Operations with a differentiable way to the ends."""
        return self._before(_carries_gradients, _BARRIERS)

    @functools.cached_property
    def _needed(self) -> set[int]:
        """Operations that the values of the ends depend on."""
        return self._before(lambda tensor: True, frozenset())

    def _before(
        self, follows: Callable[[tf.Tensor], bool], barriers: frozenset[str]
    ) -> set[int]:
        ends = [name.rpartition(":")[0] for name in self._ends]
        seen = self._at(ends)
        waiting = list(seen)
        while waiting:
            at = waiting.pop()
            if self._operations[at].type in barriers:
                seen.discard(at)
                continue
            for tensor in filter(follows, self._sources[at]):
                place = self._places[tensor.op.name]
                if place not in seen:
                    seen.add(place)
                    waiting.append(place)
        return seen

    @functools.cached_property
    def _on_examples(self) -> set[int]:
        """Operations whose results depend on the examples."""
        names = [name.rpartition(":")[0] for name in self._inputs]
        seen = self._at(names)
        waiting = list(seen)
        while waiting:
            for tensor in self._operations[waiting.pop()].outputs:
                for at in self._consumers[tensor.name]:
                    if at in seen or self._operations[at].type in _SHAPES:
                        continue
                    seen.add(at)
                    waiting.append(at)
        return seen


def handles_of(value: tf.Variable) -> Sequence[tf.Tensor]:
    """The handles of a variable; of one on several replicas, each one's."""
    return [part.handle for part in parts_of(value)]


def parts_of(value: tf.Variable) -> Sequence[tf.Variable]:
    """The variable; of one on several replicas, each one's."""
    return getattr(value, "values", (value,))


def _carries_gradients(tensor: tf.Tensor) -> bool:
    dtype = tensor.dtype
    return (
        dtype.is_floating
        or dtype.is_complex
        or dtype in (tf.variant, tf.resource)
    )
