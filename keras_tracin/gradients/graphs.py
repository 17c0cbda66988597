"""What traces are made of, functions that they call included.

Synopsis:

    graph = function.get_concrete_function(*specs).graph
    for operation in graph.get_operations():
        called = called_graph(operation)   # None, but for a call
    has_loops(graph)
"""

from __future__ import annotations

import tensorflow as tf


def called_graph(operation: tf.Operation) -> tf.Graph | None:
    """The graph of the function that an operation calls once, if it does."""
    if not operation.type.endswith("PartitionedCall"):
        return None
    name = operation.get_attr("f").name
    return operation.graph._get_function(name).graph


def has_loops(graph: tf.Graph) -> bool:
    """Whether something loops, in a graph or in a function that it calls."""
    for operation in graph.get_operations():
        called = called_graph(operation)
        if operation.type.endswith("While") or (called and has_loops(called)):
            return True
    return False
