"""Looks up examples by the ids that results name them by.

Synopsis:

    batch = look_up(open_examples(train), np.array([7, 2]))
    batch.ids                                # [7, 2], in this order
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_tracin.data.batches import Batch, Examples, join
from keras_tracin.data.ids import check_unique

_BATCH = 256  # examples read at a time


def look_up(examples: Examples, ids: np.ndarray) -> Batch:
    """The examples with these ids, in this order.

    Where ids are positions, no more is read than up to the last of them.

    Args:
        examples: the source.
        ids: distinct ids `[k]`, at least one.

    Raises:
        ValueError: if no example has one of the ids, or several have.
    """
    kept: list[Batch] = []
    for batch in examples.batches(_BATCH):
        rows = np.flatnonzero(np.isin(batch.ids, ids))
        if len(rows):
            kept.append(batch.take(rows))
        if not examples.carries_ids and sum(map(len, kept)) == len(ids):
            break
    read_ids = np.concatenate([np.zeros(0, int), *(b.ids for b in kept)])
    check_unique(read_ids, examples.name)
    order = locate(read_ids.tolist(), ids, examples.name)
    return join(kept).take(np.array(order))


def locate(read_ids: list[Any], ids: np.ndarray, name: str) -> list[int]:
    """Index of the first occurrence of each of `ids` in `read_ids`.

    Args:
        read_ids: the ids of what was read.
        ids: the ids `[k]` to look up.
        name: name of the data, for errors.

    Raises:
        ValueError: if one is not there.
    """
    index = {id_: i for i, id_ in reversed(list(enumerate(read_ids)))}
    missing = [id_ for id_ in ids.tolist() if id_ not in index]
    if missing:
        raise ValueError(
            f"The results name the id {missing[0]!r}, which no example of "
            f"`{name}` has. Pass the data that the scores were computed from, "
            "or other data with the same ids."
        )
    return [index[id_] for id_ in ids.tolist()]
