"""Finds the layer by which examples of a batch influence one another.

One backward pass gives every example's gradient only if no example's output
depends on another example. If an example has another gradient in a batch than
alone, the calls of all layers are compared here. The cause is the first call
with equal inputs but different outputs or, in the backward pass, the last.

Synopsis:

    interaction = find_interaction(model, loss, batch.data)
    if interaction is not None:
        print(interaction.where, interaction.is_random)
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.gradients.precision import coarsest_place
from keras_tracin.gradients.sites import intercept
from keras_tracin.models.state import preserved

_REPEATS = 3  # of a batch, to detect random numbers
_MOST_EXAMPLES = 8
_QUANTIZED = 2.0**-7  # taken as the precision of quantized numbers

_CallTensors = tuple[
    str, list[tf.Tensor], list[tf.Tensor]
]  # name, inputs, outputs
_Agreement = Callable[[np.ndarray, np.ndarray], bool]


@dataclasses.dataclass(frozen=True)
class Interaction:
    """A part of the model that mixes the examples of a batch, or is random.

    Attributes:
        where: description of the layer, or other part of the model.
        is_random: True if outputs differ each time, also in inference mode;
            False if the output for an example depends on the others.
        is_backward: True if outputs are equal, but not the gradients that it
            passes back.
    """

    where: str
    is_random: bool
    is_backward: bool = False

    def __str__(self) -> str:
        if self.is_random:
            return (
                f"{self.where} draws random numbers also in inference mode, so "
                "no two computations give the same scores. Let it draw only "
                "where `training` is true."
            )
        what = (
            "the gradient it passes back"
            if self.is_backward
            else "what it returns"
        )
        return (
            f"{self.where} mixes the examples of a batch: {what} for "
            "an example depends on the others. Expected examples that do not "
            "depend on each other in inference mode. Use statistics from "
            "training (as BatchNormalization does), or take that part out."
        )


def find_interaction(
    model: keras.Model,
    loss: Callable[[Any, Any, Any], tf.Tensor],
    data: Any,
    rows: Sequence[int] | None = None,
    backward: bool = False,
) -> Interaction | None:
    """Compares examples alone with the same examples in a batch.

    The variables of the model are restored.

    Args:
        model: a built model; it runs in inference mode.
        loss: `(y, y_pred, sample_weight) -> [n]`.
        data: `(x, y)` or `(x, y, sample_weight)` of several examples.
        rows: indices of the examples to compare; by default the first eight.
        backward: If true, gradients are compared as well.

    Returns:
        The first part of the model that mixes examples or is random; None if
        there is none, or if there is a single example.
    """
    count = len(tf.nest.flatten(data)[0])
    if count < 2:
        return None
    comparison = _Comparison(model, loss, rounding(model))
    rows = range(min(count, _MOST_EXAMPLES)) if rows is None else rows
    with preserved(model):
        random = comparison.random(_rows(data, np.arange(count)))
        if random is not None:
            return random
        for order in (np.arange(count), np.arange(count)[::-1]):
            ordered = _rows(data, order)
            row_of = {int(row): i for i, row in enumerate(order)}
            interaction = comparison.forward(data, ordered, rows, row_of)
            if interaction is None and backward:
                interaction = comparison.backward(data, ordered, rows, row_of)
            if interaction is not None:
                return interaction
    return None


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """Compares examples alone with the same examples in a batch."""

    model: keras.Model
    loss: Callable[[Any, Any, Any], tf.Tensor]
    tolerance: float

    def random(self, batch) -> Interaction | None:
        """The part whose outputs differ between calls with the same batch."""
        first = self._evaluate(batch, recording=True)
        for _ in range(_REPEATS):
            second = self._evaluate(batch, recording=True)
            for row in range(len(first.outputs[0])):
                agree = _agree(self.tolerance, row, row)
                if not all(map(agree, first.outputs, second.outputs)):
                    where = _first_difference(first.calls, second.calls, agree)
                    return Interaction(where or "The loss", is_random=True)
        return None

    def forward(self, data, batch, rows, places) -> Interaction | None:
        """The part whose output for an example differs in a batch."""
        together = self._evaluate(batch)
        for row in rows:
            alone = _rows(data, [row])
            agree = _agree(self.tolerance, 0, places[row])
            outputs = self._evaluate(alone).outputs
            if not all(map(agree, outputs, together.outputs)):
                return self._blame(alone, batch, places[row])
        return None

    def backward(self, data, batch, rows, places) -> Interaction | None:
        """The part that passes back another gradient in a batch."""
        together = self._gradients(batch)
        for row in rows:
            alone = self._gradients(_rows(data, [row]))
            agree = _agree(10 * self.tolerance, 0, places[row])
            for single, batched in zip(alone, together, strict=False):
                if all(map(agree, single.outputs, batched.outputs)) and not all(
                    map(agree, single.inputs, batched.inputs)
                ):
                    return Interaction(single.name, False, is_backward=True)
        return None

    def _blame(self, alone, batch, row) -> Interaction:
        single = self._evaluate(alone, recording=True)
        together = self._evaluate(batch, recording=True)
        agree = _agree(self.tolerance, 0, row)
        where = _first_difference(single.calls, together.calls, agree)
        return Interaction(where or "The loss", is_random=False)

    def _evaluate(self, data: Any, recording: bool = False) -> _Outcome:
        x, y, *weight = data
        with contextlib.ExitStack() as stack:
            calls = (
                stack.enter_context(_record_calls(self.model))
                if recording
                else []
            )
            y_pred = self.model(x, training=False)
        losses = self.loss(y, y_pred, weight[0] if weight else None)
        calls_as_arrays = [
            _Call(name, _arrays(inputs), _arrays(outputs))
            for name, inputs, outputs in calls
        ]
        return _Outcome(_arrays((losses, y_pred)), calls_as_arrays)

    def _gradients(self, data: Any) -> list[_Call]:
        """Gradients at the inputs and outputs of calls, in order of the calls.

        A layer comes before the layer, or model, that calls it.
        """
        x, y, *weight = data
        with tf.GradientTape() as tape:
            tape.watch([leaf for leaf in tf.nest.flatten(x) if _is_real(leaf)])
            with _record_calls(self.model) as calls:
                y_pred = self.model(x, training=False)
            losses = self.loss(y, y_pred, weight[0] if weight else None)
            total = tf.reduce_sum(losses)
        of_loss: _CallTensors = ("The loss", tf.nest.flatten(y_pred), [])
        real: list[_CallTensors] = [
            (
                name,
                list(filter(_is_real, inputs)),
                list(filter(_is_real, outputs)),
            )
            for name, inputs, outputs in (*calls, of_loss)
        ]
        grads = tape.gradient(
            total,
            [sides for _, *sides in real],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return [
            _Call(name, _arrays(inputs), _arrays(outputs))
            for (name, *_), (inputs, outputs) in zip(real, grads, strict=True)
        ]


@dataclasses.dataclass(frozen=True)
class _Call:
    """One call of a layer or operation: arrays in, arrays out."""

    name: str
    inputs: list[np.ndarray]
    outputs: list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """Losses and predictions, and the calls if they were recorded."""

    outputs: list[np.ndarray]
    calls: list[_Call]


def _rows(data: Any, rows: Any) -> Any:
    """Rows of each leaf, as tensors."""
    index = np.asarray(rows)
    return tf.nest.map_structure(
        lambda leaf: tf.gather(tf.convert_to_tensor(leaf), index), data
    )


def _is_real(tensor: tf.Tensor) -> bool:
    return tensor.dtype.is_floating


@contextlib.contextmanager
def _record_calls(model: keras.Model) -> Iterator[list[_CallTensors]]:
    """Records the calls of everything in the model, innermost first."""
    calls: list[_CallTensors] = []
    with contextlib.ExitStack() as stack:
        for part in _parts(model):
            recording = functools.partial(
                _record, _describe(part, model), calls
            )
            stack.enter_context(intercept(part, recording))
        yield calls


def _parts(model: keras.Model) -> list[Any]:
    """All layers, and the operations of functional models."""
    parts = {id(layer): layer for layer in model._flatten_layers()}
    for layer in list(parts.values()):
        for operation in getattr(layer, "operations", ()):
            parts.setdefault(id(operation), operation)
    return list(parts.values())


def _describe(part: Any, model: keras.Model) -> str:
    if part is model:
        return f"The call of model '{model.name}' itself"
    kind = "Layer" if isinstance(part, keras.Layer) else "Operation"
    name = getattr(part, "path", None) or part.name
    return f"{kind} '{name}' ({type(part).__name__})"


def _record(what: str, calls: list[_CallTensors], original, *args, **kwargs):
    outputs = original(*args, **kwargs)
    calls.append((what, _tensors((args, kwargs)), _tensors(outputs)))
    return outputs


def _tensors(structure: Any) -> list[tf.Tensor]:
    return [leaf for leaf in tf.nest.flatten(structure) if tf.is_tensor(leaf)]


def _arrays(structure: Any) -> list[np.ndarray]:
    # In float64, since NumPy has no bfloat16.
    return [
        (tf.cast(t, tf.float64) if t.dtype.is_floating else t).numpy()
        for t in _tensors(structure)
    ]


def _first_difference(
    alone: list[_Call], together: list[_Call], agree: _Agreement
) -> str | None:
    """Name of the first call with equal inputs but different outputs."""
    for single, batched in zip(alone, together, strict=False):
        if all(map(agree, single.inputs, batched.inputs)) and not all(
            map(agree, single.outputs, batched.outputs)
        ):
            return single.name
    return None


def _agree(tolerance: float, at: int, row: int) -> _Agreement:
    """A function that compares a row of two arrays, up to rounding."""

    def agree(left: np.ndarray, right: np.ndarray) -> bool:
        if not left.ndim or not right.ndim or not len(left) or not len(right):
            return True  # nothing in it belongs to an example
        if at >= len(left) or row >= len(right):
            return True
        left_row, right_row = left[at], right[row]
        if left_row.shape != right_row.shape:
            return False
        if left_row.dtype != np.float64:
            return bool(np.all(left_row == right_row))
        scale = max(
            np.abs(a[np.isfinite(a)]).max(initial=0) for a in (left, right)
        )
        return np.allclose(
            left_row, right_row, 0, tolerance * scale, equal_nan=True
        )

    return agree


def rounding(model: keras.Model) -> float:
    """Largest relative difference to attribute to rounding.

    It is the square root of the coarsest precision in the model: results of a
    few thousand operations differ less, results of other examples more.
    """
    layers = model._flatten_layers()
    if any(getattr(layer, "quantization_mode", None) for layer in layers):
        return _QUANTIZED**0.5
    return coarsest_place(model) ** 0.5
