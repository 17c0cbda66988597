"""The last layer of a model over its training examples, and its loss.

Synopsis:

    problem = Problem(model, train, memory_limit=2**30)
    problem.head, problem.meaning       # known without reading the data
    problem.represent(verbose=1)        # reads it, once
    problem.objective(l2=1e-3)          # the objective of retuning
    problem.blocks(test, 1024)          # queries, represented
"""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch, Examples
from keras_tracin.data.preprocessing import announce
from keras_tracin.engine.diagnosis import check_fits
from keras_tracin.engine.distribution import Strategy, check_built_under
from keras_tracin.engine.execution import Execution
from keras_tracin.engine.padding import open_padded
from keras_tracin.engine.steps import batch_spec
from keras_tracin.gradients.placement import check_loss_of_outputs
from keras_tracin.losses.output_kinds import outputs_of
from keras_tracin.losses.outputs import check_consistent
from keras_tracin.losses.per_example import per_example_loss
from keras_tracin.methods.representer.features import (
    FeatureReader,
    Representations,
)
from keras_tracin.methods.representer.head import find_head
from keras_tracin.methods.representer.objective import LogitLoss, Objective
from keras_tracin.methods.representer.targets import meaning_of
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.models.state import preserved

_SAMPLE = 32  # examples on which the head is identified


class Problem:
    """The last layer of a model over its training examples.

    The arguments are those of `RepresenterPoints`. A few training examples are
    read at once, all of them by `represent`.

    Attributes:
        model: the whole model.
        head: its last layer.
        examples: the opened training examples.
        reader: computes representations.
        meaning: meaning of the logits.
    """

    @exclusive_access
    def __init__(
        self,
        model: keras.Model,
        train: Any,
        *,
        layer: str | keras.Layer | None = None,
        loss: Any = None,
        strategy: Strategy | None = None,
        memory_limit: int | None = None,
        verbose: int = 0,
    ):
        self.model = model
        self._measure = per_example_loss(model, loss)
        self.examples = open_padded(model, train, "train", self._measure)
        if verbose:
            announce(model, self.examples)
        sample = self.examples.first(_SAMPLE)
        check_fits(model, sample, "train")
        check_built_under(strategy, model)
        with preserved(model):
            self.head = find_head(model, sample.x, layer)
            check_consistent(outputs_of(model, loss, sample.x))
            check_loss_of_outputs(
                model,
                self._measure,
                batch_spec(sample.data),
                "Representer points",
            )
        self.reader = FeatureReader(
            model,
            self.head,
            Execution(strategy, memory_limit=memory_limit),
            loss is None,
        )
        y, *sample_weight = _labels_of(sample)
        self._loss = LogitLoss(self.head, (y, *sample_weight), model, loss)
        self.meaning = meaning_of(self.head, model, loss, y)
        self._train: Representations | None = None

    @property
    def execution(self) -> Execution:
        """The place where the model runs, and the limits."""
        return self.reader.execution

    def within(self, **limits: Any) -> Problem:
        """The same within other limits, as in `Execution.within`."""
        problem = copy.copy(self)
        problem.reader = self.reader.within(**limits)
        return problem

    @property
    def train(self) -> Representations:
        """The representations of the training examples."""
        return self.represent()

    @property
    def num_train(self) -> int | None:
        """Number of training examples; None as long as it is not known."""
        return self.examples.size if self._train is None else len(self._train)

    @exclusive_access
    def represent(self, verbose: int = 0) -> Representations:
        """Reads and represents the training examples, unless that was done.

        Args:
            verbose: 0 for silence; else long work has a progress bar.

        Raises:
            ValueError: if a representation is NaN or infinite, naming the ids,
                or does not lead to the model's prediction.
        """
        if self._train is None:
            self._train = self.reader.read(self.examples, verbose)
        return self._train

    def objective(self, l2: float) -> Objective:
        """The head's objective with this λ."""
        return Objective(self._loss, self.train, l2)

    def open(self, data: Any, name: str) -> Examples:
        """The examples of other data, those of several lengths padded.

        Args:
            data: the data, in the form of the training examples.
            name: name of the data, for errors.
        """
        return open_padded(self.model, data, name, self._measure)

    def blocks(
        self, test: Any, size: int, verbose: int = 0
    ) -> Iterator[Representations]:
        """Queries in blocks of about `size`."""
        examples = self.open(test, "test")
        return self.reader.blocks(examples, size, verbose)


def _labels_of(batch: Batch) -> tuple[Any, ...]:
    """`(y,)` or `(y, sample_weight)` as arrays."""
    labels = (batch.y, batch.sample_weight)
    present = labels if batch.sample_weight is not None else labels[:1]
    return tf.nest.map_structure(
        lambda leaf: None if leaf is None else np.asarray(leaf), present
    )


def validate_l2(l2: Any) -> float:
    """Returns λ as a float; ValueError unless it is a number above zero."""
    is_number = isinstance(l2, numbers.Real) and not isinstance(l2, bool)
    if not is_number or not math.isfinite(l2) or l2 <= 0:
        raise ValueError(
            "`l2` should be a number above zero: without the penalty the last "
            "layer has no representer decomposition. Received: "
            f"l2={l2!r}. Start from 1e-3; `kt.sweep_l2` compares several."
        )
    return float(l2)
