"""The last linear layer of a model, and what comes after it.

A representer decomposition needs logits that are linear in a representation,
`φ(z) = f(z) W`, and a prediction that is a known function of the logits. Both
are identified by running the model: the inputs of its Dense layers are
recorded, and those of the last one, times its weights, must reproduce the
prediction.

Synopsis:

    head = find_head(model, train.first(32).x)
    head.weights                             # [f, k], the bias as last row
    head.prediction(features @ head.weights)    # what the model returns
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any, NoReturn

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.gradients.sites import intercept, named_layers
from keras_tracin.models.exclusive import exclusive_access

# Functions of the logits that are recognised, in the order they are tried.
ACTIVATIONS = {
    "linear": keras.activations.linear,
    "softmax": keras.activations.softmax,
    "sigmoid": keras.activations.sigmoid,
    "tanh": keras.activations.tanh,
    "softplus": keras.activations.softplus,
    "exponential": keras.activations.exponential,
}

# Largest distance of a prediction from that of the same logits in float64, as
# a share of the largest logit: half of the digits that a layer computes with.
_TOLERANCES = {"float16": 2**-5, "bfloat16": 2**-4, "float64": 2**-26}
_FLOAT32_TOLERANCE = 2**-12


@dataclasses.dataclass(frozen=True)
class Head:
    """The Dense layer that makes a model's logits.

    Attributes:
        layer: the layer.
        weights: `[f, k]` float64, its kernel with the bias as last row.
        activation: name in `ACTIVATIONS` of the function that turns logits
            into the prediction.
        structure: the model's output, with a 0 in the tensor's place.
    """

    layer: keras.layers.Dense
    weights: np.ndarray
    activation: str
    structure: Any

    def features(self, inputs: np.ndarray) -> np.ndarray:
        """The layer's inputs `[n, i]` as features `[n, f]` in float64.

        Where the layer has a bias, a constant 1 is appended to each.
        """
        return _features(self.layer, inputs)

    def prediction(self, logits: tf.Tensor) -> Any:
        """The model's prediction for logits `[n, k]`."""
        output = ACTIVATIONS[self.activation](logits)
        return keras.tree.pack_sequence_as(self.structure, [output])

    def explains(self, features: np.ndarray, output: np.ndarray) -> bool:
        """Whether these features lead to the model's `output [n, k]`."""
        return _explains(
            self.layer, self.activation, features @ self.weights, output
        )


def find_head(
    model: keras.Model, x: Any, layer: str | keras.Layer | None = None
) -> Head:
    """Finds the Dense layer that makes the logits.

    Args:
        model: a built model with one output.
        x: inputs of some examples, on which a layer is tried.
        layer: the layer's name, path or object; by default the Dense layer
            that is called last.

    Raises:
        ValueError: if there is no such layer, if its outputs are not the
            logits of the prediction, or if it is called on anything but one
            vector per example.
    """
    dense = _dense_layers(model, layer)
    calls, output, structure = _run(model, x, dense)
    if not calls:
        raise ValueError(
            f"No Dense layer of the model '{model.name}' was called: "
            f"{[layer.name for layer in dense]}. Name the one that makes the "
            "logits as `layer=`."
        )
    last, inputs = calls[-1]
    if sum(called is last for called, _ in calls) > 1:
        _refuse(last, "is called more than once for each prediction")
    if inputs.ndim != 2 or len(inputs) != len(output):
        _refuse(
            last,
            f"reads an input of shape {inputs.shape} for {len(output)} "
            "examples, expected one vector for each",
        )
    weights = _weights(last)
    features = _features(last, inputs)
    finite = np.isfinite(features).all(axis=1)
    logits = features[finite] @ weights
    gaps = {
        activation: _gap(activation, logits, output[finite])
        for activation in ACTIVATIONS
        if _explains(last, activation, logits, output[finite])
        # Of a single logit a softmax is constant.
        and (activation != "softmax" or output.shape[-1] > 1)
    }
    if not gaps:
        refuse_output(last)
    # Near zero, or where they are saturated, several are much the same.
    closest = min(gaps, key=lambda activation: gaps[activation])
    return Head(last, weights, closest, structure)


def refuse_output(layer: keras.Layer) -> NoReturn:
    """Raises ValueError: the prediction is no known function of logits."""
    _refuse(
        layer,
        "makes no logits: the model's prediction is none of "
        f"{', '.join(ACTIVATIONS)} of `inputs @ kernel + bias`",
    )


def _refuse(layer: keras.Layer, what: str) -> NoReturn:
    raise ValueError(
        f"Representer points need a last layer that is linear, followed by a "
        f"known activation at most. Layer '{layer.name}' {what}. Name another "
        "Dense layer as `layer=`, or build a model that ends in one and reads "
        "one vector per example there."
    )


def _dense_layers(model, layer) -> list[keras.layers.Dense]:
    """The layers that may make the logits."""
    if layer is not None:
        (named,) = named_layers(model, [layer], "layer")
        if not isinstance(named, keras.layers.Dense):
            raise ValueError(
                "`layer=` should be the Dense layer that makes the logits. "
                f"Received '{named.name}', a {type(named).__name__}."
            )
        return [named]
    dense = [
        inner
        for inner in model._flatten_layers()
        if isinstance(inner, keras.layers.Dense)
    ]
    if not dense:
        raise ValueError(
            f"The model '{model.name}' has no Dense layer, so it has no logits "
            "that are linear in a representation. Representer points explain "
            "a model that ends in `keras.layers.Dense`; use `kt.TracIn` for "
            "others."
        )
    return dense


def _run(model, x, layers: Sequence[keras.Layer]):
    """The recorded calls, the output as an array, and its structure."""
    calls: list[tuple[keras.Layer, np.ndarray]] = []

    def recorder(layer):
        def call(original, *args, **kwargs):
            inputs = first_argument(args, kwargs)
            calls.append((layer, keras.ops.convert_to_numpy(inputs)))
            return original(*args, **kwargs)

        return call

    with contextlib.ExitStack() as stack:
        for layer in layers:
            stack.enter_context(intercept(layer, recorder(layer)))
        y_pred = model(
            tf.nest.map_structure(tf.convert_to_tensor, x), training=False
        )
    outputs = keras.tree.flatten(y_pred)
    if len(outputs) != 1:
        raise ValueError(
            "Representer points need a model with one output. Received: "
            f"'{model.name}' with {len(outputs)} outputs. Make a "
            "`keras.Model` of the output to explain."
        )
    structure = keras.tree.map_structure(lambda _: 0, y_pred)
    return calls, keras.ops.convert_to_numpy(outputs[0]), structure


def first_argument(args: tuple, kwargs: dict[str, Any]) -> Any:
    """The first argument of a layer's call, however it was passed."""
    return args[0] if args else next(iter(kwargs.values()))


def _weights(layer: keras.layers.Dense) -> np.ndarray:
    kernel = keras.ops.convert_to_numpy(layer.kernel).astype(np.float64)
    if not layer.use_bias:
        return kernel
    return np.vstack([kernel, keras.ops.convert_to_numpy(layer.bias)[None]])


def _features(layer: keras.layers.Dense, inputs: np.ndarray) -> np.ndarray:
    if not layer.use_bias:
        return inputs.astype(np.float64)
    features = np.ones((len(inputs), inputs.shape[1] + 1))
    features[:, :-1] = inputs
    return features


def _explains(layer, activation: str, logits, output) -> bool:
    if logits.shape != output.shape:
        return False
    expected = ACTIVATIONS[activation](tf.constant(logits)).numpy()
    largest = max(np.abs(values).max() for values in (logits, expected, 1.0))
    allowed = _TOLERANCES.get(layer.compute_dtype, _FLOAT32_TOLERANCE)
    return bool(_gap(activation, logits, output) <= allowed * largest)


def _gap(activation: str, logits, output) -> float:
    """The largest distance of a prediction from an activation of logits."""
    expected = ACTIVATIONS[activation](tf.constant(logits)).numpy()
    return float(np.abs(expected - output.astype(np.float64)).max())


class RetunedModel(keras.Model):
    """A model with other weights in its last layer.

    Its own variables are the kernel and bias of that layer. All else is the
    model it was made from, in inference mode, so that it changes when that is
    trained further.

    Args:
        model: the user's model, which is not changed.
        head: its last layer.
        weights: `[f, k]`, the bias as last row where the layer has one.
    """

    def __init__(self, model: keras.Model, head: Head, weights: np.ndarray):
        super().__init__(name=f"{model.name}_retuned")
        self._model, self._head = model, head
        inputs = len(weights) - head.layer.use_bias
        self.kernel = self._weight("kernel", weights[:inputs])
        self.bias = self._weight("bias", weights[inputs:].sum(axis=0))
        self.built = True

    def _weight(self, name: str, value: np.ndarray) -> keras.Variable:
        variable = self.add_weight(shape=value.shape, name=name)
        variable.assign(value)
        return variable

    def call(self, x: Any) -> Any:
        """The prediction."""
        layer = self._head.layer

        def instead(original, *args, **kwargs):
            del original
            inputs = first_argument(args, kwargs)
            kernel, bias = (
                tf.cast(value, inputs.dtype)
                for value in (self.kernel.value, self.bias.value)
            )
            logits = tf.matmul(inputs, kernel) + bias
            return layer.activation(logits) if layer.activation else logits

        with exclusive_access, intercept(layer, instead):
            return self._model(x, training=False)
