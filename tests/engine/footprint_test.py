"""Memory of a compiled step, read off its trace."""

import tensorflow as tf

from keras_tracin.engine.footprint import footprint

VECTOR = 8 * 4  # bytes of a row of eight float32


def footprint_of(function):
    """The footprint of a function of `[None, 8]`."""
    spec = tf.TensorSpec([None, 8], tf.float32)
    return footprint(tf.function(function, input_signature=[spec]))


def test_what_is_read_later_is_held_until_then():
    def chain(x):
        return tf.exp(tf.exp(tf.exp(tf.exp(x))))

    def remembered(x):
        steps = [x]
        for _ in range(4):
            steps.append(tf.exp(steps[-1]))
        return tf.add_n(steps)

    # A link of the chain is freed when the next one stands.
    assert footprint_of(chain).peak == 2 * VECTOR
    # The sum needs the four that are made, and its own place.
    assert footprint_of(remembered).peak == 5 * VECTOR


def test_another_shape_is_no_other_memory():
    def reshaped(x):
        return tf.exp(tf.identity(tf.reshape(tf.exp(x), [-1, 2, 4])))

    assert footprint_of(reshaped).peak == 2 * VECTOR


def test_all_results_count():
    found = footprint_of(lambda x: [tf.exp(x), tf.sin(x), tf.cos(x)])
    assert found.peak == 3 * VECTOR


def test_a_product_with_queries_has_a_number_for_each():
    specs = [tf.TensorSpec([None, 8], tf.float32)] * 2
    step = tf.function(
        lambda x, queries: tf.matmul(queries, x, transpose_b=True),
        input_signature=specs,
    )
    assert footprint(step, num_queries=30).peak == 30 * 4


def test_convolutions_need_room_of_their_own():
    plain = footprint_of(tf.exp)

    def convolved(x):
        images = tf.reshape(x, [-1, 2, 4, 1])
        return tf.nn.conv2d(images, tf.ones([1, 1, 1, 3]), 1, "SAME")

    assert footprint_of(convolved).fixed > plain.fixed > 0


def test_the_largest_tensor_is_found():
    found = footprint_of(lambda x: tf.reduce_sum(tf.tile(x, [1, 5]), axis=1))
    assert found.largest == 5 * VECTOR


def test_only_what_grows_with_the_batch_counts():
    def step(x):
        table = tf.ones([8, 1000])
        return tf.reduce_sum(tf.matmul(x, table), axis=1)

    assert footprint_of(step).largest == 1000 * 4


def test_a_sum_is_no_larger_than_what_it_is_of():
    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 8], tf.float32),
            tf.TensorSpec([None], tf.int32),
        ]
    )
    def reduced(x, axes):  # nothing is known of the sum's shape but its rank
        total = tf.reduce_sum(tf.exp(x), axes, keepdims=True)
        return tf.ensure_shape(total, [None, None])

    assert footprint(reduced, num_queries=1_000).peak == 2 * VECTOR


def test_a_function_that_is_called_counts_like_its_operations():
    @tf.function
    def chain(x):
        return tf.exp(tf.exp(tf.exp(x)))

    def in_one_graph(x):
        return chain.python_function(x) + chain.python_function(x + 1)

    def by_calls(x):
        return chain(x) + chain(x + 1)

    assert footprint_of(by_calls) == footprint_of(in_one_graph)
    assert footprint_of(by_calls).peak == 3 * VECTOR
