"""Finished parts of a long call, kept in a directory until all are there.

A call cuts its work into parts: a block of queries × a chunk of training
examples each. Every part is one file, whole or absent. A call that was killed
goes on from what it had finished; several processes that share the directory
each do the parts of their own and wait for those of the others. A matrix of
scores is put together at the end, in a file that is mapped into memory.

    scores/digits/
      job.json               what is computed
      fingerprint.npz        numbers of what it is computed with
      block.json, chunk.json how it is cut
      part-0000-000003.npz   block 0 × chunk 3
      scores.npy, ids.npz    the matrix, once all parts are there
      matrix.json            digests of its parts and of scores.npy

Synopsis:

    parts = Parts.open(directory, {"call": "top_k", "k": 10}, worker=(0, 2))
    if parts.wants(block=0, chunk=3, digest="..."):
        parts.put(0, 3, digest="...", scores=..., ids=...)
    for arrays in parts.read(block=0, count=7):
        ...
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_tracin.engine.fingerprint import FILE_NAME as FINGERPRINT
from keras_tracin.engine.fingerprint import agree
from keras_tracin.engine.matrix import ScoreMatrix
from keras_tracin.engine.measures import Numbers
from keras_tracin.engine.planning import Plan
from keras_tracin.models.descriptions import difference
from keras_tracin.storage.arrays import load_arrays, save_arrays
from keras_tracin.storage.files import explain_full_disk
from keras_tracin.storage.sharing import (
    read_shared,
    wait_for_worker,
    write_first,
)

FORMAT_VERSION = 2

_PARTS = 16  # parts of a block for each worker
_FEWEST = 8  # batches in a chunk: each loads all checkpoints' weights anew


class Parts:
    """The finished parts of one call.

    Args:
        directory: directory that holds them.
        worker: this process's index, and the number of processes that share
            the work.
    """

    def __init__(self, directory: Path, worker: tuple[int, int]):
        self.directory = directory
        self._index, self._workers = worker
        self._digests: dict[str, str] = {}
        self._matrix = ScoreMatrix(directory)

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike,
        job: dict[str, Any],
        worker: tuple[int, int] = (0, 1),
    ) -> Parts:
        """The parts to go on with, or a new directory of them.

        Args:
            directory: directory that holds them.
            job: the computation, as JSON; the same for every call that goes
                on with it.
            worker: this process's index, and the number of processes that
                share the work.

        Raises:
            ValueError: if the directory holds parts of another call.
        """
        if Path(directory).is_file():
            raise ValueError(
                "`directory` should be a directory, which is made where there "
                f"is none. Received the file {directory}."
            )
        parts = cls(Path(directory), worker)
        job = {"format_version": FORMAT_VERSION, **job}
        # Of JSON's types, to compare; NumPy's numbers are none of them.
        text = json.dumps(job, default=lambda number: number.item())
        job = json.loads(text)
        recorded = parts.agree("job", job)
        version = recorded.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{directory} holds parts of another version of keras_tracin: "
                f"received format version {version!r}, expected "
                f"{FORMAT_VERSION}. Earlier ones do not say what losses and "
                "layers parts were made with. Choose another directory, or "
                "delete this one and call again."
            )
        unlike = difference(job, recorded)
        if unlike is not None:
            name, received, expected = unlike
            raise ValueError(
                f"{directory} holds parts of another call. Received "
                f"{name}={received!r}, expected {expected!r}. "
                "Choose another directory."
            )
        return parts

    def compare(self, numbers: Numbers, share: float) -> None:
        """Compares this call's numbers with those of the parts, or notes them.

        Args:
            numbers: numbers that the scores are made of, for a few examples;
                see `keras_tracin.engine.fingerprint`.
            share: largest difference, as a share of the largest number of
                each array.

        Raises:
            ValueError: if the parts were made of something else.
        """
        path = self.directory / FINGERPRINT
        # In this order: another process writes its parts after its numbers.
        begun = self._matrix.is_finished or any(
            self.directory.glob("part-*.npz")
        )
        if begun and not path.is_file():
            raise ValueError(
                f"{path} is missing, which says what the parts there were "
                "made of. Choose another directory, or delete this one and "
                "call again."
            )
        with self._making_room(path.name):
            agree(path, numbers, share)

    def agree(self, name: str, value: Any) -> Any:
        """The value of the first process, which may be this one.

        Args:
            name: the name of the value, and of its file.
            value: this process's own, as JSON.

        Raises:
            ValueError: if the file that holds it cannot be read.
        """
        path = self.directory / f"{name}.json"
        if not path.is_file():
            with self._making_room(path.name):
                write_first(path, json.dumps(value, indent=1))
        return read_shared(path)

    def cut(self, plan: Plan) -> Plan:
        """The plan with the batches and chunks of all calls and processes."""
        chunk = plan.chunk
        if plan.num_train is not None:
            share = math.ceil(plan.num_train / (_PARTS * self._workers))
            chunk = min(chunk, max(share, _FEWEST * plan.batch_size))
        batch_size, chunk = self.agree("chunk", [plan.batch_size, chunk])
        return dataclasses.replace(plan, batch_size=batch_size, chunk=chunk)

    def wants(self, block: int, chunk: int, digest: str) -> bool:
        """Whether a part is this process's to do, and not done yet.

        Args:
            block: the block of queries.
            chunk: the chunk of training examples.
            digest: digest of the part's queries and training examples.

        Raises:
            ValueError: if it was done with other data.
        """
        if chunk % self._workers != self._index:
            return False
        path = self._path(block, chunk)
        if self._matrix.is_finished:
            kept = self._matrix.part_digests.get(path.name)
        elif path.is_file():
            kept = str(_load(path)["digest"])
        else:
            return True
        if kept != digest:
            raise ValueError(
                f"{path} was made from other queries or training examples, or "
                "in another order. Choose another directory."
            )
        return False

    def put(self, block: int, chunk: int, digest: str, **arrays) -> None:
        """Keeps a part, or nothing of it if it cannot all be written.

        Raises:
            OSError: if the disk is full; what was kept before stays as it is.
        """
        path = self._path(block, chunk)
        needed = sum(np.asarray(array).nbytes for array in arrays.values())
        with self._making_room(path.name, needed):
            save_arrays(path, {"digest": np.array(digest), **arrays})

    def read(self, block: int, count: int) -> Iterator[dict[str, np.ndarray]]:
        """The arrays of a block's parts, in order; waits for other workers.

        Args:
            block: the block of queries.
            count: number of its parts.

        Raises:
            ValueError: if a part is damaged.
        """
        for chunk in range(count):
            path = self._path(block, chunk)
            self._wait_for(path, chunk % self._workers)
            arrays = _load(path)
            self._digests[path.name] = str(arrays.pop("digest"))
            yield arrays

    def matrix(
        self, query_ids: Sequence[np.ndarray], count: int
    ) -> dict[str, np.ndarray]:
        """All parts as one matrix, mapped into memory from its file.

        The parts are deleted once they are in it.

        Args:
            query_ids: the ids of each block's queries.
            count: number of chunks of each block.

        Returns:
            `scores [m, n]`, or with more axes where parts have them,
            `query_ids [m]` and `train_ids [n]`.

        Raises:
            OSError: if the disk has no room for it; the parts are kept.
            ValueError: if it is there, and is damaged, or of more or of fewer
                parts.
        """
        if not self._matrix.is_finished and self._index == 0:
            with self._making_room("the matrix of scores"):
                self._put_together(query_ids, count)
        self._wait_for(self._matrix.last_file, 0)
        names = {
            self._path(block, chunk).name
            for block in range(len(query_ids))
            for chunk in range(count)
        }
        return self._matrix.read(np.concatenate(query_ids), names)

    def _put_together(
        self, query_ids: Sequence[np.ndarray], count: int
    ) -> None:
        first: list[tuple] = []  # of the first block
        for arrays in self.read(0, count):
            scores = arrays["scores"]
            first.append((arrays["ids"], scores.dtype, scores.shape[2:]))
        train_ids = np.concatenate([ids for ids, _, _ in first])
        _, dtype, more = first[0]
        shape = (sum(map(len, query_ids)), len(train_ids), *more)
        self._matrix.write(
            shape,
            dtype,
            self._place(query_ids, count),
            np.concatenate(query_ids),
            train_ids,
            self._digests,
        )
        for name in self._digests:
            (self.directory / name).unlink()

    def _place(
        self, query_ids: Sequence[np.ndarray], count: int
    ) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """The scores of all parts, each with its rows and columns."""
        row = 0
        for block, ids in enumerate(query_ids):
            rows, column = slice(row, row + len(ids)), 0
            for arrays in self.read(block, count):
                scores = arrays["scores"]
                stop = column + scores.shape[1]
                yield rows, slice(column, stop), scores
                column = stop
            row += len(ids)

    def _making_room(
        self, what: str, needed: int = 0
    ) -> contextlib.AbstractContextManager[None]:
        """Says what is kept, if something does not fit the disk."""

        def kept() -> str:
            parts = len(list(self.directory.glob("part-*.npz")))
            return f"{parts:,} finished parts"

        size = f" ({needed:,} bytes)" if needed else ""
        return explain_full_disk(self.directory, f"{what}{size}", kept)

    def _wait_for(self, path: Path, worker: int) -> None:
        wait_for_worker(path.is_file, worker, self._workers, str(path))

    def _path(self, block: int, chunk: int) -> Path:
        return self.directory / f"part-{block:04}-{chunk:06}.npz"


def _load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a part."""
    return load_arrays(
        path, "Delete it and call again: only this part is made anew."
    )
