"""What is no model of Keras 3, and what to do with it.

Synopsis:

    check_is_model(model)
"""

from __future__ import annotations

import os
from typing import Any

import keras


def check_is_model(model: Any) -> None:
    """Raises TypeError unless it is a model of Keras 3.

    Args:
        model: what a user gave as the model.
    """
    if isinstance(model, keras.Model):
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
