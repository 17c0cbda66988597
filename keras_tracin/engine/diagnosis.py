"""Explains why a computation on some examples failed, by their ids.

The compiled steps are not slowed down by looking for trouble. When a score
turns out to be NaN, or TensorFlow stops, the batches in question are computed
again, eagerly and piece by piece, until the reason is found.

Synopsis:

    suspects = [Suspect("training", batch, functions)]
    with explaining(suspects):
        scores = step(batch.data)
    if not np.isfinite(scores).all():
        raise not_finite(model, suspects, "checkpoint 'runs/a/...' (epoch 3)")
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch
from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.gradients.capture import PerExampleLoss
from keras_tracin.gradients.refusals import check_examples_apart
from keras_tracin.gradients.steadiness import StateChanges, check_steady
from keras_tracin.losses.invalid_labels import LabelsOutsideClasses
from keras_tracin.models.errors import brief

_MOST_SHOWN = 10
_TRIED = 2  # examples that a model is called on before any work


class Functions(Protocol):
    """What computed a batch: a model and a loss, which are run again."""

    @property
    def model(self) -> keras.Model:
        """The model."""

    @property
    def loss(self) -> PerExampleLoss:
        """The per-example loss."""


@dataclasses.dataclass(frozen=True)
class Suspect:
    """A batch that may have made a computation fail.

    Attributes:
        role: "training" or "query".
        batch: the examples.
        functions: the compiled steps for them.
    """

    role: str
    batch: Batch
    functions: Functions

    def name(self, rows: Iterable[int]) -> str:
        """Some of the examples in words."""
        ids = [self.batch.ids[row].item() for row in rows]
        more = len(ids) - _MOST_SHOWN
        rest = f" and {more} more" * (more > 0)
        return f"{self.role} examples with ids {ids[:_MOST_SHOWN]}{rest}"


def check_fits(model: keras.Model, batch: Batch, name: str) -> None:
    """Builds a model that is not built, and tries a batch on it.

    Raises:
        ValueError: if the model does not take such inputs, or changes with
            each call; as `check_examples_apart`.
    """
    check_examples_apart(model)
    _check_numbers(batch.y, name)
    x = tf.nest.map_structure(lambda leaf: leaf[:_TRIED], batch.x)
    try:
        if not model.built:
            _build(model, x)
        check_steady(model, x)
    except (
        ValueError,
        TypeError,
        tf.errors.InvalidArgumentError,
        tf.errors.UnimplementedError,
    ) as error:
        if isinstance(error, StateChanges):
            raise
        shapes = tf.nest.map_structure(
            lambda leaf: (1, *leaf.shape[1:]), batch.x
        )
        raise ValueError(
            f"The model '{model.name}' cannot take the inputs of `{name}`. "
            f"Received x of shape {shapes}{_of_text(x)} for one example. Pass "
            "data as "
            "`model.fit` took it; a `tf.data.Dataset` needs `.batch(...)`. "
            f"The model says: {brief(error)}"
        ) from error


def _build(model: keras.Model, x: Any) -> None:
    """Builds a model without a call that could change its variables."""

    def of_same_type(leaf):
        tensor = tf.convert_to_tensor(leaf)
        return tf.compat.v1.placeholder(tensor.dtype, tensor.shape)

    with (
        contextlib.suppress(Exception),  # the call itself says what is wrong
        tf.__internal__.FuncGraph("build").as_default(),
    ):
        model(tf.nest.map_structure(of_same_type, x), training=False)
    if not model.built:
        model(x, training=False)


def _check_numbers(y: Any, name: str) -> None:
    """Refuses labels that are no numbers, which no loss can take."""
    for leaf in tf.nest.flatten(y):
        if leaf is not None and not _is_numeric(leaf):
            first = np.asarray(leaf).reshape(-1)[0]
            dtype = getattr(leaf.dtype, "name", leaf.dtype)
            raise ValueError(
                f"The labels of `{name}` should be numbers, as the loss takes "
                f"them. Received labels of dtype {dtype}, {first!r} for one. "
                "Map them to the numbers of classes as for `model.fit`: "
                "`classes, y = np.unique(y, return_inverse=True)`, or "
                "`keras.layers.StringLookup` in a `.map(...)`."
            )


def _is_numeric(leaf: Any) -> bool:
    if tf.is_tensor(leaf):
        return leaf.dtype != tf.string
    return np.asarray(leaf).dtype.kind not in "OSU"


def _of_text(x: Any) -> str:
    text = [leaf for leaf in tf.nest.flatten(x) if not _is_numeric(leaf)]
    return (
        " and of text, which needs a model that begins with a "
        "`keras.layers.TextVectorization` or the like,"
        if text
        else ""
    )


@contextlib.contextmanager
def explaining(suspects: Sequence[Suspect]) -> Iterator[None]:
    """Names the examples that TensorFlow or the loss complain of.

    Raises:
        ValueError: in place of the error, with the examples that cause it, or
            those among which they are.
    """
    try:
        yield
    except (tf.errors.InvalidArgumentError, LabelsOutsideClasses) as error:
        for suspect in suspects:
            message = _unfit_labels(suspect) or _refused_by_tensorflow(suspect)
            if message:
                raise ValueError(message) from error
        if isinstance(error, tf.errors.InvalidArgumentError):
            raise ValueError(_stopped(suspects, error)) from error
        raise


def broken_gradient(suspect: Suspect, where: str) -> str | None:
    """What to say of gradients that are NaN or infinite, if some are.

    Args:
        suspect: the examples, with steps that capture gradients.
        where: the weights in words.
    """
    assert isinstance(suspect.functions, GradientFunctions)
    broken = first_not_finite(suspect.functions, suspect.batch.data)
    if broken is None:
        return None
    layer, rows = broken
    return (
        f"The gradients of {suspect.name(rows)} are NaN or infinite in layer "
        f"'{layer}' at {where}, although weights and data are finite. Look "
        "for a division by zero or an overflow in it, or choose weights from "
        "before the loss diverged."
    )


def not_finite(
    model: keras.Model,
    suspects: Sequence[Suspect],
    where: str,
    broken_results: Callable[[Suspect, str], str | None] = broken_gradient,
) -> ValueError:
    """The error that names what is NaN or infinite.

    Args:
        model: the model, with the weights that were used.
        suspects: the batches that were used.
        where: these weights in words.
        broken_results: says of a suspect, where weights and data are finite,
            which of its results are not.
    """
    message = _broken_weight(model, where)
    for suspect in suspects:
        message = message or (
            _unfit_labels(suspect)
            or _broken_data(suspect)
            or broken_results(suspect, where)
        )
    return ValueError(
        message
        or f"Scores overflow float32 at {where}, although all gradients are "
        "finite. Choose weights from before the loss diverged, or scale the "
        "loss down."
    )


def _broken_weight(model: keras.Model, where: str) -> str | None:
    for weight in model.trainable_weights:
        if not np.isfinite(_floats(weight.value)).all():
            return (
                f"The weight '{weight.path}' is NaN or infinite at {where}. "
                "Training had diverged by then: choose weights from before."
            )
    return None


def _unfit_labels(suspect: Suspect) -> str | None:
    try:
        losses_of(suspect.functions, suspect.batch.data)
    except LabelsOutsideClasses as error:
        return error.explain(suspect.name(error.rows))
    except tf.errors.InvalidArgumentError:
        pass
    return None


def broken_rows(batch: Batch) -> dict[str, list[int]]:
    """The rows of `x`, `y` and `sample_weight` that are NaN or infinite."""
    named = {"x": batch.x, "y": batch.y, "sample_weight": batch.sample_weight}
    rows = {}
    for part, structure in named.items():
        broken = np.zeros(len(batch), bool)
        for leaf in tf.nest.flatten(structure):
            if leaf is not None and tf.as_dtype(leaf.dtype).is_floating:
                finite = np.isfinite(_floats(leaf)).reshape(len(batch), -1)
                broken |= ~finite.all(axis=1)
        if broken.any():
            rows[part] = np.flatnonzero(broken).tolist()
    return rows


def _broken_data(suspect: Suspect) -> str | None:
    for part, rows in broken_rows(suspect.batch).items():
        return (
            f"The data of {suspect.name(rows)} is NaN or infinite: look at "
            f"`{part}`. Expected finite numbers; correct these examples, or "
            "leave them out."
        )
    return None


def losses_of(functions: Functions, data: Any) -> tf.Tensor:
    """The per-example losses `[n]`, computed eagerly.

    Args:
        functions: the steps, for their model and loss.
        data: `(x, y[, sample_weight])` of a batch.

    Raises:
        LabelsOutsideClasses: if the loss cannot take a label.
    """
    x, y, *weight = tf.nest.map_structure(tf.convert_to_tensor, data)
    y_pred = functions.model(x, training=False)
    return functions.loss(y, y_pred, weight[0] if weight else None)


def first_not_finite(
    functions: GradientFunctions, data: Any
) -> tuple[str, np.ndarray] | None:
    """The first layer with a NaN or infinite gradient, and the rows.

    Args:
        functions: the steps that capture gradients.
        data: `(x, y[, sample_weight])` of a batch.
    """
    captured = functions.captured(data)
    named = zip(captured.names, captured.factors, strict=True)
    for name, factors in [("the loss", captured.losses), *named]:
        for tensor in tf.nest.flatten(factors):
            if tensor.dtype.is_floating:
                finite = np.isfinite(tensor.numpy()).reshape(len(tensor), -1)
                rows = np.flatnonzero(~finite.all(axis=1))
                if len(rows):
                    return name, rows
    return None


def _refused_by_tensorflow(suspect: Suspect) -> str | None:
    """The examples on which TensorFlow fails also when they are alone."""
    rows, reason = [], ""
    for row in range(len(suspect.batch)):
        data = tf.nest.map_structure(
            lambda leaf, row=row: leaf[row : row + 1], suspect.batch.data
        )
        try:
            losses_of(suspect.functions, data)
        except tf.errors.InvalidArgumentError as error:
            rows.append(row)
            reason = reason or brief(error)
    if not rows:
        return None
    return (
        f"TensorFlow cannot compute {suspect.name(rows)}: {reason}\n"
        "Correct these examples, or leave them out."
    )


def _stopped(suspects: Sequence[Suspect], error: Exception) -> str:
    """An error of TensorFlow on examples whose losses it can compute."""
    named = [suspect.name(range(len(suspect.batch))) for suspect in suspects]
    return (
        "TensorFlow cannot compute gradients of "
        f"{' and '.join(dict.fromkeys(named))}: {brief(error)}"
    )


def _floats(leaf: Any) -> np.ndarray:
    """A float tensor as NumPy knows it: it has no bfloat16."""
    return tf.cast(leaf, tf.float64).numpy()
