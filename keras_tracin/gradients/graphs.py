"""What traces are made of, functions that they call included.

Synopsis:

    graph = function.get_concrete_function(*specs).graph
    for operation in all_operations(graph):
        called = called_graph(operation)   # None, but for a call
    has_loops(graph)
"""

from __future__ import annotations

from collections.abc import Iterator

import tensorflow as tf


def called_graph(operation: tf.Operation) -> tf.Graph | None:
    """The graph of the function that an operation calls once, if it does."""
    if not operation.type.endswith("PartitionedCall"):
        return None
    name = operation.get_attr("f").name
    return operation.graph._get_function(name).graph


def all_operations(graph: tf.Graph) -> Iterator[tf.Operation]:
    """The operations of a graph and of the functions that it calls."""
    for operation in graph.get_operations():
        yield operation
        called = called_graph(operation)
        if called is not None:
            yield from all_operations(called)


def has_loops(graph: tf.Graph) -> bool:
    """Whether something loops, in a graph or in a function that it calls."""
    return any(op.type.endswith("While") for op in all_operations(graph))
