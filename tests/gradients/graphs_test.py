"""What traces are made of, functions that they call included."""

import pytest
import tensorflow as tf

from keras_tracin.gradients.graphs import called_graph, has_loops


def graph_of(function):
    spec = tf.TensorSpec([None, 3], tf.float32)
    return tf.function(function).get_concrete_function(spec).graph


@tf.function
def doubled(x):
    return 2 * x


def looped(x):
    return tf.map_fn(lambda row: row * row, x)


def test_only_calls_have_a_graph_of_their_own():
    operations = graph_of(lambda x: tf.exp(doubled(x))).get_operations()
    called = {op.type: called_graph(op) for op in operations}
    assert called["Exp"] is None
    inner = called["PartitionedCall"]
    assert [op.type for op in inner.get_operations()].count("Mul") == 1


@pytest.mark.parametrize(
    ("function", "loops"),
    [
        (tf.exp, False),
        (looped, True),
        (doubled, False),
        (lambda x: doubled(tf.function(looped)(x)), True),
    ],
)
def test_loops_are_seen_where_they_are(function, loops):
    assert has_loops(graph_of(function)) is loops
