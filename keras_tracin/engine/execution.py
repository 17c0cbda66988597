"""The place where a computation runs, and its limits.

Synopsis:

    execution = Execution(memory_limit=2**30)
    execution.memory                               # bytes that may be used
    dataclasses.replace(execution, batch_sizes=(4, 4))
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from keras_tracin.engine.distribution import Strategy
from keras_tracin.gradients import compiling


@dataclasses.dataclass(frozen=True)
class Execution:
    """The place where a computation runs, and its limits.

    Attributes:
        strategy: `tf.distribute.Strategy` that each step is spread over.
        jit_compile: whether XLA compiles the steps.
        memory_limit: bytes the computation may use, beside the data; half of
            what is free by default.
        batch_sizes: smallest and largest number of training examples in a
            step. Smaller batches leave the cores idle between many short
            steps; larger ones brought nothing on a CPU, or took longer, and
            take more memory.
        largest_step: bytes of all tensors of a step that exist at the same
            time.
        largest_tensor: bytes of a step's largest tensor.
        query_batch: largest number of queries whose gradients are made in one
            step.
        shard: bytes of rows in a shard of an index, about.
    """

    strategy: Strategy | None = None
    jit_compile: bool = False
    memory_limit: int | None = None
    batch_sizes: tuple[int, int] = (16, 1024)
    largest_step: int = 256 * 2**20
    largest_tensor: int = 64 * 2**20
    query_batch: int = 128
    shard: int = 64 * 2**20

    @classmethod
    def of(
        cls,
        strategy: Strategy | None = None,
        jit_compile: bool | str = "auto",
        memory_limit: int | None = None,
    ) -> Execution:
        """The execution that a method's own arguments describe.

        Args:
            strategy: as in `TracIn`.
            jit_compile: as in `TracIn`: True, False or "auto".
            memory_limit: as in `TracIn`.

        Raises:
            ValueError: if `jit_compile` is anything else.
        """
        return cls(
            strategy, compiling.should_compile(jit_compile), memory_limit
        )

    @property
    def memory(self) -> int:
        """Number of bytes that may be used now."""
        return self.memory_limit or default_memory_limit()

    def within(self, **limits: Any) -> Execution:
        """The same within other limits.

        Args:
            **limits: `memory_limit`, `batch_sizes`, `largest_step`,
                `largest_tensor`, `query_batch` or `shard`.

        Raises:
            TypeError: for anything that compiled steps depend on.
        """
        fixed = {"strategy", "jit_compile"} & limits.keys()
        if fixed:
            raise TypeError(
                f"Compiled steps depend on {sorted(fixed)}. Received a change "
                "of them; make another method."
            )
        return dataclasses.replace(self, **limits)


def default_memory_limit() -> int:
    """Half of the memory that is free now, in bytes."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 2 * 2**30
    return free // 2
