"""Methods whose scores are products of rows, and which read nothing else.

Each training example and each query has a row, of words or of an embedding. A
score is their inner product, so that higher is more similar. There are no
gradients, no checkpoints and no losses.

Synopsis:

    class Lengths(Similarity):
        title = "Lengths"

        def open(self, data, name): ...      # Examples
        def represent_train(self, batches): ...        # [n, d]
        def represent_queries(self, batch): ...        # [m, d]
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any, Self

import numpy as np

from keras_tracin.data.asked import AskedExamples, AskedTokens
from keras_tracin.data.batches import Batch, Examples, content_digest
from keras_tracin.engine.call import Call
from keras_tracin.engine.chunks import Sink
from keras_tracin.engine.distribution import Strategy
from keras_tracin.engine.execution import Execution
from keras_tracin.engine.fingerprint import spread_rows
from keras_tracin.engine.measures import Numbers
from keras_tracin.engine.planning import Plan
from keras_tracin.methods.base import Method
from keras_tracin.methods.representer.scoring import chunk_size, pour
from keras_tracin.models.exclusive import exclusive_access

_READ = 256  # examples at a time
_BLOCK = 1024  # queries that are scored together
_CHUNK = 2**22  # scores that are made at a time


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of examples.

    Attributes:
        ids: ids of the examples, `[n]`.
        values: `[n, d]`, dense or sparse.
    """

    ids: np.ndarray
    values: Any


class Similarity(Method):
    """The hooks of `Method` for similarities of rows.

    What a subclass supplies are `open`, `represent_train` and
    `represent_queries`, and its `settings`.

    Args:
        train: the training examples.
        memory_limit: bytes for scores; half of what is free by default.
    """

    title = "Similarity"

    def __init__(self, train: Any, memory_limit: int | None = None):
        self._execution = Execution(memory_limit=memory_limit)
        self._examples = self.open(train, "train")
        self._state: dict[str, Any] = {}  # shared with `among` and `within`

    # What a subclass supplies.

    def open(self, data: Any, name: str) -> Examples:
        """The examples in data.

        Args:
            data: training examples or queries.
            name: name of the data, for errors.
        """
        raise NotImplementedError

    def represent_train(self, batches: Iterable[Batch]) -> Any:
        """The rows of all training examples, `[n, d]`.

        Args:
            batches: the training examples.
        """
        raise NotImplementedError

    def represent_queries(self, batch: Batch) -> Any:
        """The rows of queries, `[m, d]`.

        Args:
            batch: the queries.
        """
        raise NotImplementedError

    # What `Method` asks for.

    @property
    def model(self) -> Any:
        """The model that rows depend on; None if they depend on none."""
        return None

    @property
    def strategy(self) -> Strategy | None:
        """No strategy."""
        return None

    @property
    def num_train(self) -> int | None:
        """Number of training examples; None where the data does not tell."""
        if self.selected_ids is not None:
            return len(self.selected_ids)
        if "rows" in self._state:
            return len(self._state["rows"].ids)
        return self._examples.size

    @property
    def no_self_influence(self) -> str | None:
        """Why there is no self-influence, and what to use."""
        return (
            "The similarity of an example with itself says nothing of its "
            "label or its loss. Use `kt.TracIn(...).self_influence()`."
        )

    def check_weights(self) -> None:
        """Compares the weights of the model, if there is one."""
        if self.model is not None:
            super().check_weights()

    def describe(self) -> dict[str, Any]:
        """The method and its options, as JSON."""
        if self.model is not None:
            return super().describe()
        return {"method": type(self).__name__, **self.settings}

    def __repr__(self) -> str:
        options = {"train": self.num_train, **self.settings}
        shown = [
            f"{name}={value!r}"
            for name, value in options.items()
            if value not in (None, [], ())
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def within(self, **limits: Any) -> Self:
        """The method within other limits.

        Args:
            **limits: as in `keras_tracin.engine.execution.Execution.within`.
        """
        method = copy.copy(self)
        method._execution = self._execution.within(**limits)
        return method

    def job(self, test: Any) -> dict[str, Any]:
        """All that scores depend on, as JSON, for the parts on disk."""
        if "train" not in self._state:
            batches = self._examples.batches(_READ)
            self._state["train"] = content_digest(batches)
        job = {**self.describe(), "train": self._state["train"]}
        if test is not None:
            queries = self._open_queries(test).batches(_READ)
            job["test"] = content_digest(queries)
        return job

    def fingerprint(self, test: Any) -> tuple[Numbers, float]:
        """Rows of a few training examples, summed, and their tolerance."""
        rows = self._rows()
        some = spread_rows(len(rows.ids), None)
        sums = np.asarray(rows.values[some].sum(axis=1), np.float64)
        return {"ids": rows.ids[some], "sums": sums.reshape(-1)}, 1e-3

    def fit(self, call: Call) -> None:
        """Represents the training examples, unless that is done."""
        self._rows()

    def blocks(self, test: Any, call: Call) -> Iterator[Rows]:
        """The queries in blocks that are scored together."""
        size = call.agree("block", self._block_size())
        for batch in self._open_queries(test).batches(size):
            yield Rows(batch.ids, self.represent_queries(batch))

    def _open_queries(self, test: Any) -> Examples:
        if isinstance(test, AskedTokens):
            examples = self.open(test.data, "test")
            return AskedExamples(examples, test.tokens)
        return self.open(test, "test")

    def stream(self, queries: Rows, sink: Sink, call: Call) -> None:
        """Streams the scores of one block of queries into a sink."""
        train, columns = self._rows(), len(queries.ids)

        def scores_of(rows: slice) -> np.ndarray:
            scores = queries.values @ train.values[rows].T
            dense = scores.toarray() if hasattr(scores, "toarray") else scores
            return np.asarray(dense, np.float32)

        pour(scores_of, sink, train.ids, call.cut(self._plan(columns)).chunk)

    @exclusive_access
    def plan(self, test: Any = None) -> Plan:
        """The work and memory that scoring will take, without a time.

        Args:
            test: the queries, in the same form as `train`.

        Raises:
            NotImplementedError: without `test`, as `self_influence`.
            ValueError: if `test` has another form.
        """
        self.check_weights()
        if test is None:
            self._check_self_influence()
        examples, size = self.open(test, "test"), self._block_size()
        first = examples.first(size)
        self._rows()
        self.represent_queries(first)  # which refuses what does not fit
        queries = examples.expected_size or len(first)
        plan = self._plan(min(queries, size))
        return dataclasses.replace(
            plan,
            num_train=self.num_train,
            num_queries=queries,
            num_blocks=math.ceil(queries / size),
        )

    @exclusive_access
    def _rows(self) -> Rows:
        """The rows of the training examples."""
        if "rows" not in self._state:
            ids: list[np.ndarray] = []

            def read() -> Iterator[Batch]:
                for batch in self._examples.batches(_READ):
                    ids.append(batch.ids)
                    yield batch

            values = self.represent_train(read())
            self._state["rows"] = Rows(np.concatenate(ids), values)
        return self._state["rows"]

    def _block_size(self) -> int:
        total = self._examples.expected_size or _READ
        room = self._execution.memory // (8 * 8 * max(1, total))
        return 2 ** int(math.log2(min(max(1, room), _BLOCK)))

    def _plan(self, columns: int) -> Plan:
        """The plan of scores `[columns, n]` of all training examples."""
        rows = self._rows()
        size = chunk_size(self._execution.memory, columns, _CHUNK)
        size = min(size, len(rows.ids))
        values = getattr(rows.values, "data", rows.values)
        return Plan(
            num_train=len(rows.ids),
            num_queries=columns,
            num_checkpoints=1,
            batch_size=min(_READ, len(rows.ids)),
            chunk=size,
            memory=8 * size * columns + values.nbytes,
        )
