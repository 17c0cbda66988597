"""One Keras loss, before it is reduced to a number.

Keras weighs a loss's values with sample weights and masks, and then reduces
them over examples and positions alike. Here the two are kept apart: what an
example's loss is, and what the batch makes of it.

Synopsis:

    mse = keras.losses.MeanSquaredError()
    terms = terms_of(mse, y, y_pred, sample_weight)
    per_example(terms)      # ℓ [n]
    batch_weights(terms)    # b [n]; Keras's batch loss is Σ_i b_i ℓ_i
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.losses.expected_outputs import unwrap
from keras_tracin.losses.invalid_labels import Outside, separate
from keras_tracin.models.loops import unfinished_loops


@dataclasses.dataclass(frozen=True)
class Terms:
    """A loss's values for a batch, position by position.

    Attributes:
        weighted: values times weights, `[n, ...]`, in float32 or wider.
        weights: sample weights times masks, of the same shape.
        seen: the masks alone, of the same shape; None if there are none.
        reduction: `"mean"`, `"mean_with_sample_weight"`, `"sum"`, or None
            where what Keras differentiates is the sum of the values.
    """

    weighted: tf.Tensor
    weights: tf.Tensor
    seen: tf.Tensor | None
    reduction: str | None

    @property
    def positions(self) -> tf.Tensor:
        """Number of positions of each example that are not masked, `[n]`."""
        counted = tf.ones_like(self.weights) if self.seen is None else self.seen
        return _over_positions(counted)

    def marked(self, outside: Outside) -> Terms:
        """The same terms, with NaN where a label outside of the classes counts.

        Raises:
            LabelsOutsideClasses: instead, in eager execution.
        """
        return dataclasses.replace(
            self, weighted=outside.marked(self.weighted, self.weights)
        )


def terms_of(
    loss: keras.losses.Loss,
    y_true,
    y_pred,
    sample_weight,
    dtype: str | None = None,
) -> Terms:
    """Evaluates a loss for each example.

    Args:
        loss: any Keras loss whose examples do not interact.
        y_true: labels `[n, ...]`.
        y_pred: predictions `[n, ...]`.
        sample_weight: None, or weights `[n]` or of each position.
        dtype: the dtype to compute in; by default the loss's own.

    Raises:
        ValueError: if the loss has reduced the batch already, compares its
            examples with each other, or has values that masks or weights do
            not fit.
    """
    if getattr(loss, "fn", None) is keras.losses.circle:
        raise ValueError(
            f"The loss '{loss.name}' compares the examples of a batch with "
            "each other, so examples cannot be told apart. Pass another loss "
            "as `loss=`."
        )
    masks = [getattr(y_pred, "_keras_mask", None)]
    if type(loss).__call__ is keras.losses.Loss.__call__:
        evaluate, reduction = loss.call, loss.reduction
        y_true, y_pred = _as_for_call(dtype or loss.dtype, y_true, y_pred)
    else:
        evaluate, reduction = _unreduced(loss, y_true, y_pred)
    _check_shape(loss, evaluate, y_true, y_pred)
    y_true, outside = separate(loss, y_true, y_pred)
    values = to_wide(evaluate(y_true, y_pred))
    masks.append(getattr(values, "_keras_mask", None))
    terms = weigh(values, sample_weight, masks, reduction)
    return terms if outside is None else terms.marked(outside)


def weigh(values, sample_weight, masks, reduction="mean") -> Terms:
    """The terms of values `[n, ...]`.

    Args:
        values: the loss at each position.
        sample_weight: None, or weights `[n]` or of each position.
        masks: each None or an array of the positions that count.
        reduction: the name of the reduction in Keras.
    """
    masks = [mask for mask in masks if mask is not None]
    seen = None
    if masks:
        seen = tf.ones_like(values)
        for mask in masks:
            seen *= _fit(mask, values, "The mask of the predictions")
    weights = tf.ones_like(values) if seen is None else seen
    if sample_weight is not None:
        weights *= _fit(sample_weight, values, "`sample_weight`")
    reduction = {"sum_over_batch_size": "mean", "none": None}.get(
        reduction, reduction
    )
    return Terms(values * weights, weights, seen, reduction)


def per_example(terms: Terms) -> tf.Tensor:
    """`ℓ [n]`: the mean (or sum) over each example's own positions."""
    sums = _over_positions(terms.weighted)
    if terms.reduction == "sum":
        return sums
    return tf.math.divide_no_nan(sums, terms.positions)


def batch_weights(terms: Terms) -> tf.Tensor:
    """`b [n]`: the weight of each example's loss in the batch's loss."""
    positions = terms.positions
    if terms.reduction is None:
        return positions
    if terms.reduction == "sum":
        return tf.ones_like(positions)
    if terms.reduction == "mean_with_sample_weight":
        total = tf.reduce_sum(terms.weights)
    else:
        total = tf.reduce_sum(positions)
    return tf.math.divide_no_nan(positions, total)


def expand(tensor: tf.Tensor, rank: int) -> tf.Tensor:
    """Adds or takes off last axes of length one to reach a rank."""
    while tensor.shape.rank > rank and tensor.shape[-1] == 1:
        tensor = tf.squeeze(tensor, -1)
    while tensor.shape.rank < rank:
        tensor = tensor[..., tf.newaxis]
    return tensor


def _fit(factor, values: tf.Tensor, what: str) -> tf.Tensor:
    """Gives a mask or weights a shape that broadcasts over `values`."""
    factor = tf.cast(factor, values.dtype)
    fitted = expand(factor, values.shape.rank)
    if fitted.shape.rank != values.shape.rank:
        raise ValueError(
            f"{what} should have no more axes than the loss has values. "
            f"Received shape {factor.shape} for a loss of shape "
            f"{values.shape}. Use a loss with a value for each position, or "
            "one weight for each example."
        )
    return fitted


def _over_positions(tensor: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tensor, axis=list(range(1, tensor.shape.rank)))


def to_wide(values: Any) -> tf.Tensor:
    """Numbers in float32 where they were of lower precision.

    The mask that Keras noted is kept.
    """
    values = tf.convert_to_tensor(values)
    if values.dtype.size >= 4:
        return values
    wide = tf.cast(values, tf.float32)
    if hasattr(values, "_keras_mask"):
        wide._keras_mask = values._keras_mask
    return wide


def _as_for_call(dtype, y_true, y_pred):
    """Labels and predictions as `Loss.__call__` gives them to `call`.

    Where the dtype fits already, the tensor stays the same object and keeps
    the logits that Keras noted on it.
    """
    logits = getattr(y_pred, "_keras_logits", None)
    if logits is not None and logits.dtype != dtype:
        # In training a cast lost them: outputs in half precision come here in
        # float32 already.
        y_pred = tf.identity(y_pred)
    return keras.tree.map_structure(
        lambda t: keras.ops.convert_to_tensor(t, dtype=dtype),
        (y_true, y_pred),
    )


def _unreduced(loss, y_true, y_pred):
    """A loss with a `__call__` of its own, unreduced, and its reduction.

    Its `reduction` is switched off. A loss that prepares its arguments and
    leaves the rest to `Loss.__call__` then has a value for each example.
    Weights come later, as for any loss.
    """
    # A copy by `copy` would go through Keras's serialization.
    twin = object.__new__(type(loss))
    vars(twin).update(vars(loss), reduction=None)
    whole = tf.convert_to_tensor(loss(y_true, y_pred))
    reduction = loss.reduction if whole.shape.rank == 0 else None
    return twin, reduction


def _check_shape(loss, evaluate: Callable[[Any, Any], Any], y_true, y_pred):
    """Raises ValueError for a loss whose shape shows that examples are mixed.

    It is traced for a number of examples that no other axis has. With the
    number left open, or with one example alone, a value for each example could
    not be told from one for each class, or from one for all.
    """
    leaves = tf.nest.flatten((y_true, y_pred))
    shapes = [tf.convert_to_tensor(leaf).shape for leaf in leaves]
    lengths = {length for shape in shapes for length in shape[1:]}
    count = next(n for n in itertools.count(61) if n not in lengths)
    try:
        shape = _traced_shape(evaluate, (y_true, y_pred), count)
    except (ValueError, TypeError) as error:
        # Its broadcasting may need another number of examples. A scalar still
        # gets the error for scalars.
        shape, reason = None, error
        try:
            shape = _traced_shape(evaluate, (y_true, y_pred), None)
        except (ValueError, TypeError) as other:
            reason = other
        if shape is None or shape.rank != 0:
            shown = ", ".join(map(str, shapes))
            raise ValueError(
                f"The loss '{loss.name}' cannot take these labels. Received "
                f"labels and predictions of shapes {shown}, expected labels as "
                "`model.fit` took them, or another loss as `loss=`. The loss "
                f"says: {reason}"
            ) from error
    if shape.rank == 0:
        raise ValueError(
            f"The loss '{loss.name}' returns a scalar: it has already reduced "
            "the batch, so examples cannot be told apart. "
            + _remedy_of_scalar(loss)
        )
    if shape.rank is None or shape[0] != count or count in shape[1:]:
        shown = "unknown shape" if shape.rank is None else f"shape {shape}"
        raise ValueError(
            f"The loss '{loss.name}' should return one value, or one for each "
            "position, of each example, in the examples' order. Received "
            f"values of {shown} for {count} examples, with labels and "
            f"predictions of shapes {shapes}. Check "
            "its `axis` and what it broadcasts, and let masked positions be "
            "zero rather than drop them; or pass another loss as `loss=`."
        )


def _traced_shape(
    evaluate: Callable[[Any, Any], Any], data: Any, count: int | None
) -> tf.TensorShape:
    """The shape of a loss's values for this number of examples."""
    specs = tf.nest.map_structure(
        lambda leaf: tf.TensorSpec([count, *leaf.shape[1:]], leaf.dtype), data
    )
    traced = tf.function(evaluate, autograph=False)
    with unfinished_loops():
        return traced.get_concrete_function(*specs).structured_outputs.shape


def _remedy_of_scalar(loss) -> str:
    _, options = unwrap(loss)
    if "axis" in options and options["axis"] is None:
        return (
            "Name all axes but the first in `axis=` when making the loss, "
            "`axis=(1, 2, 3)` for images."
        )
    return (
        "Return one value per example (leave out the mean or the sum; Keras "
        "reduces what `compile` was given), or pass such a loss as `loss=`."
    )
