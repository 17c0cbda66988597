"""Tracing of loops that may fail half-way.

Synopsis:

    with unfinished_loops():
        try:
            results = tf.map_fn(function, elements)
        except ValueError:
            ...  # something else is tried
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf


@contextlib.contextmanager
def unfinished_loops() -> Iterator[None]:
    """Cleans up after a `tf.map_fn` that fails in the block.

    TensorFlow leaves its caching device on the scope of variables, which
    functions share with what is around them, and then no strategy can be
    entered any more.
    """
    scope = tf.compat.v1.get_variable_scope()
    before = scope.caching_device
    try:
        yield
    finally:
        scope._caching_device = before  # its setter wants to be in a graph
