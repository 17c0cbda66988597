"""The rule of recurrent layers, whatever their cell."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_tracin.engine.steps import GradientFunctions
from tests.gradients.oracle import (
    Case,
    check,
    compact_in,
    functional,
    sequential,
    uneven_loss,
)


def recurrent(make, shape=(3, 2)):
    """A model of a recurrence and a layer before it."""
    return Case(
        lambda: sequential(
            shape, layers.Dense(shape[-1], activation="tanh"), make()
        )
    )


def padded(make):
    """The recurrence steps over the ids that are padding."""
    return Case(
        lambda: sequential(
            (5,), layers.Embedding(6, 3, mask_zero=True), make(), dtype="int32"
        ),
        tokens=6,
    )


def with_its_state():
    lstm = layers.LSTM(2, return_state=True, unroll=True)
    return functional((3, 2), lstm)


def begun_elsewhere():
    """One recurrence begins where another ended."""

    def call(x):
        _, *states = layers.LSTM(2, return_state=True, unroll=True)(x)
        return layers.LSTM(2, unroll=True)(x, initial_state=states)

    return functional((3, 2), call)


def begun_elsewhere_over_padded_ids():
    """A loss that reads states and outputs of steps that are padding."""

    def call(x):
        x = layers.Embedding(6, 2, mask_zero=True)(x)
        _, *states = layers.LSTM(2, return_state=True, unroll=True)(x)
        outputs, carry, _ = layers.LSTM(
            2,
            return_sequences=True,
            return_state=True,
            zero_output_for_mask=True,
            use_bias=False,
            unroll=True,
        )(x, initial_state=states)
        return layers.Concatenate()([layers.Flatten()(outputs), carry])

    return functional((5,), call, dtype="int32")


class Leaky(layers.Layer):
    """A user's cell, which holds another layer."""

    state_size = 2

    def __init__(self):
        super().__init__()
        self.mix = layers.Dense(2, activation="tanh")

    def build(self, input_shape):
        self.leak = self.add_weight(shape=(2,), name="leak")
        self.mix.build((None, input_shape[-1] + 2))

    def call(self, inputs, states):
        mixed = self.mix(keras.ops.concatenate([inputs, states[0]], axis=-1))
        state = states[0] * self.leak + mixed
        return state, [state]


def stacked(**kwargs):
    return [layers.LSTMCell(2, **kwargs), layers.SimpleRNNCell(3, **kwargs)]


CASES = {
    # Unrolled, but for a few: TensorFlow takes seconds to trace a loop.
    "LSTM": recurrent(lambda: layers.LSTM(2)),
    "LSTM with its state": Case(with_its_state),
    "LSTM from a state": Case(begun_elsewhere),
    "LSTM with dropout, inactive": recurrent(
        lambda: layers.LSTM(2, dropout=0.3, recurrent_dropout=0.4, unroll=True)
    ),
    "LSTM over padded ids": padded(
        lambda: layers.LSTM(2, unroll=True, return_sequences=True)
    ),
    "GRU": recurrent(lambda: layers.GRU(2, return_sequences=True, unroll=True)),
    "GRU, reset before": recurrent(
        lambda: layers.GRU(2, reset_after=False, unroll=True)
    ),
    "GRU, backwards": recurrent(
        lambda: layers.GRU(2, return_sequences=True, go_backwards=True)
    ),
    "GRU, backwards, unrolled": recurrent(
        lambda: layers.GRU(
            2, return_sequences=True, go_backwards=True, unroll=True
        )
    ),
    "GRU over padded ids, backwards": padded(
        lambda: layers.GRU(2, unroll=True, go_backwards=True)
    ),
    "GRU, reset before, over padded ids": padded(
        lambda: layers.GRU(
            2, reset_after=False, use_bias=False, unroll=True, implementation=1
        )
    ),
    "GRU without a bias": recurrent(
        lambda: layers.GRU(2, use_bias=False, activation="gelu", unroll=True)
    ),
    "LSTM from a state over padded ids": Case(
        begun_elsewhere_over_padded_ids, tokens=6
    ),
    "LSTM of sequences of any length": Case(
        lambda: sequential((None, 2), layers.LSTM(2)), shape=(3, 2)
    ),
    "SimpleRNN": recurrent(lambda: layers.SimpleRNN(2, unroll=True)),
    "SimpleRNN over padded ids": padded(lambda: layers.SimpleRNN(2)),
    "a user's cell": recurrent(lambda: layers.RNN(Leaky(), unroll=True)),
    "stacked cells": recurrent(
        lambda: layers.RNN(stacked(), unroll=True), (2, 2)
    ),
    "stacked cells with dropout over padded ids": padded(
        lambda: layers.RNN(stacked(dropout=0.2), unroll=True)
    ),
    "Bidirectional": recurrent(
        lambda: layers.Bidirectional(layers.GRU(2, unroll=True)), (2, 2)
    ),
    "Bidirectional over padded ids": padded(
        lambda: layers.Bidirectional(
            layers.SimpleRNN(2, unroll=True), merge_mode="sum"
        )
    ),
    "ConvLSTM1D": recurrent(
        lambda: layers.ConvLSTM1D(2, 2, unroll=True), (2, 4, 2)
    ),
    "ConvLSTM2D": recurrent(
        lambda: layers.ConvLSTM2D(
            2,
            2,
            strides=2,
            padding="same",
            return_sequences=True,
            unroll=True,
        ),
        (2, 3, 3, 2),
    ),
}

# One of each form that factors take is enough.
CASES = compact_in(
    CASES,
    "LSTM over padded ids",
    "GRU, backwards, unrolled",
    "GRU, reset before, over padded ids",
    "stacked cells",
    "ConvLSTM1D",
)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_factors_match_the_jacobian(case):
    check(case)


def test_no_random_numbers_are_drawn_for_dropout():
    layer = layers.LSTM(2, dropout=0.3, recurrent_dropout=0.4, unroll=True)
    model = sequential((3, 2), layer)
    batch = np.ones((4, 3, 2), "float32"), np.ones(4, "float32")
    before = np.array(layer.cell.seed_generator.state)
    functions = GradientFunctions(model, uneven_loss, like=batch)
    assert np.all(functions.squared_norms(batch, tf.constant(1.0)) > 0)
    np.testing.assert_array_equal(layer.cell.seed_generator.state, before)
