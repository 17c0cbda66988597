"""Leave-one-out against a model whose minimum has a closed form."""

import numpy as np
import pytest
from keras import layers, regularizers

import keras_tracin as kt
from keras_tracin import evaluation
from tests.gradients.oracle import precision, sequential

COUNT = 12
PENALTY = 0.2


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    with precision("float64"):
        yield


def data(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 3))
    return x, x @ [[1.0], [-2.0], [0.5]] + rng.normal(size=(count, 1))


TRAIN, TEST = data(COUNT, 0), data(4, 1)


def minimum(x, y):
    """Ridge regression; the sum is always divided by the full count."""
    matrix = x.T @ x / COUNT + PENALTY * np.eye(3)
    return np.linalg.solve(matrix, x.T @ y / COUNT)


def fit(train):
    layer = layers.Dense(
        1, use_bias=False, kernel_regularizer=regularizers.L2(PENALTY)
    )
    model = sequential((3,), layer)
    model.compile(loss="mse")
    layer.kernel.assign(minimum(*train))
    return model


@pytest.fixture(scope="module")
def scores():
    method = kt.InfluenceFunctions(
        fit(TRAIN), TRAIN, damping=0, solver=kt.Exact()
    )
    return method.influence(TEST, verbose=0)


def change(left_out):
    """The queries' losses without an example minus those with it."""
    keep = np.arange(COUNT) != left_out

    def losses(w):
        return np.square(TEST[0] @ w - TEST[1])[:, 0]

    without = minimum(TRAIN[0][keep], TRAIN[1][keep])
    return losses(without) - losses(minimum(*TRAIN))


def test_the_change_is_that_of_training_again(scores):
    found = evaluation.leave_one_out(
        scores, TRAIN, TEST, fit, ids=[7, 2, 4, 9, 0]
    )
    assert found.train_ids.tolist() == [7, 2, 4, 9, 0]
    assert found.query_ids.tolist() == [0, 1, 2, 3]
    expected = np.stack([change(i) for i in (7, 2, 4, 9, 0)], axis=1)
    np.testing.assert_allclose(found.actual, expected, rtol=1e-8)
    np.testing.assert_array_equal(
        found.predicted, scores.scores[:, [7, 2, 4, 9, 0]]
    )


def test_influence_functions_predict_it(scores):
    found = evaluation.leave_one_out(scores, TRAIN, TEST, fit, ids=range(COUNT))
    assert found.pearson.min() > 0.9
    assert found.spearman.min() > 0.8
    # Divided by n, they are of the change's own size.
    ratio = np.linalg.norm(found.predicted / COUNT) / np.linalg.norm(
        found.actual
    )
    assert 0.6 < ratio < 1.1


def test_the_most_influential_are_left_out_by_default(scores):
    found = evaluation.leave_one_out(scores, TRAIN, TEST, fit, count=3)
    size = np.abs(scores.scores).sum(axis=0)
    assert found.train_ids.tolist() == np.argsort(-size)[:3].tolist()


def test_no_correlation_without_variation():
    same = evaluation.LeaveOneOut(
        np.arange(3), np.arange(1), np.ones((1, 3)), np.ones((1, 3))
    )
    assert np.isnan(same.pearson).all()
    assert np.isnan(same.spearman).all()


@pytest.mark.parametrize(
    ("ids", "message"), [([1, 40], r"\[40\]"), ([1], "two examples")]
)
def test_bad_ids_are_refused(scores, ids, message):
    with pytest.raises(ValueError, match=message):
        evaluation.leave_one_out(scores, TRAIN, TEST, fit, ids=ids)


def test_scores_of_other_data_are_refused(scores):
    with pytest.raises(ValueError, match="of these training examples"):
        evaluation.leave_one_out(scores, data(5, 0), TEST, fit)
    with pytest.raises(ValueError, match="of these queries"):
        evaluation.leave_one_out(scores, TRAIN, TRAIN, fit)
