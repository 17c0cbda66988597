"""Data of which a figure shows some examples, looked up by ids.

Synopsis:

    source = Source.open(train, "train_images", ids=None)
    look_up(source.examples, np.array([7, 2]))
    source.values(labels, "train_labels", np.array([7, 2]))    # {7: …, 2: …}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Examples
from keras_tracin.data.examples import open_examples
from keras_tracin.data.held import HeldExamples
from keras_tracin.data.lookup import locate
from keras_tracin.data.structure import check_lengths
from keras_tracin.plots.columns import column

_READ = 256  # examples read at a time


@dataclasses.dataclass(frozen=True)
class Source:
    """Data of which some examples are shown.

    Attributes:
        examples: the opened data.
        is_plain: whether it is an array of inputs alone.
        ids: ids that were given beside it; None for none.
    """

    examples: Examples
    is_plain: bool
    ids: np.ndarray | None = None

    @classmethod
    def open(cls, data: Any, name: str, ids: Any = None) -> Source:
        """Opens data as `fit` takes it, or inputs alone.

        Args:
            data: the data.
            name: name of the argument, for errors.
            ids: ids of the examples, if they are arrays.

        Raises:
            ValueError: if there are more or fewer ids than examples.
        """
        array = _plain_array(data)
        if array is None:
            examples = open_examples(data, name, labels=False)
            examples.pad(lambda short, padded: True)  # only shown
        else:
            check_lengths(array, name)
            examples = HeldExamples((array,), name)
        if ids is None:
            is_plain = array is not None or hasattr(data, "__array__")
            return cls(examples, is_plain)
        if not isinstance(examples, HeldExamples):
            raise ValueError(
                f"`train_ids` should be left out where `{name}` is a dataset. "
                f"Received: a {type(data).__name__}, and ids. Attach them by "
                "`kt.with_ids` before `batch`."
            )
        known = column("train_ids", ids, examples.size)
        held = HeldExamples(examples.data, name, known, carries_ids=True)
        return cls(held, False, known)

    def count(self, most: int) -> int:
        """The number of examples, or more than `most`."""
        if self.examples.size is not None:
            return self.examples.size
        total = 0
        for batch in self.examples.batches(_READ):
            total += len(batch)
            if total > most:
                break
        return total

    def values(
        self, values: Any, name: str, ids: np.ndarray, keys: Any = None
    ) -> dict[Any, Any] | None:
        """Values of examples, such as labels, by the ids of these.

        Args:
            values: values `[n]` in the order of the data, or by id, or None.
            name: name of the argument, for errors.
            ids: ids of the examples in the data, of any shape.
            keys: ids of the same examples in the result.

        Raises:
            ValueError: if they do not fit the data.
        """
        if values is None:
            return None
        distinct = np.unique(ids)
        if isinstance(values, Mapping):
            keys = ids if keys is None else keys
            pairs = zip(
                ids.ravel().tolist(), keys.ravel().tolist(), strict=True
            )
            by_id = dict(pairs)
            missing = [key for key in by_id.values() if key not in values]
            if missing:
                raise ValueError(
                    f"`{name}` should hold every id that is shown. It lacks "
                    f"{missing[:5]}."
                )
            return {id_: values[key] for id_, key in by_id.items()}
        if self.examples.carries_ids and self.ids is None:
            raise ValueError(
                f"`{name}` should be a dict by id, since ids were attached to "
                f"`{self.examples.name}`. Received: {type(values).__name__}. "
                f"Pass `dict(zip(ids, {name}))`."
            )
        places = distinct.tolist()
        size = self.examples.size
        if self.ids is not None:
            places = locate(self.ids.tolist(), distinct, self.examples.name)
        elif size is None:
            size = len(values)
        assert size is not None
        array = column(name, values, size)
        if max(places) >= len(array):
            locate(list(range(len(array))), distinct, name)
        return dict(zip(distinct.tolist(), array[places], strict=True))


def _plain_array(data: Any) -> np.ndarray | None:
    """Inputs alone as an array, as they are; None for anything else."""
    if isinstance(data, str | list):
        is_text = all(isinstance(value, str) for value in data)
        return np.array(list(data), dtype=object if is_text else None)
    if isinstance(data, tuple) and all(isinstance(v, str) for v in data):
        return np.array(data, dtype=object)
    if isinstance(data, np.ndarray) or tf.is_tensor(data):
        return np.asarray(data)
    return None
