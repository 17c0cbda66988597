"""Gradients as rows, and rows as directions."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_tracin.gradients import flat
from keras_tracin.gradients.factors import DenseGradients, LookupFactors
from tests.gradients.in_full import PAIRS, VOCABULARY, looked_up, rows

WHOLE = {name: pair[0] for name, pair in PAIRS.items()}


@pytest.mark.parametrize("factors", WHOLE.values(), ids=WHOLE)
def test_a_row_is_the_gradient_in_full(factors):
    np.testing.assert_allclose(flat.rows((factors,)), rows(factors))


def test_groups_stand_beside_each_other():
    groups = tuple(WHOLE[name] for name in ("outer, one position", "lookup"))
    expected = np.hstack([rows(group) for group in groups])
    np.testing.assert_allclose(flat.rows(groups), expected)


def test_directions_are_the_rows_cut_by_variable():
    variables = [
        [keras.Variable(np.zeros((2, 3))), keras.Variable(np.zeros(3))],
        [keras.Variable(np.zeros((4, 1)))],
    ]
    vectors = tf.reshape(tf.range(26.0), [2, 13])
    found = flat.directions(vectors, variables)
    assert [[part.shape[1] for part in d.parts] for d in found] == [[6, 3], [4]]
    np.testing.assert_array_equal(flat.rows(found), vectors)


def test_their_types_are_known_beforehand():
    table = keras.Variable(np.zeros((VOCABULARY, 2)))
    factors = looked_up(4, 5, 2)
    assert isinstance(factors, LookupFactors)
    (spec,) = flat.direction_specs([[table]], [factors])
    assert isinstance(spec, DenseGradients)
    assert spec.parts[0].shape.as_list() == [None, 2 * VOCABULARY]
    assert spec.parts[0].dtype == tf.float64  # that of the gradients


def test_other_objects_are_refused():
    with pytest.raises(TypeError, match="Expected factors"):
        flat.rows([np.zeros(3)])
