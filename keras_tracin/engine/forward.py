"""Passes that only run the model forward, and measure its outputs.

Synopsis:

    engine = ForwardEngine(model, train, lambda batch: measure)
    work = engine.forward_pass("Losses", PRESENT_WEIGHTS)
    sweep(engine, work, Sink(columns.add), Call())
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch
from keras_tracin.engine.chunks import Chunk
from keras_tracin.engine.diagnosis import Suspect, losses_of, not_finite
from keras_tracin.engine.distribution import spread
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.execution import Execution
from keras_tracin.engine.passes import Gathering, Pass, Sums
from keras_tracin.engine.queries import Queries
from keras_tracin.engine.steps import batch_spec
from keras_tracin.engine.visits import Visit, Weights, name_of
from keras_tracin.gradients.compiling import compile_step
from keras_tracin.losses.output_kinds import SAMPLE
from keras_tracin.losses.per_example import PerExampleLoss
from keras_tracin.runs import Checkpoint

# `(y, y_pred, sample_weight) -> results`, each `[..., n]`; the first `[n]`.
Measure = Callable[[Any, Any, Any], tuple[tf.Tensor, ...]]


SomeMeasure = TypeVar("SomeMeasure", bound=Measure)


class ForwardEngine(Engine, Generic[SomeMeasure]):
    """A model with training examples whose outputs are measured.

    No gradient is taken, so nothing is asked of the model's variables.

    Args:
        model: a Keras model; built here if it is not yet.
        train: the training examples, as `model.fit` took them.
        make_measure: makes what the outputs are measured by, from a few
            training examples; it is called once the model is built.
        loss: used in place of the compiled loss.
        execution: the place to run, and the limits.

    Attributes:
        measure: what the outputs are measured by.

    Raises:
        ValueError: as `Engine`.
    """

    def __init__(
        self,
        model: keras.Model,
        train: Any,
        make_measure: Callable[[Batch], SomeMeasure],
        *,
        loss: Any = None,
        execution: Execution | None = None,
    ):
        super().__init__(model, train, loss=loss, execution=execution)
        self.measure = make_measure(self.train.first(SAMPLE))

    def _find_variables(self) -> list[keras.Variable]:
        return []

    def forward_pass(
        self,
        title: str,
        weights: Weights,
        gather: Callable[[Chunk], Gathering] = Sums,
    ) -> Pass:
        """The pass that measures the outputs of all training examples.

        Args:
            title: name of the work, for the line that announces long work.
            weights: the checkpoints to visit.
            gather: puts the tuples of results of a chunk together.
        """
        return Pass(
            title,
            self._step,
            weights,
            arguments=_no_arguments,
            finish=_as_arrays,
            compared=_first_as_array,
            gather=gather,
            scores=False,
            gradients=False,
        )

    @functools.cached_property
    def _step(self) -> Callable:
        """The compiled step `data -> results`."""

        def step(data):
            x, y, *weight = data
            y_pred = self.model(x, training=False)
            self.model._clear_losses()  # which layers added while traced
            return self.measure(y, y_pred, weight[0] if weight else None)

        return compile_step(
            spread(step, self.execution.strategy, axis=-1),
            (batch_spec(self.like.data),),
            self.execution.jit_compile,
        )

    def suspects(
        self, batch: Batch | None, queries: Queries | None = None
    ) -> list[Suspect]:
        """The batch to look into when something fails."""
        if batch is None:
            return []

        def first(y, y_pred, sample_weight):
            return self.measure(y, y_pred, sample_weight)[0]

        return [Suspect("training", batch, _Forward(self.model, first))]

    def not_finite(
        self,
        batch: Batch | None,
        queries: Queries | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> ValueError:
        """The error that names the ids of NaN or infinity."""
        return not_finite(
            self.model,
            self.suspects(batch),
            name_of(checkpoint),
            _broken_outputs,
        )


@dataclasses.dataclass(frozen=True)
class _Forward:
    """What measured a batch."""

    model: keras.Model
    loss: PerExampleLoss


def _broken_outputs(suspect: Suspect, where: str) -> str | None:
    """What to say of outputs or losses that are NaN or infinite."""
    functions, batch = suspect.functions, suspect.batch
    outputs = tf.nest.flatten(functions.model(batch.x, training=False))
    losses = losses_of(functions, batch.data)
    for name, tensors in (("outputs", outputs), ("losses", [losses])):
        broken = np.zeros(len(batch), bool)
        for tensor in tensors:
            values = tf.cast(tensor, tf.float64).numpy()
            finite = np.isfinite(values).reshape(len(batch), -1)
            broken |= ~finite.all(axis=1)
        if broken.any():
            rows = np.flatnonzero(broken).tolist()
            return (
                f"The {name} of {suspect.name(rows)} are NaN or infinite at "
                f"{where}, although weights and data are finite. Look for a "
                "division by zero or an overflow in the model, or choose "
                "weights from before the loss diverged."
            )
    return None


def _no_arguments(visit: Visit, prepared: Any) -> tuple:
    return ()


def _as_arrays(results: tuple[tf.Tensor, ...]) -> tuple[np.ndarray, ...]:
    return tuple(result.numpy() for result in results)


def _first_as_array(results: tuple[tf.Tensor, ...]) -> np.ndarray:
    """What spot checks compare: the first of the results, a row."""
    return results[0].numpy()[np.newaxis]
