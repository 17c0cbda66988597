"""Whether the examples of a batch leave one another alone.

One backward pass gives every example's gradient only where no example's
output depends on another example. Here a few examples go through the model
together, and the first of them once more on its own: its outputs and its loss
should be the same. Where they are not, the calls of all layers are compared,
and the first that made a difference out of equal inputs is to blame.

Synopsis:

    found = find_interaction(model, loss, batch.data)
    if found is not None:
        print(found.where, found.is_random)
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.gradients.sites import intercepted

_MOST_EXAMPLES = 4
# The distance from 1 to the next number.
_PRECISION = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float64": 2.0**-52}
_SINGLE, _QUANTIZED = 2.0**-23, 2.0**-7


@dataclasses.dataclass(frozen=True)
class Interaction:
    """What keeps the examples of a batch from being told apart.

    Attributes:
        where: the layer, or other part of the model, in words.
        is_random: it gives other outputs each time, also in inference mode;
            False if one example's output depends on the others.
    """

    where: str
    is_random: bool

    def __str__(self) -> str:
        if self.is_random:
            return (
                f"{self.where} draws random numbers also in inference mode, so "
                "no two computations give the same scores."
            )
        return (
            f"{self.where} mixes the examples of a batch: what it returns for "
            "an example depends on the others, so their gradients cannot be "
            "told apart. Expected examples that are computed independently in "
            "inference mode. Use statistics from training in place of the "
            "batch's (as BatchNormalization does), or take that part out."
        )


def find_interaction(
    model: keras.Model, loss: Callable[[Any, Any, Any], tf.Tensor], data: Any
) -> Interaction | None:
    """Compares an example alone with itself among others.

    It takes two small forward passes, and four more where they disagree.

    Args:
        model: a built model; it runs in inference mode.
        loss: `(y, y_pred, sample_weight) -> [n]`.
        data: `(x, y)` or `(x, y, sample_weight)` of a few examples, of which
            the first four are used.

    Returns:
        The first part of the model that mixes examples or is random; None if
        there is none, or if there is a single example.
    """
    together = _rows(data, _MOST_EXAMPLES)
    if len(tf.nest.flatten(together)[0]) < 2:
        return None
    alone = _rows(data, 1)
    tolerance = rounding(model)

    def same(one: _Outcome, other: _Outcome) -> bool:
        return all(map(_agree(tolerance), one.outputs, other.outputs))

    outcome = _evaluate(model, loss, together)
    if same(_evaluate(model, loss, alone), outcome):
        return None
    first, second = (
        _evaluate(model, loss, together, noting=True) for _ in range(2)
    )
    if not same(first, second):
        where = _first_difference(first.calls, second.calls, tolerance)
        return Interaction(where or "The loss", is_random=True)
    single = _evaluate(model, loss, alone, noting=True)
    where = _first_difference(single.calls, first.calls, tolerance)
    return Interaction(where or "The loss", is_random=False)


@dataclasses.dataclass(frozen=True)
class _Call:
    """One call of a layer or operation: tensors in, tensors out."""

    name: str
    inputs: list[np.ndarray]
    outputs: list[np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """The losses and predictions, and the calls if they were noted."""

    outputs: list[np.ndarray]
    calls: list[_Call]


def _rows(data: Any, count: int) -> Any:
    return tf.nest.map_structure(lambda leaf: leaf[:count], data)


def _evaluate(model, loss, data, noting: bool = False) -> _Outcome:
    x, y, *weight = data
    x = tf.nest.map_structure(tf.convert_to_tensor, x)
    with contextlib.ExitStack() as stack:
        calls = stack.enter_context(_noted(model)) if noting else []
        y_pred = model(x, training=False)
    losses = loss(y, y_pred, weight[0] if weight else None)
    return _Outcome(_arrays((losses, y_pred)), calls)


@contextlib.contextmanager
def _noted(model: keras.Model) -> Iterator[list[_Call]]:
    """Notes the calls of everything in the model, innermost first."""
    calls: list[_Call] = []
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


def _note(what: str, calls: list[_Call], original, *args, **kwargs):
    outputs = original(*args, **kwargs)
    calls.append(_Call(what, _arrays((args, kwargs)), _arrays(outputs)))
    return outputs


def _arrays(structure: Any) -> list[np.ndarray]:
    leaves = [t for t in tf.nest.flatten(structure) if tf.is_tensor(t)]
    # Numbers as NumPy knows them: it has no bfloat16.
    return [
        (tf.cast(t, tf.float64) if t.dtype.is_floating else t).numpy()
        for t in leaves
    ]


def _first_difference(
    alone: list[_Call], together: list[_Call], tolerance: float
) -> str | None:
    """The first call with equal inputs, but other outputs, for example 0."""
    agree = _agree(tolerance)
    for one, other in zip(alone, together, strict=False):
        if all(map(agree, one.inputs, other.inputs)) and not all(
            map(agree, one.outputs, other.outputs)
        ):
            return one.name
    return None


def _agree(tolerance: float) -> Callable[[np.ndarray, np.ndarray], bool]:
    """Whether two arrays' first rows are alike, up to rounding."""

    def agree(one: np.ndarray, other: np.ndarray) -> bool:
        if not one.ndim or not other.ndim or not len(one) or not len(other):
            return True  # nothing in it belongs to an example
        row, same = one[0], other[0]
        if row.shape != same.shape:
            return False
        if row.dtype != np.float64:
            return bool(np.all(row == same))
        scale = max(
            np.abs(a[np.isfinite(a)]).max(initial=0) for a in (one, other)
        )
        return np.allclose(row, same, 0, tolerance * scale, equal_nan=True)

    return agree


def rounding(model: keras.Model) -> float:
    """How far rounding may move a result, relative to its size.

    It is the root of the coarsest precision in the model: results of a few
    thousand operations differ less, and those of other examples more.
    """
    layers = model._flatten_layers()
    if any(getattr(each, "quantization_mode", None) for each in layers):
        return _QUANTIZED**0.5
    precisions = [_PRECISION.get(x.compute_dtype, _SINGLE) for x in layers]
    return max(precisions) ** 0.5
