"""Scores of the kinds of model that users bring."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.gradients.oracle import precision
from tests.zoo import one_by_one

TOKENS, LENGTH = 9, 6


@pytest.fixture(autouse=True)
def _double_precision():
    with precision("float64"):
        keras.utils.set_random_seed(0)
        yield


class TokenAndPosition(keras.Layer):
    """Positions are looked up once for the whole batch."""

    def __init__(self, mask_zero=False):
        super().__init__()
        self.tokens = layers.Embedding(TOKENS, 4, mask_zero=mask_zero)
        self.places = layers.Embedding(LENGTH, 4)
        self.supports_masking = True

    def compute_mask(self, inputs, mask=None):
        return self.tokens.compute_mask(inputs)

    def call(self, ids):
        return self.tokens(ids) + self.places(ops.arange(LENGTH))


class TransformerBlock(keras.Layer):
    """Attention and two dense layers, each with a shortcut and a norm."""

    def __init__(self, causal=False):
        super().__init__()
        self.attention = layers.MultiHeadAttention(2, 2)
        self.norms = [layers.LayerNormalization() for _ in range(2)]
        self.dense = {"in": layers.Dense(8, "gelu"), "out": layers.Dense(4)}
        self.causal = causal
        self.supports_masking = True

    def call(self, inputs, mask=None):
        pairs = None if mask is None else mask[:, None, :]
        found = self.attention(
            inputs, inputs, attention_mask=pairs, use_causal_mask=self.causal
        )
        hidden = self.norms[0](inputs + found)
        return self.norms[1](
            hidden + self.dense["out"](self.dense["in"](hidden))
        )


class LanguageModel(keras.Model):
    """Reads from left to right; its output layer is its token table."""

    def __init__(self):
        super().__init__()
        self.embedding = TokenAndPosition()
        self.blocks = [TransformerBlock(causal=True) for _ in range(2)]

    def call(self, ids):
        hidden = self.embedding(ids)
        for block in self.blocks:
            hidden = block(hidden)
        table = self.embedding.tokens.embeddings
        return ops.matmul(hidden, ops.transpose(table))


class Branching(keras.Model):
    """Layers in lists and dicts, branches, weights of its own."""

    def __init__(self):
        super().__init__()
        self.steps = [layers.Dense(4, "tanh") for _ in range(2)]
        self.heads = {"a": layers.Dense(3), "b": [layers.Dense(3)]}
        self.scale = self.add_weight(shape=(3,), initializer="ones")
        self.deep = True

    def call(self, inputs, training=None):
        for step in self.steps:
            inputs = inputs + step(inputs)
            if not self.deep:
                break
        return self.heads["a"](inputs) * self.scale + self.heads["b"][0](inputs)


class OwnTrainStep(Branching):
    """Trains in a way of its own; nothing is compiled into it."""

    def train_step(self, data):
        raise NotImplementedError


def sparse():
    """Made in the test, for its precision."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def token_ids(count=3):
    """Ids with padding at the end, of uneven length."""
    rng = np.random.default_rng(3)
    ids = rng.integers(1, TOKENS, size=(count, LENGTH)).astype("int32")
    ends = np.arange(LENGTH)[None] < np.array([[6], [4], [2]])[:count]
    return ids * ends


def vectors(*shape):
    return np.random.default_rng(4).normal(size=shape)


def test_encoder_with_padding_masks():
    inputs = keras.Input((LENGTH,), dtype="int32")
    hidden = TokenAndPosition(mask_zero=True)(inputs)
    for _ in range(2):
        hidden = TransformerBlock()(hidden)
    pooled = layers.GlobalAveragePooling1D()(hidden)
    model = keras.Model(inputs, layers.Dense(3)(pooled))
    model.compile(loss=sparse())
    one_by_one.disturb(model)
    one_by_one.check(model, token_ids(), np.array([0, 1, 2]))


def test_causal_language_model_with_tied_output():
    model = LanguageModel()
    ids = token_ids()
    model(ids)
    model.compile(loss=sparse())
    one_by_one.disturb(model)
    one_by_one.check(model, ids, np.roll(ids, -1, axis=1))


def test_recurrent_text_classifier_with_masks():
    model = keras.Sequential(
        [
            keras.Input((LENGTH,), dtype="int32"),
            layers.Embedding(TOKENS, 4, mask_zero=True),
            layers.LSTM(3),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(loss="binary_crossentropy")
    one_by_one.check(model, token_ids(), np.array([[0.0], [1.0], [1.0]]))


def test_two_inputs_and_two_outputs_with_loss_weights():
    ids = keras.Input((LENGTH,), dtype="int32", name="ids")
    numbers = keras.Input((3,), name="numbers")
    text = layers.GlobalMaxPooling1D()(layers.Embedding(TOKENS, 4)(ids))
    joined = layers.Dense(5, "tanh")(layers.Concatenate()([text, numbers]))
    model = keras.Model(
        {"ids": ids, "numbers": numbers},
        {
            "kind": layers.Dense(3, name="kind")(joined),
            "size": layers.Dense(1, name="size")(joined),
        },
    )
    model.compile(
        loss={"kind": sparse(), "size": "mse"},
        loss_weights={"kind": 0.3, "size": 2.0},
    )
    x = {"ids": token_ids(), "numbers": vectors(3, 3)}
    y = {"kind": np.array([0, 2, 1]), "size": vectors(3, 1)}
    one_by_one.check(model, x, y)


def test_subclassed_model_with_a_call_of_its_own():
    model = Branching()
    x = vectors(3, 4)
    model(x)
    model.compile(loss=sparse())
    one_by_one.check(model, x, np.array([0, 1, 2]))


def test_model_with_its_own_train_step_is_given_a_loss():
    model = OwnTrainStep()
    x = vectors(3, 4)
    model(x)
    one_by_one.check(model, x, np.array([0, 1, 2]), loss=sparse())


def test_preprocessing_inside_the_model():
    numbers = keras.Input((4,), name="numbers")
    scaled = layers.Normalization(mean=[0.1] * 4, variance=[2.0] * 4)(numbers)
    classes = keras.Input((1,), dtype="int32", name="classes")
    hot = layers.CategoryEncoding(5, output_mode="one_hot")(classes)
    words = keras.Input((1,), dtype="string", name="words")
    found = layers.StringLookup(vocabulary=["a", "b"])(words)
    word = layers.Flatten()(layers.Embedding(3, 2)(found))
    texts = keras.Input((1,), dtype="string", name="texts")
    read = layers.TextVectorization(
        vocabulary=["the", "cat"], output_sequence_length=5
    )(texts)
    text = layers.GlobalAveragePooling1D()(
        layers.Embedding(5, 3, mask_zero=True)(read)
    )
    joined = layers.Concatenate()([scaled, hot, word, text])
    joined = ops.tanh(layers.Lambda(lambda value: value * 2)(joined))
    joined = joined + layers.Rescaling(0.5, offset=1.0)(joined)
    model = keras.Model(
        [numbers, classes, words, texts], layers.Dense(3)(joined)
    )
    model.compile(loss=sparse())
    x = [
        vectors(3, 4),
        np.array([[0], [4], [2]], "int32"),
        np.array([["a"], ["b"], ["c"]]),
        np.array([["the cat"], ["a dog"], ["cat"]]),
    ]
    one_by_one.check(model, x, np.array([0, 1, 2]))


def test_nested_model_called_twice():
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, "tanh"), layers.Dense(4)]
    )
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3)(inner(inner(inputs))))
    model.compile(loss=sparse())
    one_by_one.check(model, vectors(3, 4), np.array([0, 1, 2]))


def test_attention_scores_among_the_outputs():
    ids = keras.Input((LENGTH,), dtype="int32")
    hidden = layers.Embedding(TOKENS, 4)(ids)
    found, scores = layers.MultiHeadAttention(2, 2)(
        hidden, hidden, return_attention_scores=True
    )
    outputs = {
        "found": layers.Dense(1, name="found")(layers.Flatten()(found)),
        "scores": layers.Flatten(name="scores")(scores),
    }
    model = keras.Model(ids, outputs)
    model.compile(loss={"found": "mse", "scores": "mse"})
    y = {"found": vectors(3, 1), "scores": vectors(3, 2 * LENGTH * LENGTH)}
    one_by_one.check(model, token_ids(), y)


def test_whole_numbers_into_a_dense_layer():
    model = keras.Sequential(
        [keras.Input((LENGTH,), dtype="int32"), layers.Dense(3)]
    )
    model.compile(loss=sparse())
    one_by_one.check(model, token_ids(), np.array([0, 1, 2]))
