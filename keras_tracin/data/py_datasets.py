"""Examples that are read from a `keras.utils.PyDataset`.

An example's id is its position when batches are read from 0 on, in the order
that the dataset has at present.

Synopsis:

    examples = PyDatasetExamples(dataset, "train")
    for batch in examples.batches(128):
        batch.ids, batch.x, batch.y, batch.sample_weight
"""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import keras

from keras_tracin.data.streams import StreamedExamples


class PyDatasetExamples(StreamedExamples):
    """The examples of a `PyDataset`, read batch by batch as they are needed.

    With `workers` above one, that many threads read ahead, as in `fit`.

    Args:
        data: the dataset.
        name: name of the data, for errors.
        labels: whether labels are required.

    Raises:
        ValueError: if it is empty or never ends, or if a batch is another each
            time it is read.
    """

    def __init__(
        self, data: keras.utils.PyDataset, name: str, labels: bool = True
    ):
        self._data = data
        if data.num_batches is None:
            raise ValueError(
                f"`{name}` never ends: its `num_batches` is None. Pass a "
                "dataset with a number of batches, `steps_per_epoch` of them "
                "for instance."
            )
        kind = type(data)
        super().__init__(
            name,
            labels,
            f"a `{kind.__name__}`",
            f"Make `{kind.__name__}.__getitem__` give the same for the same "
            "index: take out what is random there (augmentation, shuffling) "
            "before attribution, or seed it by the index.",
            data.num_batches,
        )
        if kind.on_epoch_end is not keras.utils.PyDataset.on_epoch_end:
            warnings.warn(
                f"`{kind.__name__}.on_epoch_end` may put examples in another "
                f"order after each epoch of `fit`. Ids of `{name}` are "
                "positions in the order that it has now, as "
                f"`{kind.__name__}.__getitem__` gives it.",
                stacklevel=5,
            )

    def _elements(self) -> Iterator[Any]:
        """The batches in order, some of them read ahead."""
        read, numbers = self._data.__getitem__, range(self._data.num_batches)
        if self._data.workers <= 1:
            yield from map(read, numbers)
            return
        waiting = iter(numbers)
        ahead: collections.deque = collections.deque()
        pool = concurrent.futures.ThreadPoolExecutor(self._data.workers)
        try:
            for at in itertools.islice(waiting, self._data.max_queue_size):
                ahead.append(pool.submit(read, at))
            while ahead:
                element = ahead.popleft().result()
                for at in itertools.islice(waiting, 1):
                    ahead.append(pool.submit(read, at))
                yield element
        finally:
            pool.shutdown(cancel_futures=True)
