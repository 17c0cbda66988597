"""A model, its training examples and losses, and the steps compiled for them.

An `Engine` lives as long as a method does. What belongs to a single call is a
`Call`; what is computed is a `Pass`.

Synopsis:

    engine = Engine(model, train, loss=None, layers=None)
    for queries in blocks(engine, test, call):
        sweep(engine, products_pass("TracIn", queries, weights), sink, call)
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch, Examples
from keras_tracin.data.examples import select
from keras_tracin.engine.descriptions import describe_losses
from keras_tracin.engine.diagnosis import (
    Suspect,
    check_fits,
    explaining,
    not_finite,
)
from keras_tracin.engine.distribution import check_built_under
from keras_tracin.engine.execution import Execution
from keras_tracin.engine.first_look import EXAMPLES
from keras_tracin.engine.padding import open_padded
from keras_tracin.engine.queries import Queries, Steps
from keras_tracin.engine.steps import GradientFunctions, kind_of
from keras_tracin.engine.updated import UpdatedVariables
from keras_tracin.engine.visits import name_of
from keras_tracin.gradients.sites import find_sites, site_variables
from keras_tracin.losses.output_kinds import SAMPLE
from keras_tracin.losses.per_example import PerExampleLoss, per_example_loss
from keras_tracin.losses.query_losses import query_value
from keras_tracin.losses.terms_of_outputs import check_class_weight
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.projection import Projection, check_projection
from keras_tracin.runs import Checkpoint


class Engine:
    """A model with its training examples, losses and compiled steps.

    Args:
        model: a Keras model; built here if it is not yet.
        train: the training examples, as `model.fit` took them.
        loss: used in place of the compiled loss; anything `compile` takes.
        query_loss: measure of a query's influence, as in `TracIn`.
        class_weight: the `class_weight` given to `fit`.
        layers: names or layers to restrict the gradients to.
        projection: makes the sketches that are scored in place of gradients.
        output: differentiated in place of the losses, of training examples
            and queries alike: `(y, y_pred, sample_weight) -> [n]`.
        checkpoints: checkpoints to visit, whose steps say which variables
            gradients are taken by; by default those trainable now.
        execution: the place to run, and the limits.

    Attributes:
        model: the model.
        train: the opened training examples.
        layers: names or layers that the gradients are restricted to.
        projection: makes the sketches, or None.
        execution: the place to run, and the limits.
        loss: the per-example loss of training, or `output`.
        query_value: the measure of queries that is differentiated, in the
            form of a loss.
        same_loss: whether `loss` and `query_value` are the same.
        has_own_loss: whether a loss was given in place of the compiled one.
        losses: the losses and class weights, as JSON.
        variables: the variables that gradients are taken by.
        updated: shares of the variables in the scores of the checkpoints.
        like: a few training examples, for their form.
        weighted: whether training examples have weights.
        looked: kinds of examples whose gradients were compared with plain
            TensorFlow's, see `keras_tracin.engine.looking`.

    Raises:
        ValueError: if the model is not compiled and no `loss` is given, if
            `layers` names no layer with weights, or if the data does not fit.
    """

    @exclusive_access
    def __init__(
        self,
        model: keras.Model,
        train: Any,
        *,
        loss: Any = None,
        query_loss: Any = None,
        class_weight: Mapping[int, float] | None = None,
        layers: str | keras.Layer | Sequence[str | keras.Layer] | None = None,
        projection: Projection | None = None,
        output: PerExampleLoss | None = None,
        checkpoints: Iterable[Checkpoint | None] = (),
        execution: Execution | None = None,
    ):
        self.model = model
        if projection is not None:
            check_projection(projection)
        self.projection = projection
        self.execution = execution or Execution.of()
        self.layers = layers
        self.has_own_loss = loss is not None
        check_class_weight(class_weight)
        self.losses = describe_losses(model, loss, query_loss, class_weight)
        self.loss = per_example_loss(model, loss, class_weight)
        self.same_loss = query_loss in (None, "loss") and not class_weight
        self.train = open_padded(model, train, "train", self.loss)
        self.like = self.train.first(EXAMPLES)
        has_weights = self.like.sample_weight is not None
        self.weighted = has_weights or bool(class_weight)
        # Both are shared with the engines of `among` and `within`.
        self._steps: dict[tuple[str, bool], Steps] = {}
        self.looked: set[str] = set()
        check_fits(model, self.like, "train")
        check_built_under(self.execution.strategy, model)
        if output is not None:
            self.loss = self.query_value = output
            self.same_loss = True
        else:
            x = None
            if isinstance(query_loss, str) and query_loss != "loss":
                x = self.train.first(SAMPLE).x
            query_loss = query_loss or "loss"
            self.query_value = query_value(model, query_loss, loss, x)
        self.updated = UpdatedVariables(
            model, checkpoints, self.execution.strategy
        )
        self.variables = self._find_variables()

    def _find_variables(self) -> list[keras.Variable]:
        with self.updated.trainable():
            # Refuses bad `layers=` before long work.
            return site_variables(find_sites(self.model, self.layers))

    @property
    def shares(self) -> list | None:
        """Shares of the variables at each checkpoint; None if all are one."""
        return self.updated.describe(self.variables)

    @functools.cached_property
    def train_steps(self) -> GradientFunctions:
        """The compiled steps for training examples."""
        return self.steps_like(self.like).train

    def steps_like(self, batch: Batch, sparing: bool = False) -> Steps:
        """The compiled steps for queries of the same kind as `batch`.

        Args:
            batch: one or more queries.
            sparing: whether their factors are in the smallest form.
        """
        kind = kind_of(batch.data)
        if (kind, sparing) not in self._steps:

            def functions(loss, like, queries=None):
                return GradientFunctions(
                    self.model,
                    loss,
                    like.data,
                    self.layers,
                    queries=queries,
                    strict=not self.has_own_loss,
                    strategy=self.execution.strategy,
                    projection=self.projection,
                    jit_compile=self.execution.jit_compile,
                    sparing=sparing,
                    updated=self.updated,
                )

            query = functions(self.query_value, batch)
            same = self.same_loss and kind == kind_of(self.like.data)
            train = query if same else functions(self.loss, self.like, query)
            self._steps[kind, sparing] = Steps(train, query)
        return self._steps[kind, sparing]

    def open_queries(self, test: Any) -> tuple[Examples, Steps]:
        """The queries, and the steps that take them.

        Raises:
            ValueError: if the model does not take them.
        """
        examples = open_padded(self.model, test, "test", self.query_value)
        like = examples.first(1)
        if (kind_of(like.data), False) not in self._steps:
            check_fits(self.model, like, "test")
        return examples, self.steps_like(like)

    def rows_of(
        self, queries: Queries, checkpoint: Checkpoint | None
    ) -> tf.Tensor:
        """The queries' whole gradients, `[m, p]`.

        Args:
            queries: the queries.
            checkpoint: the checkpoint whose weights the model has.

        Raises:
            ValueError: if one is NaN or infinite.
        """
        rows = queries.rows()
        if not np.isfinite(rows).all():
            raise self.not_finite(None, queries, checkpoint)
        return rows

    def among(self, ids: np.ndarray) -> Engine:
        """The same with only those training examples that have these ids."""
        engine = copy.copy(self)
        engine.train = select(self.train, ids)
        return engine

    def within(self, **limits: Any) -> Engine:
        """The same within other limits, as in `Execution.within`."""
        engine = copy.copy(self)
        engine.execution = self.execution.within(**limits)
        return engine

    def suspects(
        self, batch: Batch | None, queries: Queries | None = None
    ) -> list[Suspect]:
        """The batches to look into when something fails, queries first.

        Args:
            batch: training examples, if any were used.
            queries: queries that were used, if any.
        """
        suspects, steps = [], self.train_steps
        if queries is not None:
            query, steps = queries.steps.query, queries.steps.train
            suspects = [
                Suspect("query", block, query) for block in queries.batches
            ]
        if batch is not None:
            suspects.append(Suspect("training", batch, steps))
        return suspects

    def explaining(
        self, batch: Batch | None, queries: Queries | None = None
    ) -> contextlib.AbstractContextManager:
        """Explains failures in a block by the data that they are of."""
        return explaining(self.suspects(batch, queries))

    def not_finite(
        self,
        batch: Batch | None,
        queries: Queries | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> ValueError:
        """The error that names the layer and ids of NaN or infinity.

        Args:
            batch: training examples, if any were used.
            queries: queries that were used, if any.
            checkpoint: the checkpoint whose weights the model has.
        """
        suspects = self.suspects(batch, queries)
        return not_finite(self.model, suspects, name_of(checkpoint))
