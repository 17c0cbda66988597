"""Variables whose own layers cannot split their gradients into examples."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.placement import place
from tests.error_rows import row
from tests.gradients.oracle import (
    Case,
    check,
    functional,
    randomize,
    sequential,
    uneven_loss,
)


class Positions(keras.Layer):
    """Tokens and positions; the positions are looked up once for all."""

    def __init__(self, rank):
        super().__init__()
        self.tokens = layers.Embedding(6, 3, name="tokens")
        self.places = layers.Embedding(4, 3, name="places")
        self.rank = rank

    def call(self, ids):
        places = ops.arange(ops.shape(ids)[-1])
        if self.rank == 2:
            places = places[None]
        return self.tokens(ids) + self.places(places)


class TiedLanguageModel(keras.Model):
    """Positions and a tied output projection in the model's own call."""

    def __init__(self):
        super().__init__()
        self.tokens = layers.Embedding(6, 4, name="tokens")
        self.places = layers.Embedding(5, 4, name="places")
        self.attention = layers.MultiHeadAttention(2, 2)

    def call(self, ids):
        hidden = self.tokens(ids) + self.places(ops.arange(ops.shape(ids)[1]))
        hidden += self.attention(hidden, hidden, use_causal_mask=True)
        return ops.matmul(hidden, ops.transpose(self.tokens.embeddings))


class TwoDense(keras.Model):
    """Two Dense layers; the first is called in a way of its own."""

    def __init__(self, call_first):
        super().__init__()
        self.first = layers.Dense(4, activation="tanh", name="first")
        self.last = layers.Dense(2, name="last")
        self.call_first = call_first

    def call(self, inputs):
        return self.last(self.call_first(self.first, inputs))


class Masked(keras.Layer):
    """Leaves to a layer inside what to do with the mask of its input."""

    def __init__(self):
        super().__init__()
        self.mean = layers.GlobalAveragePooling1D()
        self.supports_masking = True

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(3,), name="scale")

    def call(self, inputs):
        return self.mean(inputs * 1.0) + self.mean(inputs) * self.scale


class InsideOut(keras.Layer):
    """Owns the kernel of the layer that it calls."""

    def __init__(self):
        super().__init__()
        self.inner = layers.Dense(3)

    def build(self, input_shape):
        self.inner.build(input_shape)
        self.kernel = self.inner.kernel

    def call(self, inputs):
        return ops.matmul(ops.tanh(self.inner(inputs)), self.kernel)


class Reading(keras.Layer):
    """A layer that reads a variable of one it does not call."""

    def __init__(self, other):
        super().__init__()
        self.other = lambda: other  # Keras would track the layer itself

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), name="scale")

    def call(self, inputs):
        return ops.tanh(inputs * self.scale + self.other().bias)


class Temperature(keras.Layer):
    """Returns its one number, whatever it is given."""

    def build(self, input_shape):
        self.value = self.add_weight(shape=(), name="value")

    def call(self, inputs):
        return self.value


class WithCount(keras.Layer):
    """Returns integers and a number of the whole batch beside its outputs."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(3,), name="scale")

    def call(self, inputs):
        hidden = inputs * self.scale
        return ops.argmax(hidden, axis=-1), hidden, ops.sum(hidden)


class OnlyInInference(keras.Layer):
    """Its inner layers would train, were they not told otherwise."""

    def __init__(self):
        super().__init__()
        self.inner = Doubling()

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(3,), name="scale")

    def call(self, inputs):
        return self.inner(ops.tanh(inputs * self.scale))


class Doubling(keras.Layer):
    """Doubles in training, which is its default."""

    def call(self, inputs, training=True):
        return inputs * inputs if training else inputs


def reading_another_layer():
    first = layers.Dense(3, name="owner")
    return functional((3,), lambda x: Reading(first)(first(x)))


def shared_by_a_wrapper():
    dense = layers.Dense(3, activation="tanh")
    return functional((2, 3), lambda x: layers.TimeDistributed(dense)(dense(x)))


def folded(layer, inputs):
    """Two halves of an example as two rows."""
    rows = layer(ops.reshape(inputs, (-1, 2)))
    return ops.reshape(rows, (-1, 8))


def in_a_map(layer, inputs):
    return ops.vectorized_map(lambda row: layer(row[None])[0], inputs)


def in_a_loop(layer, inputs):
    _, found = ops.while_loop(
        lambda step, _: step < 2,
        lambda step, hidden: (step + 1, layer(hidden)),
        (0, inputs),
    )
    return found


def positions_first(layer, inputs):
    rows = layer(ops.transpose(ops.reshape(inputs, (-1, 2, 2)), (1, 0, 2)))
    return ops.reshape(ops.transpose(rows, (1, 0, 2)), (-1, 8))


def beside_a_count():
    counting = WithCount()
    return functional((3,), lambda x: layers.Dense(2)(counting(x)[1]))


def multiplied(x):
    return layers.Dense(3)(x) * Temperature()(x)


CASES = {
    "positions of rank one": Case(
        lambda: sequential((4,), Positions(1), dtype="int32"), tokens=6
    ),
    "positions for a batch of one": Case(
        lambda: sequential((4,), Positions(2), dtype="int32"), tokens=6
    ),
    "positions and tied projection in the model": Case(
        TiedLanguageModel, shape=(5,), tokens=6
    ),
    "examples folded into rows": Case(lambda: TwoDense(folded), shape=(4,)),
    "positions before examples": Case(
        lambda: TwoDense(positions_first), shape=(4,)
    ),
    "called in a map": Case(lambda: TwoDense(in_a_map), shape=(3,)),
    "called in a loop": Case(lambda: TwoDense(in_a_loop), shape=(4,)),
    "mask heeded by a layer inside": Case(
        lambda: sequential(
            (12,),  # long enough that no example is padding alone
            layers.Embedding(6, 3, mask_zero=True),
            Masked(),
            dtype="int32",
        ),
        tokens=6,
    ),
    "kernel owned inside and out": Case(lambda: sequential((3,), InsideOut())),
    "variable read by another layer": Case(reading_another_layer),
    "layer shared by a wrapper": Case(shared_by_a_wrapper),
    "one number for all examples": Case(lambda: functional((3,), multiplied)),
    "outputs without examples or gradients": Case(beside_a_count),
    "training is off inside": Case(lambda: sequential((3,), OnlyInInference())),
    "another layer's variable, restricted": Case(
        reading_another_layer, layers=["owner"]
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_factors_match_the_jacobian(case):
    check(case)


class Compiled(keras.Model):
    """A model whose `call` is a `tf.function`."""

    def __init__(self):
        super().__init__()
        self.first = layers.Dense(4, activation="tanh", name="first")
        self.last = layers.Dense(2, name="last")

    @tf.function
    def call(self, inputs):
        return self.last(self.first(inputs))


def test_layers_in_a_compiled_call_match_gradients_taken_one_by_one():
    # `tape.jacobian` is of no use here: it returns zeros.
    model = Compiled()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3)).astype("float32")
    y = rng.normal(size=4).astype("float32")
    model(x)
    randomize(model)
    rows = []
    for i in range(len(x)):
        with tf.GradientTape() as tape:
            loss = uneven_loss(y[i : i + 1], model(x[i : i + 1]))
        values = [variable.value for variable in model.trainable_variables]
        found = tape.gradient(loss, values)
        rows.append(np.concatenate([np.ravel(g) for g in found]))
    captured = GradientFunctions(model, uneven_loss, like=(x, y)).captured(
        (x, y)
    )
    inner = sum(algebra.inner(f, f) for f in captured.factors)
    np.testing.assert_allclose(inner, rows @ np.transpose(rows), rtol=1e-4)


def test_layers_that_split_are_left_to_their_own_rules():
    model = sequential((4,), layers.Dense(3), layers.PReLU(), layers.Dense(2))
    placement = place(model, tf.ones((2, 4)))
    assert [site.layer for site in placement.sites] == model.layers


def test_dry_run_leaves_the_model_as_it_was():
    model = sequential((4,), layers.Dense(3), layers.PReLU())
    place(model, tf.ones((2, 4)))
    assert all("call" not in vars(x) for x in model._flatten_layers())


class BatchMean(keras.Model):
    """Returns nothing that belongs to one example."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2, name="dense")

    def call(self, inputs):
        return self.dense(ops.mean(inputs, axis=0, keepdims=True))


def test_variable_that_no_layer_can_split_is_refused_by_name():
    model = BatchMean()
    model(tf.ones((2, 3)))
    with pytest.raises(
        ValueError, match=row("hidden-path", "'...dense/...' (Dense)...layers=")
    ):
        place(model, tf.ones((2, 3)))


class Selecting(keras.Model):
    """Drops examples on the way, by what is in them."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2, name="dense")

    def call(self, inputs):
        rows = self.dense(tf.boolean_mask(inputs, inputs[:, 0] > 0))
        return ops.sum(inputs, axis=1, keepdims=True) + ops.sum(rows)


def test_layer_that_gets_some_of_the_examples_is_refused_by_name():
    model = Selecting()
    x = tf.constant([[1.0, 2.0], [-1.0, 2.0]])
    model(x)
    functions = GradientFunctions(model, uneven_loss, like=(x, tf.ones(2)))
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=row("partial-layer", "dense...(Dense)"),
    ):
        functions.captured((x, tf.ones(2)))
