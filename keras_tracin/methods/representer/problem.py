"""What representer points start from: a head, its inputs, and the loss.

Synopsis:

    problem = Problem.read(model, train, layer=None, loss=None,
                           strategy=None, memory_limit=None, verbose=0)
    problem.objective(l2=1e-3)          # what the head is retuned on
    problem.blocks(test, 1024)          # queries, represented
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterator
from typing import Any

import keras

from keras_tracin.data.batches import Examples
from keras_tracin.data.preprocessing import announce, open_for_model
from keras_tracin.engine.diagnosis import check_fits
from keras_tracin.engine.distribution import Strategy, check_built_under
from keras_tracin.engine.execution import default_memory_limit
from keras_tracin.engine.steps import batch_spec
from keras_tracin.gradients.placement import check_loss_of_outputs
from keras_tracin.losses.output_kinds import outputs_of
from keras_tracin.losses.outputs import check_consistent
from keras_tracin.losses.per_example import per_example_loss
from keras_tracin.methods.representer.features import (
    FeatureReader,
    Representations,
)
from keras_tracin.methods.representer.head import Head, find_head
from keras_tracin.methods.representer.objective import Objective
from keras_tracin.methods.representer.targets import Meaning, meaning_of
from keras_tracin.models.exclusive import exclusively
from keras_tracin.models.state import preserved

_SAMPLE = 32  # examples on which the head is looked for


@dataclasses.dataclass(frozen=True)
class Problem:
    """The last layer of a model over its training examples.

    Attributes:
        model: the whole of it.
        head: the last layer.
        reader: computes representations.
        examples: the training examples.
        train: their representations.
        meaning: what the logits stand for.
    """

    model: keras.Model
    head: Head
    reader: FeatureReader
    examples: Examples
    train: Representations
    meaning: Meaning
    _unregularised: Objective
    _memory_limit: int | None

    @classmethod
    @exclusively
    def read(
        cls,
        model: keras.Model,
        train: Any,
        *,
        layer: str | keras.Layer | None,
        loss: Any,
        strategy: Strategy | None,
        memory_limit: int | None,
        verbose: int,
    ) -> Problem:
        """Finds the head and reads the training examples.

        The arguments are those of `RepresenterPoints`.
        """
        examples = open_for_model(model, train, "train")
        if verbose:
            announce(model, examples)
        sample = examples.first(_SAMPLE)
        check_fits(model, sample, "train")
        check_built_under(strategy, model)
        with preserved(model):
            head = find_head(model, sample.x, layer)
            check_consistent(outputs_of(model, loss, sample.x))
            check_loss_of_outputs(
                model,
                per_example_loss(model, loss),
                batch_spec(sample.data),
                "Representer points",
            )
        limit = memory_limit or default_memory_limit()
        reader = FeatureReader(model, head, limit, loss is None, strategy)
        represented = reader.read(examples, verbose)
        objective = Objective(head, represented, model, loss)
        meaning = meaning_of(head, model, loss, represented.y)
        return cls(
            *(model, head, reader, examples, represented),
            *(meaning, objective, memory_limit),
        )

    @property
    def memory_limit(self) -> int:
        """Bytes that may be used now."""
        return self._memory_limit or default_memory_limit()

    def objective(self, l2: float) -> Objective:
        """The head's objective with this λ."""
        return self._unregularised.with_l2(checked_l2(l2))

    def blocks(
        self, test: Any, size: int, verbose: int = 0
    ) -> Iterator[Representations]:
        """Queries in blocks of about `size`."""
        examples = open_for_model(self.model, test, "test")
        return self.reader.blocks(examples, size, verbose)


def checked_l2(l2: Any) -> float:
    """λ as a float; ValueError if it is not a number above zero."""
    known = isinstance(l2, numbers.Real) and not isinstance(l2, bool)
    if not known or not math.isfinite(l2) or l2 <= 0:
        raise ValueError(
            "`l2` should be a number above zero: without the penalty the last "
            "layer has no representer decomposition. Received: "
            f"l2={l2!r}. Start from 1e-3; `kt.sweep_l2` compares several."
        )
    return float(l2)
