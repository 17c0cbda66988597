"""Collects what passes measure at each checkpoint, by name.

Synopsis:

    columns = Columns({"loss": {"loss": None}}, num_checkpoints=5)
    work = forward.forward_pass("Losses", weights, columns.gather)
    sweep(engine, work, Sink(columns.add), Call())
    columns.ids, columns.arrays()            # [n], {"loss": [5, n], ...}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_tracin.data.batches import Batch
from keras_tracin.engine.chunks import Chunk
from keras_tracin.engine.visits import Visit

# Of each result, by its name: what is kept, by the name that it is kept under.
# None keeps it at each checkpoint, a number the mean over that many of them.
Keep = Mapping[str, Mapping[str, int | None]]


class Columns:
    """Collects results chunk by chunk, the examples along the last axis.

    Args:
        keep: what is kept, of the results in their order.
        num_checkpoints: number of checkpoints.
    """

    def __init__(self, keep: Keep, num_checkpoints: int):
        self._keep, self._count = keep, num_checkpoints
        self._ids: list[np.ndarray] = []
        self._parts: list[dict[str, np.ndarray]] = []

    def gather(self, chunk: Chunk) -> _Gathering:
        """Puts the results of a chunk together, for `Pass.gather`.

        Args:
            chunk: the examples.
        """
        return _Gathering(self._keep, self._count, len(chunk))

    def add(self, ids: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        """Takes the ids and results of a chunk."""
        self._ids.append(ids)
        self._parts.append(arrays)

    @property
    def ids(self) -> np.ndarray:
        """All ids, in reading order."""
        return np.concatenate(self._ids)

    def arrays(self) -> dict[str, np.ndarray]:
        """What is kept, by name: `[k, ..., n]` of each checkpoint, or means."""
        if len(self._parts) == 1:
            return self._parts[0]
        return {
            name: np.concatenate([part[name] for part in self._parts], -1)
            for name in self._parts[0]
        }


class _Gathering:
    """The results of one chunk.

    Args:
        keep: as in `Columns`.
        count: number of checkpoints.
        size: number of examples.
    """

    def __init__(self, keep: Keep, count: int, size: int):
        self._keep, self._count, self._size = keep, count, size
        self._arrays: dict[str, np.ndarray] = {}

    def add(self, visit: Visit, batch: Batch, rows: slice, values: Any) -> None:
        """Takes one batch's results."""
        values = values if isinstance(values, tuple) else (values,)
        for kept, value in zip(self._keep.values(), values, strict=True):
            for name, first in kept.items():
                self._put(name, first, int(visit.position), rows, value)

    def _put(
        self, name: str, first: int | None, at: int, rows: slice, value: Any
    ) -> None:
        """Puts one result where it is kept."""
        if name not in self._arrays:
            shape = (*value.shape[:-1], self._size)
            shape = shape if first is not None else (self._count, *shape)
            self._arrays[name] = np.zeros(shape, value.dtype)
        array = self._arrays[name]
        if first is None:
            array[at][..., rows] = value
        elif first == 1 and at == 0:
            array[..., rows] = value
        elif at < first:
            array[..., rows] += value / first

    def result(self) -> dict[str, np.ndarray]:
        """What is kept, by name."""
        return self._arrays
