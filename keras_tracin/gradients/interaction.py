"""Whether the examples of a batch leave one another alone.

One backward pass gives every example's gradient only where no example's
output depends on another example. Where an example's gradient was seen to be
another among others than alone, the calls of all layers are compared here: the
first that made a difference out of equal inputs is to blame, or on the way back
the last.

Synopsis:

    found = find_interaction(model, loss, batch.data)
    if found is not None:
        print(found.where, found.is_random)
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
from keras_tracin.gradients.sites import intercepted
from keras_tracin.models.state import preserved

_REPEATS = 3  # of a batch, to see whether random numbers are drawn
_MOST_EXAMPLES = 8
_QUANTIZED = 2.0**-7  # what stands for the last place of whole numbers

_Noted = tuple[str, list[tf.Tensor], list[tf.Tensor]]  # name, inputs, outputs
_Agreement = Callable[[np.ndarray, np.ndarray], bool]


@dataclasses.dataclass(frozen=True)
class Interaction:
    """What keeps the examples of a batch from being told apart.

    Attributes:
        where: the layer, or other part of the model, in words.
        is_random: it gives other outputs each time, also in inference mode;
            False if one example's output depends on the others.
        is_backward: outputs are alike, but not the gradients that it passes
            back.
    """

    where: str
    is_random: bool
    is_backward: bool = False

    def __str__(self) -> str:
        if self.is_random:
            return (
                f"{self.where} draws random numbers also in inference mode, so "
                "no two computations give the same scores."
            )
        what = (
            "the gradient it passes back"
            if self.is_backward
            else "what it returns"
        )
        return (
            f"{self.where} mixes the examples of a batch: {what} for "
            "an example depends on the others, so their gradients cannot be "
            "told apart. Expected examples that are computed independently in "
            "inference mode. Use statistics from training in place of the "
            "batch's (as BatchNormalization does), or take that part out."
        )


def find_interaction(
    model: keras.Model,
    loss: Callable[[Any, Any, Any], tf.Tensor],
    data: Any,
    rows: Sequence[int] | None = None,
    backward: bool = False,
) -> Interaction | None:
    """Compares examples alone with themselves among others.

    The model's variables are as before afterwards.

    Args:
        model: a built model; it runs in inference mode.
        loss: `(y, y_pred, sample_weight) -> [n]`.
        data: `(x, y)` or `(x, y, sample_weight)` of some examples.
        rows: those to compare; by default the first eight.
        backward: whether gradients are compared as well.

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
            places = {int(row): place for place, row in enumerate(order)}
            found = comparison.forward(data, ordered, rows, places)
            if found is None and backward:
                found = comparison.backward(data, ordered, rows, places)
            if found is not None:
                return found
    return None


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """Compares examples alone with themselves in a batch."""

    model: keras.Model
    loss: Callable[[Any, Any, Any], tf.Tensor]
    tolerance: float

    def random(self, batch) -> Interaction | None:
        """What computes something else of the same batch another time."""
        first = self._evaluate(batch, noting=True)
        for _ in range(_REPEATS):
            second = self._evaluate(batch, noting=True)
            for row in range(len(first.outputs[0])):
                agree = _agree(self.tolerance, row, row)
                if not all(map(agree, first.outputs, second.outputs)):
                    where = _first_difference(first.calls, second.calls, agree)
                    return Interaction(where or "The loss", is_random=True)
        return None

    def forward(self, data, batch, rows, places) -> Interaction | None:
        """What computes something else for an example in a batch."""
        together = self._evaluate(batch)
        for row in rows:
            alone = _rows(data, [row])
            agree = _agree(self.tolerance, 0, places[row])
            outputs = self._evaluate(alone).outputs
            if not all(map(agree, outputs, together.outputs)):
                return self._blame(alone, batch, places[row])
        return None

    def backward(self, data, batch, rows, places) -> Interaction | None:
        """What passes back another gradient for an example in a batch."""
        together = self._slopes(batch)
        for row in rows:
            alone = self._slopes(_rows(data, [row]))
            agree = _agree(10 * self.tolerance, 0, places[row])
            for one, other in zip(alone, together, strict=False):
                if all(map(agree, one.outputs, other.outputs)) and not all(
                    map(agree, one.inputs, other.inputs)
                ):
                    return Interaction(one.name, False, is_backward=True)
        return None

    def _blame(self, alone, batch, row) -> Interaction:
        single = self._evaluate(alone, noting=True)
        together = self._evaluate(batch, noting=True)
        agree = _agree(self.tolerance, 0, row)
        where = _first_difference(single.calls, together.calls, agree)
        return Interaction(where or "The loss", is_random=False)

    def _evaluate(self, data: Any, noting: bool = False) -> _Outcome:
        x, y, *weight = data
        with contextlib.ExitStack() as stack:
            calls = stack.enter_context(_noted(self.model)) if noting else []
            y_pred = self.model(x, training=False)
        losses = self.loss(y, y_pred, weight[0] if weight else None)
        noted = [
            _Call(name, _arrays(inputs), _arrays(outputs))
            for name, inputs, outputs in calls
        ]
        return _Outcome(_arrays((losses, y_pred)), noted)

    def _slopes(self, data: Any) -> list[_Call]:
        """The gradients at the inputs and outputs of calls, as these come.

        Those of a layer come before that of a layer, or model, around it.
        """
        x, y, *weight = data
        with tf.GradientTape() as tape:
            tape.watch([leaf for leaf in tf.nest.flatten(x) if _is_real(leaf)])
            with _noted(self.model) as calls:
                y_pred = self.model(x, training=False)
            losses = self.loss(y, y_pred, weight[0] if weight else None)
            total = tf.reduce_sum(losses)
        of_loss: _Noted = ("The loss", tf.nest.flatten(y_pred), [])
        real: list[_Noted] = [
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
    """The losses and predictions, and the calls if they were noted."""

    outputs: list[np.ndarray]
    calls: list[_Call]


def _rows(data: Any, rows: Any) -> Any:
    """Some rows of each part, as tensors."""
    index = np.asarray(rows)
    return tf.nest.map_structure(
        lambda leaf: tf.gather(tf.convert_to_tensor(leaf), index), data
    )


def _is_real(tensor: tf.Tensor) -> bool:
    return tensor.dtype.is_floating


@contextlib.contextmanager
def _noted(model: keras.Model) -> Iterator[list[_Noted]]:
    """Notes the calls of everything in the model, innermost first."""
    calls: list[_Noted] = []
    with contextlib.ExitStack() as stack:
        for part in _parts(model):
            noting = functools.partial(_note, _in_words(part, model), calls)
            stack.enter_context(intercepted(part, noting))
        yield calls


def _parts(model: keras.Model) -> list[Any]:
    """All layers, and the operations that functional models are made of."""
    parts = {id(layer): layer for layer in model._flatten_layers()}
    for layer in list(parts.values()):
        for operation in getattr(layer, "operations", ()):
            parts.setdefault(id(operation), operation)
    return list(parts.values())


def _in_words(part: Any, model: keras.Model) -> str:
    if part is model:
        return f"The call of model '{model.name}' itself"
    kind = "Layer" if isinstance(part, keras.Layer) else "Operation"
    name = getattr(part, "path", None) or part.name
    return f"{kind} '{name}' ({type(part).__name__})"


def _note(what: str, calls: list[_Noted], original, *args, **kwargs):
    outputs = original(*args, **kwargs)
    calls.append((what, _tensors((args, kwargs)), _tensors(outputs)))
    return outputs


def _tensors(structure: Any) -> list[tf.Tensor]:
    return [leaf for leaf in tf.nest.flatten(structure) if tf.is_tensor(leaf)]


def _arrays(structure: Any) -> list[np.ndarray]:
    # Numbers as NumPy knows them: it has no bfloat16.
    return [
        (tf.cast(t, tf.float64) if t.dtype.is_floating else t).numpy()
        for t in _tensors(structure)
    ]


def _first_difference(
    alone: list[_Call], together: list[_Call], agree: _Agreement
) -> str | None:
    """The first call with equal inputs, but other outputs, for an example."""
    for one, other in zip(alone, together, strict=False):
        if all(map(agree, one.inputs, other.inputs)) and not all(
            map(agree, one.outputs, other.outputs)
        ):
            return one.name
    return None


def _agree(tolerance: float, at: int, row: int) -> _Agreement:
    """Whether a row of one array is like a row of another, up to rounding."""

    def agree(one: np.ndarray, other: np.ndarray) -> bool:
        if not one.ndim or not other.ndim or not len(one) or not len(other):
            return True  # nothing in it belongs to an example
        if at >= len(one) or row >= len(other):
            return True
        mine, same = one[at], other[row]
        if mine.shape != same.shape:
            return False
        if mine.dtype != np.float64:
            return bool(np.all(mine == same))
        scale = max(
            np.abs(a[np.isfinite(a)]).max(initial=0) for a in (one, other)
        )
        return np.allclose(mine, same, 0, tolerance * scale, equal_nan=True)

    return agree


def rounding(model: keras.Model) -> float:
    """How far rounding may move a result, relative to its size.

    It is the root of the coarsest precision in the model: results of a few
    thousand operations differ less, and those of other examples more.
    """
    layers = model._flatten_layers()
    if any(getattr(each, "quantization_mode", None) for each in layers):
        return _QUANTIZED**0.5
    return coarsest_place(model) ** 0.5
