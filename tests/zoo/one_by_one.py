"""The oracle of whole models: a backward pass for each example alone.

Synopsis:

    with precision("float64"):
        model = build()
        check(model, x, y)
"""

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch
from keras_tracin.engine.first_look import FirstLook
from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.gradients import factors as algebra
from keras_tracin.losses.per_example import per_example_loss


def disturb(model: keras.Model, seed: int = 0) -> None:
    """Moves biases, scales and statistics off their zeros and ones."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        if len(variable.shape) == 1 and variable.dtype.startswith("float"):
            noise = rng.uniform(0.8, 1.25, size=variable.shape)
            shift = rng.normal(size=variable.shape, scale=0.1)
            spread = "variance" in variable.path or "gamma" in variable.path
            value = variable.numpy()
            variable.assign(value * noise if spread else value + shift)


def gradients_one_by_one(model: keras.Model, x, y, loss) -> np.ndarray:
    """`[n, p]`, each row from a batch of one."""
    count = len(tf.nest.flatten(y)[0])
    values = [variable.value for variable in model.trainable_variables]
    rows = []
    for i in range(count):
        one_x, one_y = tf.nest.map_structure(
            lambda leaf, i=i: tf.constant(leaf[i : i + 1]), (x, y)
        )
        with tf.GradientTape() as tape:
            value = loss(one_y, model(one_x, training=False), None)
        found = tape.gradient(
            value, values, unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        found = [np.ravel(tf.convert_to_tensor(part)) for part in found]
        rows.append(np.concatenate(found))
    return np.stack(rows)


def check(model: keras.Model, x, y, loss=None, tolerance: float = 1e-9):
    """Holds products and self-influence against gradients one by one.

    Errors are measured against the product of the gradients' lengths.
    """
    per_example = per_example_loss(model, loss)
    functions = GradientFunctions(model, per_example, like=(x, y))
    captured = functions.captured((x, y))
    products = sum(algebra.inner(f, f).numpy() for f in captured.factors)
    norms = sum(algebra.squared_norm(f).numpy() for f in captured.factors)

    rows = gradients_one_by_one(model, x, y, per_example)
    lengths = np.linalg.norm(rows, axis=1)
    assert np.all(lengths > 0)
    error = np.abs(products - rows @ rows.T) / np.outer(lengths, lengths)
    assert error.max() <= tolerance, f"relative error {error.max():.1e}"
    np.testing.assert_allclose(norms, lengths**2, rtol=tolerance)
    batch = Batch(np.arange(len(rows)), x, y, None)
    assert FirstLook(functions, batch).complaint() is None
