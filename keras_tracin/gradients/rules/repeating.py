"""Repeats a computation for every example of a batch.

If possible, `tf.vectorized_map` converts it to operations on whole batches.
What it cannot convert, mainly some loops, is repeated for one example after
another, with a warning, since that is slow.

Synopsis:

    rows = repeat(function, examples, specs, "layer 'scan' (Scanning)")
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from keras_tracin.models.loops import unfinished_loops

# Operations of control flow and calls. That they cannot be converted may show
# only when half of the operations are in the graph already.
NESTED = frozenset(
    {
        "Case",
        "EagerPyFunc",
        "If",
        "PartitionedCall",
        "PyFunc",
        "StatefulPartitionedCall",
        "StatelessCase",
        "StatelessIf",
        "StatelessWhile",
        "While",
    }
)
_FAILURES = (
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
    tf.errors.OpError,
)
_BY_LOOP = re.compile(r"Using a while_loop for converting (\w+)")


def repeat(
    function: Callable[[Any], list[tf.Tensor]],
    examples: Any,
    specs: Sequence[tf.TensorSpec],
    subject: str,
    *,
    nested: bool = False,
    in_turn: bool = False,
) -> list[tf.Tensor]:
    """Applies `function` to each example, vectorized if possible, `[n, ...]`.

    Args:
        function: function of one example.
        examples: a nest of tensors `[n, ...]`.
        specs: types of the function's results.
        subject: description of the computation, for warnings.
        nested: True if it has control flow or calls; see `NESTED`.
        in_turn: If true, examples are taken one after another, without a
            warning.

    Raises:
        ValueError: or whatever else the function raises.
    """
    with unfinished_loops():
        return _repeat(function, examples, specs, subject, nested, in_turn)


def _repeat(
    function, examples, specs, subject, nested, in_turn
) -> list[tf.Tensor]:
    if in_turn:
        return _in_turn(function, examples, specs)
    failure: Exception | None = None
    with _quiet() as messages:
        try:
            if nested:
                # A failure half-way would leave operations in the graph.
                graph = tf.__internal__.FuncGraph("rehearsal")
                with graph.as_default():
                    tf.vectorized_map(function, examples)
                messages.clear()
            results = tf.vectorized_map(function, examples)
        except _FAILURES as error:
            failure = error
            results = _in_turn(function, examples, specs)
    matches = map(_BY_LOOP.match, messages)
    by_loop = [match[1] for match in matches if match]
    if failure is not None:
        _warn(f"{subject} is")
    elif by_loop:
        operations = ", ".join(dict.fromkeys(by_loop))
        _warn(f"In {subject}, the operations {operations} are")
    return results


def _in_turn(function, examples, specs) -> list[tf.Tensor]:
    return tf.map_fn(function, examples, fn_output_signature=list(specs))


def _warn(what: str) -> None:
    warnings.warn(
        f"{what[0].upper()}{what[1:]} computed for one example after another, "
        "which is slow: `tf.vectorized_map` cannot convert it to operations on "
        "all examples. The results are right.",
        stacklevel=2,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """For a `with` block, catches TensorFlow's log messages of this thread."""
    messages: list[str] = []
    thread = threading.get_ident()

    def catch(record: logging.LogRecord) -> bool:
        if record.thread != thread:
            return True
        messages.append(record.getMessage())
        return False

    logger = tf.get_logger()
    logger.addFilter(catch)
    try:
        yield messages
    finally:
        logger.removeFilter(catch)
