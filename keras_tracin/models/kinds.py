"""What is no model of Keras 3, and what to do with it.

Synopsis:

    check_is_model(model)
    has_weights(model)          # whether it has those that it will train
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any

import keras


def check_is_model(model: Any, needs_call: bool = True) -> None:
    """Checks that it is a model of Keras 3.

    Args:
        model: what a user gave as the model.
        needs_call: whether its outputs will be needed.

    Raises:
        TypeError: it is something else.
        ValueError: it has no `call`.
    """
    if isinstance(model, keras.Model):
        if needs_call and not has_call(model):
            raise ValueError(
                f"The model {model.name!r} has no `call`, so it has no outputs "
                "and no loss. Give its class a `call` that returns what the "
                "loss is of, or name a part that has one"
                f"{_parts_of(model)}. A run of the part alone is recorded by "
                "`TracInCheckpoint(directory, model=part)`."
            )
        return
    expected = "`model` should be a `keras.Model` of Keras 3."
    if isinstance(model, type):
        received = f"the class `{model.__name__}`. Make a model of it"
    elif isinstance(model, str) or hasattr(model, "__fspath__"):
        path = os.fspath(model)
        received = f"a path. Pass `keras.models.load_model({path!r})`"
    elif _is_of_keras_2(model):
        received = (
            f"a `{_name_of(model)}` of Keras 2. Build the same model with "
            "Keras 3 (without TF_USE_LEGACY_KERAS, from `keras` in place of "
            "`tf_keras`) and give it the weights: "
            "`model.set_weights(old.get_weights())`"
        )
    else:
        received = f"a `{_name_of(model)}`"
    raise TypeError(f"{expected} Received {received}.")


def has_call(model: keras.Model) -> bool:
    """Whether a model can be called: its class, or itself, has a `call`."""
    own = type(model).call is not keras.Model.call
    return own or "call" in vars(model)


def has_weights(model: keras.Model) -> bool:
    """Whether a model has the weights that it will train.

    One without a `call` never says that it is built: all its layers do.
    """
    if model.built:
        return True
    layers = model._flatten_layers(include_self=False)
    is_complete = bool(layers) and all(layer.built for layer in layers)
    return is_complete and not has_call(model)


@contextlib.contextmanager
def marked_as_built(model: keras.Model) -> Iterator[None]:
    """Has Keras save or load a model that never says that it is built."""
    before, model.built = model.built, True
    try:
        yield
    finally:
        model.built = before


def warn_of_no_call(model: keras.Model) -> None:
    """Warns that a run of a model without a `call` cannot be scored as such."""
    if not has_call(model):
        warnings.warn(
            f"The model {model.name!r} has no `call`. All its weights are "
            "recorded, but they can be scored only once its class has one. "
            "To record a part of it, pass it as TracInCheckpoint(directory, "
            f"model=part){_parts_of(model)}.",
            stacklevel=3,
        )


def _parts_of(model: keras.Model) -> str:
    """The attributes of a model that are models, for the end of a sentence."""
    parts = [k for k, v in vars(model).items() if isinstance(v, keras.Model)]
    return (
        f": its {' or '.join(f'`{part}`' for part in parts)}" if parts else ""
    )


def _is_of_keras_2(model: Any) -> bool:
    modules = [kind.__module__ for kind in type(model).__mro__]
    return any(
        module.startswith(("tf_keras.", "tensorflow.python.keras."))
        or (module.startswith("keras.") and not module.startswith("keras.src"))
        for module in modules
    )


def _name_of(model: Any) -> str:
    module, name = type(model).__module__, type(model).__name__
    return name if module == "builtins" else f"{module.split('.')[0]}.{name}"
