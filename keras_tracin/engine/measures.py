"""Numbers that tell models, losses and gradients apart.

For a few examples these are the model's outputs, the losses, the lengths of the
gradients and the product of each with a random direction. The direction is of
rank one in every kernel, `a bᵀ`, so that factors are multiplied as they are.

They are always made in the same small batches, so that they do not depend on
how much memory there is.

Synopsis:

    numbers = measure(model, loss, functions, batch)
    numbers["norms"]   # [n]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch
from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.factors import (
    Factors,
    LookupFactors,
    OuterFactors,
    TableFactors,
)
from keras_tracin.losses.per_example import PerExampleLoss
from keras_tracin.projection import (
    FactoredProjection,
    GaussianProjection,
    Projection,
    TensorSketch,
)

Numbers = dict[str, np.ndarray]

BATCH = 16  # no more than a pass takes where memory is short
_FACTORS = 256 * 2**20  # bytes of the factors of a batch
_SHOWN = 64  # numbers of an output, where it has more
_SEED = 7919
_FIELDS_SAY_ALL = (TensorSketch, GaussianProjection, FactoredProjection)


def measure(
    model: keras.Model,
    loss: PerExampleLoss,
    functions: GradientFunctions,
    batch: Batch,
    projection: Projection | None = None,
    position: int = 0,
) -> Numbers:
    """Outputs, losses and gradients of some examples, as numbers.

    Args:
        model: with the weights to measure at.
        loss: `(y, y_pred, sample_weight) -> [n]`.
        functions: the steps of this model and loss.
        batch: the examples.
        projection: a projection, whose sketches are numbers as well where it
            is of the user's own.
        position: the position that it is given.

    Returns:
        "outputs" `[n, ...]`, "losses" `[n]`, "norms" `[n]`, "products" `[n]`,
        and "sketches" if there is a projection of the user's own.
    """
    own = projection if type(projection) not in _FIELDS_SAY_ALL else None
    room = _FACTORS // max(1, _bytes_of_one(functions))
    size = min(max(1, room), BATCH)
    columns: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(batch), size):
        rows = np.arange(start, min(start + size, len(batch)))
        x, y, *weight = data = batch.take(rows).data
        y_pred = model(x, training=False)
        factors = functions.captured(data).factors
        tensors = {
            "outputs": _summary(y_pred),
            "losses": loss(y, y_pred, weight[0] if weight else None),
            "norms": lengths(factors),
            "products": random_products(factors),
        }
        if own is not None:
            tensors["sketches"] = own.sketch(factors, position)
        for name, tensor in tensors.items():
            columns.setdefault(name, []).append(_as_numpy(tensor))
    return {name: np.concatenate(rows) for name, rows in columns.items()}


def lengths(factors: Sequence[Factors]) -> tf.Tensor:
    """The lengths of whole gradients, `[n]`."""
    squares = tf.add_n([algebra.squared_norm(group) for group in factors])
    return tf.sqrt(tf.maximum(squares, 0))


def random_products(factors: Sequence[Factors]) -> tf.Tensor:
    """Each gradient's product with one random direction, `[n]`.

    The direction is about as long as a number of the gradient: a product is
    about as large as the gradient is long.

    Args:
        factors: the factors of all groups of variables.
    """
    products = [
        _product(group, [_SEED, at]) for at, group in enumerate(factors)
    ]
    return tf.add_n([tf.cast(product, tf.float64) for product in products])


def _product(group: Factors, seed: list[int]) -> tf.Tensor:
    if isinstance(group, TableFactors):
        return _product(group.looked_up, seed) + _product(group.outer, seed)
    if isinstance(group, LookupFactors):
        left = _normal(group.vocabulary, seed, 0, group.grads.dtype)
        inputs = tf.gather(left, group.ids)
    elif isinstance(group, OuterFactors):
        size = group.inputs.shape[-1]
        left = _normal(size, seed, 0, group.inputs.dtype)
        inputs = tf.linalg.matvec(group.inputs, left)
        if group.bias:
            inputs += 1
    else:
        shares = [
            tf.linalg.matvec(
                part, _normal(part.shape[-1], seed, at, part.dtype)
            )
            for at, part in enumerate(group.parts)
        ]
        return tf.add_n(shares)
    right = _normal(group.grads.shape[-1], seed, 1, group.grads.dtype)
    outputs = tf.linalg.matvec(group.grads, right)
    return tf.reduce_sum(tf.cast(inputs, outputs.dtype) * outputs, axis=1)


def _normal(size: int, seed: list[int], side: int, dtype) -> tf.Tensor:
    """A random vector, the same on any device."""
    first, second = seed
    return tf.random.stateless_normal(
        [size], [first, 8192 * second + side], dtype=dtype, alg="philox"
    )


def _bytes_of_one(functions: GradientFunctions) -> int:
    concrete = functions.captured.get_concrete_function()
    leaves = tf.nest.flatten(concrete.structured_outputs.factors)
    return sum(
        leaf.shape[1:].num_elements() * leaf.dtype.size for leaf in leaves
    )


def _summary(outputs: Any) -> tf.Tensor:
    """`[n, k]`: numbers of each output, evenly spread, and its length."""
    columns: list[tf.Tensor] = []
    for leaf in tf.nest.flatten(outputs):
        rows = tf.cast(leaf, tf.float64 if leaf.dtype.size > 4 else tf.float32)
        rows = tf.reshape(rows, [len(rows), -1])
        places = np.arange(_SHOWN) * rows.shape[1] // _SHOWN
        columns += [
            tf.gather(rows, np.unique(places), axis=1),
            tf.norm(rows, axis=1, keepdims=True),
        ]
    widest = max((column.dtype for column in columns), key=lambda d: d.size)
    return tf.concat([tf.cast(column, widest) for column in columns], axis=1)


def _as_numpy(tensor: Any) -> np.ndarray:
    """NumPy has no bfloat16."""
    tensor = tf.convert_to_tensor(tensor)
    return tf.cast(
        tensor, tf.float32 if tensor.dtype.size < 4 else tensor.dtype
    ).numpy()
