"""Collects what passes measure at each checkpoint, by name.

Synopsis:

    columns = Columns({"loss": "each", "given": "first"}, num_checkpoints=5)
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


class Columns:
    """Collects results chunk by chunk, the examples along the last axis.

    Args:
        keep: what is kept of the results at several checkpoints, by name and
            in the order of the results: "each", `[k, ..., n]`; "mean" or
            "first", `[..., n]`; or None for nothing.
        num_checkpoints: number of checkpoints.
    """

    def __init__(self, keep: Mapping[str, str | None], num_checkpoints: int):
        self._keep, self._count = dict(keep), num_checkpoints
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
        """All results that are kept, by name."""
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

    def __init__(self, keep: dict[str, str | None], count: int, size: int):
        self._keep, self._count, self._size = keep, count, size
        self._arrays: dict[str, np.ndarray] = {}

    def add(self, visit: Visit, batch: Batch, rows: slice, values: Any) -> None:
        """Takes one batch's results."""
        values = values if isinstance(values, tuple) else (values,)
        for (name, how), value in zip(self._keep.items(), values, strict=True):
            if how is None or (how == "first" and visit.position > 0):
                continue
            if name not in self._arrays:
                shape = (*value.shape[:-1], self._size)
                if how == "each":
                    shape = (self._count, *shape)
                self._arrays[name] = np.zeros(shape, value.dtype)
            if how == "each":
                self._arrays[name][visit.position][..., rows] = value
            elif how == "mean":
                self._arrays[name][..., rows] += value / self._count
            else:
                self._arrays[name][..., rows] = value

    def result(self) -> dict[str, np.ndarray]:
        """The arrays that are kept, by name."""
        return self._arrays
