"""The representations of examples: the inputs of a model's last layer.

They are computed once, batch by batch, and kept in float64; on each batch the
head must reproduce the model's own prediction.

Synopsis:

    reader = FeatureReader(model, head, Execution())
    train = reader.read(open_examples(data))      # Representations
    for block in reader.blocks(examples, 1024):
        block.ids, block.features
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Examples
from keras_tracin.engine.chunks import in_chunks
from keras_tracin.engine.diagnosis import check_fits
from keras_tracin.engine.distribution import spread
from keras_tracin.engine.execution import Execution
from keras_tracin.engine.footprint import footprint
from keras_tracin.engine.planning import make_plan
from keras_tracin.engine.progress import Progress
from keras_tracin.engine.spot_checks import SpotChecks
from keras_tracin.engine.steps import batch_spec, kind_of
from keras_tracin.gradients.compiling import compile_step
from keras_tracin.gradients.sites import intercept, without_rematerialization
from keras_tracin.losses.per_example import check_no_activation_losses
from keras_tracin.methods.representer.head import (
    Head,
    first_argument,
    refuse_output,
)
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.models.state import preserved


@dataclasses.dataclass(frozen=True)
class Representations:
    """Examples as the last layer sees them.

    Attributes:
        ids: `[n]`.
        features: `[n, f]` float64, with the constant feature of the bias.
        y: the labels, in the form of the data.
        sample_weight: the sample weights, or None.
    """

    ids: np.ndarray
    features: np.ndarray
    y: Any
    sample_weight: Any

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> tuple[Any, ...]:
        """`(y,)` or `(y, sample_weight)`."""
        if self.sample_weight is None:
            return (self.y,)
        return self.y, self.sample_weight

    def rows(self, rows: slice) -> Representations:
        """The examples at some positions."""
        y, sample_weight = tf.nest.map_structure(
            lambda leaf: None if leaf is None else leaf[rows],
            (self.y, self.sample_weight),
        )
        return Representations(
            self.ids[rows], self.features[rows], y, sample_weight
        )


class FeatureReader:
    """Computes representations.

    Args:
        model: the model, whose weights stay as they are.
        head: its last layer.
        execution: the place where steps run, and the limits; each replica of
            a strategy works on a share of a batch.
        strict: whether losses that layers add from their inputs are refused.

    Attributes:
        execution: the place where steps run, and the limits.
    """

    def __init__(
        self,
        model: keras.Model,
        head: Head,
        execution: Execution,
        strict: bool = True,
    ):
        self._model, self._head = model, head
        self.execution, self._strict = execution, strict
        self._steps: dict[str, Any] = {}  # shared with `within`

    def within(self, **limits: Any) -> FeatureReader:
        """The same within other limits, as in `Execution.within`."""
        reader = copy.copy(self)
        reader.execution = self.execution.within(**limits)
        return reader

    def read(self, examples: Examples, verbose: int = 0) -> Representations:
        """All examples.

        Args:
            examples: the opened data.
            verbose: 0 for silence.

        Raises:
            ValueError: if the head does not make the prediction, or a
                representation is NaN or infinite, naming the ids.
        """
        return _join(list(self._batches(examples, None, verbose)))

    def blocks(
        self, examples: Examples, size: int, verbose: int = 0
    ) -> Iterator[Representations]:
        """The examples in blocks of about `size`."""
        batches = self._batches(examples, size, verbose)
        yield from map(_join, in_chunks(batches, size))

    def _batches(
        self, examples: Examples, largest: int | None, verbose: int
    ) -> Iterator[Representations]:
        first = examples.first(1)
        with exclusive_access:
            if kind_of(first.x) not in self._steps:
                check_fits(self._model, first, examples.name)
            step = self._step_like(first.x)
            needs = footprint(step)  # which traces it
        plan = make_plan(
            examples,
            num_queries=0,
            num_checkpoints=1,
            footprint=needs,
            bytes_per_query=0,
            execution=self.execution,
        )
        progress = Progress(plan, verbose, "Representations")
        size = min(plan.batch_size, largest or 2**31)
        spots = SpotChecks(self._model, _no_loss)

        def inputs_of(data: Any) -> np.ndarray:
            return step(data[0])[0].numpy().T

        for number, batch in enumerate(examples.batches(size)):
            # When the model has its own weights, which come back.
            with exclusive_access, preserved(self._model):
                inputs, output = (result.numpy() for result in step(batch.x))
                spots.look(number, batch, inputs.T, inputs_of)
            features = self._head.features(inputs)
            _check_finite(features, batch.ids, examples.name)
            if not self._head.explains(features, output):
                refuse_output(self._head.layer)
            y, sample_weight = tf.nest.map_structure(
                lambda leaf: None if leaf is None else np.asarray(leaf),
                (batch.y, batch.sample_weight),
            )
            yield Representations(batch.ids, features, y, sample_weight)
            progress.advance()

    def _step_like(self, x: Any):
        """The compiled step `x -> inputs [n, i], output [n, k]`."""
        kind = kind_of(x)
        if kind not in self._steps:
            step = spread(self._step, self.execution.strategy, axis=0)
            self._steps[kind] = compile_step(step, [batch_spec(x)])
        return self._steps[kind]

    def _step(self, x):
        recorded = []

        def record(original, *args, **kwargs):
            recorded.append(first_argument(args, kwargs))
            return original(*args, **kwargs)

        with (
            without_rematerialization(self._model),
            intercept(self._head.layer, record),
        ):
            y_pred = self._model(x, training=False)
        if self._strict:
            check_no_activation_losses(self._model)
        (inputs,), (output,) = recorded, keras.tree.flatten(y_pred)
        return _widen(inputs), _widen(output)


def _no_loss(y: Any, y_pred: Any, sample_weight: Any) -> tf.Tensor:
    """A loss for comparisons of representations alone."""
    leaf = tf.convert_to_tensor(tf.nest.flatten(y_pred)[0])
    return tf.reduce_sum(leaf, axis=list(range(1, leaf.shape.rank)))


def _widen(tensor: tf.Tensor) -> tf.Tensor:
    """The tensor in float32 or wider."""
    return tf.cast(tensor, tf.float32) if tensor.dtype.size < 4 else tensor


def _join(parts: list[Representations]) -> Representations:
    if len(parts) == 1:
        return parts[0]
    fields = [
        tf.nest.map_structure(
            lambda *leaves: (
                None if leaves[0] is None else np.concatenate(leaves)
            ),
            *(getattr(part, field.name) for part in parts),
        )
        for field in dataclasses.fields(Representations)
    ]
    return Representations(*fields)


def _check_finite(features: np.ndarray, ids: np.ndarray, name: str) -> None:
    rows = ~np.isfinite(features).all(axis=1)
    if rows.any():
        raise ValueError(
            f"The representations of examples of `{name}` with ids "
            f"{ids[rows].tolist()} are NaN or infinite. Look for NaN in these "
            "examples' inputs and in the model's weights."
        )
