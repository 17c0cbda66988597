"""The loss of one example, from what the model was compiled with.

Keras reduces a batch's losses to a number; attribution needs them apart. The
reduction is undone here: `ℓ_i` is what the batch's loss would be if example i
were alone in it, times its sample weight. Without masks, a mean reduction of
the batch is then the mean of the `ℓ_i`, and a sum reduction their sum. With a
mask, `ℓ_i` is the mean over i's own unmasked positions, so that it does not
depend on the rest of the batch. Where real training is replayed, the batch
counts after all: `batch_weights` are the `b_i` with which the batch's loss is
`Σ_i b_i ℓ_i`, and `batch_shares` the `b_i ℓ_i`.

Weight regularisers belong to the objective, not to an example: they are not
part of `ℓ_i`. Losses that layers add from their inputs have no per-example
value and are refused (`check_no_activation_losses`).

Synopsis:

    loss = per_example_loss(model)
    values = loss(y, y_pred, sample_weight)  # [n]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.losses import loss_terms
from keras_tracin.losses.loss_terms import Terms
from keras_tracin.losses.terms_of_outputs import terms_of_outputs
from keras_tracin.models.compiled import (
    losses_of,
)
from keras_tracin.models.state import layers_with_losses

PerExampleLoss = Callable[[Any, Any, Any], tf.Tensor]

NOT_SPLIT = (
    "computed from their inputs (`add_loss` or `activity_regularizer`), which "
    "cannot be split into examples. Pass the rest of the objective as `loss=` "
    "to attribute that alone; or score a model of the same layers that returns "
    "what the losses are computed from, by a `loss=` of all of it."
)


def per_example_loss(
    model: keras.Model,
    loss: Any = None,
    class_weight: Mapping[int, float] | None = None,
    dtype: str | None = None,
) -> PerExampleLoss:
    """The per-example loss of a compiled model.

    Args:
        model: a Keras model.
        loss: anything `compile(loss=...)` takes, used in place of the
            compiled loss; a plain function `(y_true, y_pred)` should return
            one value per example.
        class_weight: as in `model.fit`: a weight for each class index by
            which the losses of its examples are scaled.
        dtype: the dtype to compute in; by default the loss's own.

    Returns:
        A function `(y, y_pred, sample_weight) -> [n]`, in float32 or wider.

    Raises:
        ValueError: if no `loss` is given and the model is not compiled, or
            computes its loss by a `compute_loss` or a `train_step` of its
            own; or (when called) if the loss is reduced already or its
            examples interact.
    """
    evaluate_terms = terms_of_outputs(model, loss, class_weight, dtype)

    def evaluate(y, y_pred, sample_weight=None):
        outputs = evaluate_terms(y, y_pred, sample_weight)
        return _sum(
            (loss_terms.per_example(t), weight) for t, weight in outputs
        )

    return evaluate


def batch_shares(
    model: keras.Model,
    loss: Any = None,
    class_weight: Mapping[int, float] | None = None,
) -> PerExampleLoss:
    """The contribution of each example to the loss that Keras trains on.

    The shares of a batch add up to its loss, weight regularisers aside, with
    `"none"` as reduction to the sum of its values: Keras differentiates that.
    Unlike `per_example_loss`, they depend on the batch: on its size, and with
    masks on how many positions the others have.

    Args:
        model: a Keras model.
        loss: as in `per_example_loss`.
        class_weight: as in `per_example_loss`.

    Returns:
        A function `(y, y_pred, sample_weight) -> [n]`, `b_i ℓ_i` for each
        example, for a whole batch of one device.

    Raises:
        ValueError: as `per_example_loss`.
    """
    evaluate_terms = terms_of_outputs(model, loss, class_weight)

    def evaluate(y, y_pred, sample_weight=None):
        outputs = evaluate_terms(y, y_pred, sample_weight)
        return _sum(
            (loss_terms.batch_weights(t) * loss_terms.per_example(t), weight)
            for t, weight in outputs
        )

    return evaluate


def batch_weights(
    model: keras.Model,
    loss: Any = None,
    class_weight: Mapping[int, float] | None = None,
) -> PerExampleLoss:
    """The weight `b_i` of each example in the loss that Keras trains on.

    Args:
        model: a Keras model.
        loss: as in `per_example_loss`.
        class_weight: as in `per_example_loss`.

    Returns:
        A function `(y, y_pred, sample_weight) -> [n]`: the `b_i` with which
        `Σ_i b_i ℓ_i` is the loss of a whole batch of one device, and
        `Σ_i b_i ∇ℓ_i` its gradient.

    Raises:
        ValueError: as `per_example_loss`; or (when called) if outputs have
            weights of their own, so that no single one relates the two:
            `batch_shares` serves there.
    """
    evaluate_terms = terms_of_outputs(model, loss, class_weight)

    def evaluate(y, y_pred, sample_weight=None):
        outputs = [t for t, _ in evaluate_terms(y, y_pred, sample_weight)]
        kinds = {_kind_of_weights(terms) for terms in outputs}
        if len(outputs) > 1 and (len(kinds) > 1 or None in kinds):
            raise ValueError(
                "The batch's loss weighs the outputs of an example "
                "differently. Received reductions "
                f"{[terms.reduction for terms in outputs]} and masks "
                f"{[terms.seen is not None for terms in outputs]}; expected "
                "means or sums without masks, which have one weight for an "
                "example. Use `batch_shares`."
            )
        return loss_terms.batch_weights(outputs[0])

    return evaluate


def _kind_of_weights(terms: Terms) -> str | None:
    """The reduction that fixes the weights of a batch, if one alone does."""
    if terms.reduction in ("mean", "sum") and terms.seen is None:
        return terms.reduction
    return None


def _sum(parts) -> tf.Tensor:
    """`Σ weight · values`, in the widest of the values' types."""
    scaled = [values * weight for values, weight in parts]
    dtype = max((t.dtype for t in scaled), key=lambda dtype: dtype.size)
    return tf.add_n([tf.cast(values, dtype) for values in scaled])


def penalty_weight(
    model: keras.Model, loss: Any = None, batch_size: int | None = None
) -> float:
    """The weight of weight regularisers beside the mean of the `ℓ_i`.

    Keras adds them to each batch's loss as they are. Beside a loss that is a
    mean over the batch their weight is 1; beside a sum over `batch_size`
    examples it is `1 / batch_size`. Decoupled weight decay, an optimizer's own,
    is not part of the objective.

    Args:
        model: a Keras model.
        loss: a loss in place of the compiled one.
        batch_size: the batch size of training, needed where losses are summed.

    Raises:
        ValueError: if the model is regularised and its losses are summed, and
            no `batch_size` is given.
    """
    if not any(getattr(v, "regularizer", None) for v in model.weights):
        return 1.0
    what = "what the weight regularisers count beside its mean"
    return 1.0 / objective_scale(model, what, loss, batch_size)


def objective_scale(
    model: keras.Model,
    what: str,
    loss: Any = None,
    batch_size: int | None = None,
) -> float:
    """A batch's loss as a multiple of the mean of the `ℓ_i`.

    Args:
        model: a Keras model.
        what: what depends on it, for the error.
        loss: a loss in place of the compiled one.
        batch_size: the batch size of training, needed where losses are summed.

    Raises:
        ValueError: if losses are summed, and no `batch_size` is given.
    """
    summed = [
        entry
        for entry in losses_of(model, loss)
        if getattr(entry, "reduction", "mean") in ("sum", "none", None)
    ]
    if not summed:
        return 1.0
    if batch_size is None:
        raise ValueError(
            f"The loss is summed over each batch, so {what} depends on the "
            "batch size of training. Pass it as `batch_size=`. Received: "
            f"losses {[type(entry).__name__ for entry in summed]} with "
            "reduction='sum'."
        )
    return float(batch_size)


def check_no_activation_losses(model: keras.Model) -> None:
    """Refuses losses that depend on a whole batch's activations.

    Call it after the model, inside the same trace.

    Raises:
        ValueError: naming the layers, and the way round.
    """
    layers = [layer.name for layer in layers_with_losses(model)]
    if layers:
        raise ValueError(f"Layers {layers} add losses {NOT_SPLIT}")
