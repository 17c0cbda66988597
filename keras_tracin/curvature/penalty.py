"""Variables as one vector, and the weight regularisers as a function of it.

Synopsis:

    layout = Layout(variables)
    layout.join(layout.split(vector))      # the same vector
    Penalty(layout, weight=1.0).gradient()   # [p]
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.gradients.compiling import compile_step
from keras_tracin.gradients.flat import size_of

Parts = list[tf.Tensor]

ZEROS: dict[str, Any] = {"unconnected_gradients": tf.UnconnectedGradients.ZERO}


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """The places of variables in a vector `[p]`."""

    variables: tuple[keras.Variable, ...]

    @property
    def size(self) -> int:
        """Number of entries of all variables, p."""
        return sum(map(size_of, self.variables))

    @functools.cached_property
    def dtype(self) -> tf.DType:
        """The widest of the variables' types."""
        widest = max(self.variables, key=lambda v: tf.as_dtype(v.dtype).size)
        return tf.as_dtype(widest.dtype)

    @property
    def values(self) -> list[tf.Variable]:
        """The variables as TensorFlow knows them."""
        return [variable.value for variable in self.variables]

    def split(self, vector: tf.Tensor) -> Parts:
        """A vector `[p]` as one tensor of each variable's shape and type."""
        parts = tf.split(vector, [size_of(v) for v in self.variables])
        return [
            tf.cast(tf.reshape(part, variable.shape), variable.dtype)
            for part, variable in zip(parts, self.variables, strict=True)
        ]

    def join(self, parts: Parts) -> tf.Tensor:
        """The vector `[p]` that `split` cuts into these."""
        flat = [tf.reshape(tf.cast(part, self.dtype), [-1]) for part in parts]
        return tf.concat(flat, axis=0)


class Penalty:
    """`ρ R(w)`, the sum of the variables' regularisers.

    Args:
        layout: the variables.
        weight: `ρ`.
    """

    def __init__(self, layout: Layout, weight: float):
        self._layout, self._weight = layout, weight
        self._pairs = [
            (variable.regularizer, variable.value)
            for variable in layout.variables
            if getattr(variable, "regularizer", None) and weight
        ]

    def gradient(self) -> tf.Tensor:
        """`[p]`; a scalar zero where nothing is regularised."""
        if not self._pairs:
            return tf.zeros([], self._layout.dtype)
        return self._layout.join(self._gradients())

    def products(self, vectors: tf.Tensor) -> tf.Tensor:
        """`∇²(ρR) v` for each row of `[m, p]`; zero as `gradient`."""
        if not self._pairs:
            return tf.zeros([], self._layout.dtype)
        return self._products(vectors)

    def _gradients(self) -> Parts:
        values, dtype = self._layout.values, self._layout.dtype
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            penalties = [
                tf.cast(function(value), dtype)
                for function, value in self._pairs
            ]
            total = self._weight * tf.add_n(penalties)
        return tape.gradient(total, values, **ZEROS)

    @functools.cached_property
    def _products(self):
        layout = self._layout

        def products(vectors):
            with tf.GradientTape(
                persistent=True, watch_accessed_variables=False
            ) as tape:
                tape.watch(layout.values)
                grads = self._gradients()

            def product(vector):
                return layout.join(
                    tape.gradient(
                        grads,
                        layout.values,
                        output_gradients=layout.split(vector),
                        **ZEROS,
                    )
                )

            return tf.map_fn(product, vectors)

        spec = tf.TensorSpec([None, layout.size], layout.dtype)
        return compile_step(products, [spec])


def penalties_of(model: keras.Model) -> np.ndarray:
    """The value of the regulariser of each weight that has one.

    They tell apart what no description does.

    Args:
        model: the model, with the weights that it has.
    """
    return np.array(
        [
            float(weight.regularizer(weight.value))
            for weight in model.weights
            if getattr(weight, "regularizer", None) is not None
        ]
    )
