import keras
import numpy as np
import pytest

import keras_tracin as kt
from examples import _methods
from tests.plots.helpers import top_of


def test_one_query_after_the_other_by_each_method():
    one = top_of([[0], [1]], [[2], [3]], query_ids=["a", "b"])
    other = top_of([[4], [5]], [[6], [7]], query_ids=["a", "b"])
    joined = _methods.interleave([one, other])
    assert joined.query_ids.tolist() == ["a", "a", "b", "b"]
    assert joined.proponents.ids.tolist() == [[0], [4], [1], [5]]
    assert joined.opponents.ids.tolist() == [[2], [6], [3], [7]]


def test_first_of_one_query_are_cut_out():
    top = top_of([[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]])
    found = _methods.cut(top, 2, row=1)
    assert found.query_ids.tolist() == [1]
    assert found.proponents.ids.tolist() == [[3, 4]]
    assert found.opponents.scores.tolist() == [[-0.5, -0.25]]


def test_head_alone_has_the_scores_of_the_last_layer_of_the_whole():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(4, activation="tanh")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, name="last")(hidden))
    model.compile(
        "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    rng = np.random.default_rng(0)
    train, test = (
        (rng.normal(size=(n, 3)).astype("float32"), rng.integers(3, size=n))
        for n in (12, 2)
    )
    options = {"solver": kt.Exact(), "damping": 0.1}
    head = _methods.OnHead(model, train, kt.InfluenceFunctions, **options)
    with pytest.warns(UserWarning, match="has not converged"):
        found = head.top_k(test, 12, verbose=0)
    whole = kt.InfluenceFunctions(model, train, layers="last", **options)
    expected = whole.top_k(test, 12, verbose=0)
    np.testing.assert_allclose(
        found.proponents.scores, expected.proponents.scores, rtol=1e-3
    )
    np.testing.assert_array_equal(found.proponents.ids, expected.proponents.ids)
