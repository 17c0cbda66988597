"""Influence functions of ridge regression, whose minimum has a closed form."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

import keras_tracin as kt
from tests.gradients.oracle import precision, sequential


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    with precision("float64"):
        yield


def ridge(reduction, batch_size, penalty=0.3):
    """Linear regression at its minimum, its data and its penalty."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(20, 4)), rng.normal(size=(20, 1))
    layer = layers.Dense(
        1, use_bias=False, kernel_regularizer=keras.regularizers.L2(penalty)
    )
    model = sequential((4,), layer)
    model.compile(loss=keras.losses.MeanSquaredError(reduction=reduction))
    count = batch_size or 1
    matrix = x.T @ x / 20 + penalty / count * np.eye(4)
    layer.kernel.assign(np.linalg.solve(matrix, x.T @ y / 20))
    return model, (x, y), matrix


@pytest.mark.parametrize(
    ("reduction", "batch_size"), [("sum_over_batch_size", None), ("sum", 5)]
)
def test_ridge_regression_has_the_closed_forms_first_order_term(
    reduction, batch_size
):
    model, (x, y), matrix = ridge(reduction, batch_size)
    rng = np.random.default_rng(4)
    test = rng.normal(size=(3, 4)), rng.normal(size=(3, 1))
    method = kt.InfluenceFunctions(
        model, (x, y), damping=0, solver=kt.Exact(), batch_size=batch_size
    )
    with warnings.catch_warnings():
        # It is at its minimum, and says nothing.
        warnings.simplefilter("error", UserWarning)
        scores = method.influence(test, verbose=0).scores
    weights = model.get_weights()[0]
    gradients = 2 * (test[0] @ weights - test[1]) * test[0]
    expected = []
    for left_out in range(20):
        example = x[left_out]
        without = matrix - np.outer(example, example) / 20
        keep = np.arange(20) != left_out
        again = np.linalg.solve(without, x[keep].T @ y[keep] / 20)
        change = gradients @ (again - weights)
        # To first order in 1/n: the exact change has a factor 1 / (1 - h).
        leverage = example @ np.linalg.solve(matrix, example) / 20
        expected.append(change[:, 0] * (1 - leverage))
    expected = np.stack(expected, axis=1)
    tolerance = 1e-6 * np.abs(expected).max()
    np.testing.assert_allclose(scores / 20, expected, atol=tolerance)


def test_a_summed_loss_with_regularisers_needs_the_batch_size():
    model, data, _ = ridge("sum", 5)
    with pytest.raises(ValueError, match="batch_size="):
        kt.InfluenceFunctions(model, data, damping=0.1)


def test_a_model_that_has_not_converged_is_warned_of():
    model, data, _ = ridge("sum_over_batch_size", None)
    model.set_weights([model.get_weights()[0] + 1])
    method = kt.InfluenceFunctions(model, data, damping=0.1)
    with pytest.warns(UserWarning, match=r"not converged.* length \d"):
        method.influence(data, verbose=0)
