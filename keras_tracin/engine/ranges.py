"""Ranges of training examples, for the pieces of a job that run anywhere.

A piece is described by text and numbers, so that any process can run it: it
names the functions that make its method and read its examples.

Synopsis:

    method = imported("project.attribution:make_tracin")()
    examples = Ranges(method.engine, 1_281_167, "project.data:read")
    batches = examples.batches(1024, 2048, batch_size=128)
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import math
from collections.abc import Callable
from typing import Any

from keras_tracin.data.batches import Batch, Examples
from keras_tracin.data.preprocessing import open_for_model
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.steps import kind_of


def imported(name: str) -> Callable[..., Any]:
    """The function that "module:attribute" names.

    Raises:
        ValueError: if it names nothing that can be called.
    """
    module, _, attribute = name.partition(":")
    function = None
    if module and attribute:
        function = getattr(importlib.import_module(module), attribute, None)
    if not callable(function):
        raise ValueError(
            "A function is named as 'package.module:function'. Received: "
            f"{name!r}, where there is none."
        )
    return function


@dataclasses.dataclass(frozen=True)
class Ranges:
    """Training examples that are read from some place to another.

    Attributes:
        engine: the model and all of its training examples.
        num_examples: number of training examples; needed where the data does
            not tell, as with a dataset whose last batch is smaller.
        read: "module:attribute" of a function `(start, stop)` that returns
            those of the training examples, in reading order, in the form of
            the engine's own. Without it they are read from these, which takes
            a dataset from its beginning each time; arrays are cut.
    """

    engine: Engine
    num_examples: int | None
    read: str | None

    @property
    def count(self) -> int:
        """Number of training examples.

        Raises:
            ValueError: if it is not known, or is another one.
        """
        known, given = self.engine.train.size, self.num_examples
        count = known if given is None else given
        if count is None or (known is not None and known != count):
            raise ValueError(
                "`num_examples` should be the number of training examples, "
                "which is needed where the data does not tell it. Received: "
                f"{given}; the data says: {known}."
            )
        return count

    def batches(self, start: int, stop: int, batch_size: int) -> list[Batch]:
        """The examples from `start` to `stop`, as one process batches them.

        Args:
            start: the place of the first, a multiple of `batch_size`.
            stop: the place after the last.
            batch_size: number of examples in a batch.

        Raises:
            ValueError: if `read` returns something else, or shapes differ
                from batch to batch.
        """
        if self.read is None:
            chunk = list(
                itertools.islice(
                    self.engine.train.batches(batch_size),
                    start // batch_size,
                    math.ceil(stop / batch_size),
                )
            )
        else:
            examples = self._opened(imported(self.read)(start, stop))
            shift = 0 if examples.carries_ids else start
            chunk = [
                dataclasses.replace(batch, ids=shift + batch.ids)
                if shift
                else batch
                for batch in examples.batches(batch_size)
            ]
        _check_counts(chunk, start, stop, batch_size)
        return chunk

    def _opened(self, data: Any) -> Examples:
        examples = open_for_model(self.engine.model, data, "read")
        received = kind_of(examples.first(1).data)
        expected = kind_of(self.engine.train.first(1).data)
        if received != expected:
            raise ValueError(
                "`read` should return examples in the form of the method's "
                f"own. Received {received}, expected {expected}."
            )
        with_ids = self.engine.train.carries_ids
        if examples.carries_ids != with_ids:
            raise ValueError(
                "`read` should return examples in the form of the method's "
                f"own, {'with' if with_ids else 'without'} ids attached by "
                "`kt.with_ids`. Received examples "
                f"{'without' if with_ids else 'with'} them."
            )
        return examples


def _check_counts(
    chunk: list[Batch], start: int, stop: int, batch_size: int
) -> None:
    counts = [len(batch) for batch in chunk]
    if sum(counts) != stop - start:
        raise ValueError(
            f"Training examples {start:,} to {stop:,} were asked for. "
            f"Received {sum(counts):,} of them, expected {stop - start:,}. "
            "Look at `read` and `num_examples`."
        )
    if any(count != batch_size for count in counts[:-1]):
        raise ValueError(
            "Pieces need examples whose shapes the data tells, so that it can "
            "be cut anywhere. Received batches that differ: give the data's "
            "`element_spec` one shape, by padding or `tf.ensure_shape`."
        )
