"""The kind of outputs that a loss expects.

A cross-entropy over classes takes one output for each class, of which one is
right. A binary cross-entropy takes outputs that are each right or wrong, by
themselves. A squared error takes numbers. All that depends on which of these a
model was trained for asks here: the logit or margin that a query measures,
TRAK's model output, the targets of representer points, and the Gauss-Newton
matrix.

Synopsis:

    expected = ExpectedOutputs.of(model, loss=None)
    expected.choice                          # "classes", "sides", "numbers"
    choice_of("softmax", expected)           # "classes", whatever the loss
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras

from keras_tracin.models.compiled import losses_of

# They take the logarithms of probabilities, or logits if they are told so.
_CROSS_ENTROPIES: dict[Callable, str] = {
    keras.losses.sparse_categorical_crossentropy: "classes",
    keras.losses.categorical_crossentropy: "classes",
    keras.losses.categorical_focal_crossentropy: "classes",
    keras.losses.binary_crossentropy: "sides",
    keras.losses.binary_focal_crossentropy: "sides",
}
_CHOICES: dict[Callable, str] = {
    **_CROSS_ENTROPIES,
    keras.losses.categorical_hinge: "classes",
    keras.losses.hinge: "sides",
    keras.losses.squared_hinge: "sides",
    keras.losses.mean_squared_error: "numbers",
    keras.losses.mean_absolute_error: "numbers",
    keras.losses.mean_squared_logarithmic_error: "numbers",
    keras.losses.huber: "numbers",
    keras.losses.log_cosh: "numbers",
    keras.losses.poisson: "numbers",
}


@dataclasses.dataclass(frozen=True)
class ExpectedOutputs:
    """The kind of outputs that a loss expects.

    Attributes:
        name: the name of the loss, for errors.
        choice: "classes", one output for each class, of which one is right;
            "sides", each output is high for one of two classes and low for
            the other; "numbers", each output is a number to predict; None
            where the loss does not say.
        from_logits: whether the loss takes logits rather than probabilities;
            None where it does not say.
        last_axis: whether classes lie along the last axis.
        is_cross_entropy: whether the loss is one of Keras's cross-entropies.
        ignore_class: the label of positions that the loss leaves out.
    """

    name: str = "None"
    choice: str | None = None
    from_logits: bool | None = None
    last_axis: bool = True
    is_cross_entropy: bool = False
    ignore_class: int | None = None

    @classmethod
    def of(cls, model: keras.Model, loss: Any = None) -> ExpectedOutputs:
        """The outputs that `loss`, by default the compiled one, expects."""
        losses = losses_of(model, loss)
        if len(losses) != 1:
            return cls()
        (loss,) = losses
        if isinstance(loss, str):
            loss = keras.losses.get(loss)
        function, options = unwrap(loss)
        choice = _CHOICES.get(function) if _is_hashable(function) else None
        is_cross_entropy = choice is not None and function in _CROSS_ENTROPIES
        default = False if is_cross_entropy else None
        stated = options.get(
            "from_logits", getattr(loss, "from_logits", default)
        )
        by_axis = is_cross_entropy and choice == "classes"
        return cls(
            name=str(getattr(function, "__name__", type(loss).__name__)),
            choice=choice,
            from_logits=stated if isinstance(stated, bool) else None,
            last_axis=not by_axis or options.get("axis", -1) == -1,
            is_cross_entropy=is_cross_entropy,
            ignore_class=options.get("ignore_class"),
        )


def unwrap(loss: Any) -> tuple[Any, dict[str, Any]]:
    """The function that computes a loss, and the options it is called with.

    Args:
        loss: a Keras loss, or a function of `(y_true, y_pred)`. Keras's losses
            and `functools.partial` are taken off.
    """
    options = dict(getattr(loss, "_fn_kwargs", None) or {})
    function = getattr(loss, "fn", loss)
    while isinstance(function, functools.partial):
        options = {**function.keywords, **options}
        function = function.func
    return function, options


def choice_of(activation: str | None, expected: ExpectedOutputs) -> str | None:
    """The choice that the outputs of a model make.

    The outputs of a softmax exclude each other, whatever the loss makes of
    them, and so do those that a loss over classes compares with each other.

    Args:
        activation: the function that the outputs come from, if it is known.
        expected: the outputs that the loss expects.

    Returns:
        "classes", "sides", "numbers" or None, as in `ExpectedOutputs.choice`.
    """
    if activation == "softmax" or expected.choice == "classes":
        return "classes"
    if activation == "sigmoid" or expected.choice == "sides":
        return "sides"
    return expected.choice


def _is_hashable(value: Any) -> bool:
    return getattr(type(value), "__hash__", None) is not None
