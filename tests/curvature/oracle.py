"""The slow, obvious twin of curvature: whole matrices in float64."""

import numpy as np
import tensorflow as tf


def hessian(model, loss, data, variables, penalty=1.0) -> np.ndarray:
    """`∇²J [p, p]`, a row for each number in the variables."""
    values = [variable.value for variable in variables]
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape() as inner:
            total = tf.reduce_mean(_losses(model, loss, data))
            for variable in variables:
                if variable.regularizer is not None:
                    total += penalty * variable.regularizer(variable.value)
        grads = inner.gradient(total, values)
        grads = [tf.convert_to_tensor(grad) for grad in grads]
    return np.concatenate(
        [_jacobian_rows(outer, grad, values) for grad in grads]
    )


def gauss_newton(model, loss, data, variables, logits) -> np.ndarray:
    """`(1/n) Σ Jᵀ (∂²ℓ/∂z²) J [p, p]`, an example at a time.

    `logits` is a model that gives z, with which `loss` is called.
    """
    x, y, *weight = data
    values = [variable.value for variable in variables]
    total = 0.0
    for at in range(len(y)):
        one = slice(at, at + 1)
        w = weight[0][one] if weight else None
        with tf.GradientTape(persistent=True) as tape:
            z = logits(x[one], training=False)
        jacobian = _jacobian_rows(tape, z, values)
        with tf.GradientTape(persistent=True) as outer:
            outer.watch(z)
            with tf.GradientTape() as inner:
                inner.watch(z)
                value = loss(y[one], z, w)
            slope = inner.gradient(value, z)
        bend = outer.jacobian(slope, z, experimental_use_pfor=False)
        bend = np.reshape(bend, [len(jacobian)] * 2)
        total = total + jacobian.T @ bend @ jacobian
    return total / len(y)


def gradient(model, loss, data, variables) -> np.ndarray:
    """The gradient of the mean loss, `[p]`."""
    values = [variable.value for variable in variables]
    with tf.GradientTape() as tape:
        total = tf.reduce_mean(_losses(model, loss, data))
    grads = tape.gradient(total, values)
    return np.concatenate(
        [np.ravel(tf.convert_to_tensor(grad)) for grad in grads]
    )


def _losses(model, loss, data):
    x, y, *weight = data
    outputs = model(x, training=False)
    return loss(y, outputs, weight[0] if weight else None)


def _jacobian_rows(tape, target, values) -> np.ndarray:
    parts = tape.jacobian(
        target,
        values,
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
        experimental_use_pfor=False,
    )
    size = int(np.prod(target.shape))
    return np.concatenate(
        [np.reshape(tf.convert_to_tensor(part), (size, -1)) for part in parts],
        axis=1,
    )
