"""A method's gradients are held against plain TensorFlow at its first use."""

import dataclasses
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.first_look import EXAMPLES, FirstLook
from keras_tracin.gradients.rules import registry
from keras_tracin.gradients.rules.registry import register
from tests.error_rows import row
from tests.points import CROSSENTROPY, examples
from tests.zoo.one_by_one import gradients_one_by_one

layers, ops = keras.layers, keras.ops
TRAIN, TEST = examples(40, 0), examples(5, 1)


class Halved(layers.Dense):
    """A class of its own, with a rule in these tests that is wrong."""

    def call(self, x):
        return x @ self.kernel + self.bias


class Keeping(layers.Layer):
    """Keeps a tensor on itself for a later layer."""

    def __init__(self, **options):
        super().__init__(**options)
        self.dense = layers.Dense(5)

    def call(self, x):
        self.kept = self.dense(x)
        return x


class Adding(layers.Layer):
    def __init__(self, source, **options):
        super().__init__(**options)
        self.dense = layers.Dense(5)
        self.source = [source]

    def call(self, x):
        return self.dense(x) + self.source[0].kept


@dataclasses.dataclass
class Pair:
    first: tf.Tensor
    second: tf.Tensor


class ReturningPair(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.dense = layers.Dense(5)

    def call(self, x):
        return Pair(x, self.dense(x))


class WithPair(keras.Model):
    def __init__(self):
        super().__init__()
        self.pair, self.out = ReturningPair(), layers.Dense(3)

    def call(self, x):
        pair = self.pair(x)
        return self.out(pair.second)


def make_model(*inside, loss=CROSSENTROPY, dtype=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, activation="tanh", name="hidden", dtype=dtype),
            *inside,
            layers.Dense(3, name="logits", dtype=dtype),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), loss)
    return model


def run_of(model, tmp_path):
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    return kt.TrainingRun.from_weights([path], 1.0)


def complaint(model, data=TRAIN, steps="captured", **options):
    """What the first look says, by a step that is at hand."""
    scorer = Engine(model, data, **options)
    functions = scorer.train_steps
    getattr(functions, steps).get_concrete_function()
    return FirstLook(functions, scorer.train.sample(EXAMPLES)).complaint()


each_step = pytest.mark.parametrize("steps", ["captured", "squared_norms"])


@pytest.fixture
def wrong_rule():
    """For the length of a test, the bias's gradient counts half."""

    @register(Halved)
    def halved(layer, use):
        rule = registry._RULES[layers.Dense]
        parts = rule.factors(layer, use)
        return [
            (variables, dataclasses.replace(f, grads=0.9 * f.grads))
            for variables, f in parts
        ]

    registry._RULES[Halved] = dataclasses.replace(
        registry._RULES[Halved], fits=lambda layer: True
    )
    yield
    del registry._RULES[Halved]


@each_step
def test_a_wrong_rule_is_found_and_its_layer_named(wrong_rule, steps):
    message = complaint(make_model(Halved(5, name="halved")), steps=steps)
    expected = row(
        "incomplete-gradient", "in layer", "halved' (Halved)", "likely reason"
    )
    assert re.search(expected, message)


def test_every_method_looks(wrong_rule, tmp_path):
    model = make_model(Halved(5, name="halved"))
    run = run_of(model, tmp_path)
    sketch = kt.TensorSketch(dim=16)
    works = {
        "influence": lambda: kt.TracIn(model, TRAIN, run).influence(TEST),
        "self": lambda: kt.TracIn(model, TRAIN, run).self_influence(),
        "inverse": lambda: kt.InfluenceFunctions(
            model, TRAIN, damping=1.0, solver=kt.Exact()
        ).influence(TEST),
        "TRAK": lambda: kt.TRAK(model, TRAIN, run, projection=sketch).influence(
            TEST
        ),
        "index": lambda: kt.InfluenceIndex.build(
            kt.TracIn(model, TRAIN, run), tmp_path / "index", projection=sketch
        ),
    }
    for work in works.values():
        with pytest.raises(ValueError, match=row("incomplete-gradient")):
            work()
    report = kt.check(model, TRAIN, run, verbose=0)
    assert re.search(row("incomplete-gradient"), report.errors[0].message)


def test_it_looks_once(tmp_path, monkeypatch):
    model = make_model()
    method = kt.TracIn(model, TRAIN, run_of(model, tmp_path))
    looks = []
    original = FirstLook.complaint
    monkeypatch.setattr(
        FirstLook, "complaint", lambda self: looks.append(1) or original(self)
    )
    method.influence(TEST)
    method.self_influence()
    method.influence(TEST, directory=tmp_path / "parts")
    method.among(np.arange(9)).self_influence()
    assert len(looks) == 1


def right_or_refused(model, loss, tmp_path, expected, given=None):
    run = run_of(model, tmp_path)
    train, test = (
        gradients_one_by_one(model, *data, lambda y, p, _: loss(y, p))
        for data in (TRAIN, TEST)
    )
    method = kt.TracIn(model, TRAIN, run, loss=given)
    refusal = ""
    try:
        norms = method.self_influence().scores
        scores = method.influence(TEST).scores
    except ValueError as error:
        refusal = str(error)
    if refusal:
        assert [word for word in expected if word not in refusal] == []
        return
    np.testing.assert_allclose(scores, test @ train.T, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(norms, (train**2).sum(axis=1), rtol=1e-3)


def test_a_tensor_kept_for_a_later_layer_is_right_or_refused(tmp_path):
    keeping = Keeping(name="keeping")
    model = make_model(keeping, Adding(keeping, name="adding"))
    right_or_refused(
        model, CROSSENTROPY, tmp_path, ["keeping", "attribute 'kept'"]
    )


def test_a_dataclass_that_a_layer_returns_is_right_or_refused(tmp_path):
    model = WithPair()
    model(TRAIN[0][:1])
    model.compile(loss=CROSSENTROPY)
    right_or_refused(model, CROSSENTROPY, tmp_path, ["returns a Pair"])


def test_a_loss_that_reads_weights_is_right_or_refused(tmp_path):
    model = make_model()

    def reading(y, p):
        squares = tf.square(p @ tf.transpose(model.layers[-1].kernel))
        return keras.losses.sparse_categorical_crossentropy(
            y, p, from_logits=True
        ) + 0.5 * tf.reduce_sum(squares, -1)

    right_or_refused(
        model, reading, tmp_path, ["logits", "the loss reads"], given=reading
    )


@pytest.mark.parametrize(
    ("policy", "steps"),
    [
        ("float32", "captured"),
        ("float32", "squared_norms"),
        ("float64", "captured"),
        ("float16", "squared_norms"),
        ("mixed_float16", "captured"),
        ("mixed_bfloat16", "squared_norms"),
    ],
)
def test_it_is_silent_where_gradients_are_right(policy, steps):
    model = make_model(layers.LayerNormalization(dtype=policy), dtype=policy)
    assert complaint(model, steps=steps) is None


@each_step
def test_it_is_silent_at_examples_that_are_fitted_to_the_last_bit(steps):
    model = make_model()
    kernel = model.layers[-1].kernel
    x, _ = TRAIN
    for scale in (30.0, 100.0, 1000.0):
        kernel.assign(tf.ones_like(kernel) * scale * np.array([1, 0, -1.0]))
        y = np.argmax(model(x), axis=1)
        assert complaint(model, (x, y), steps) is None


def test_it_is_silent_about_loops_and_restricted_layers():
    model = keras.Sequential(
        [keras.Input((6, 2)), layers.LSTM(4), layers.Dense(3, name="logits")]
    )
    model.compile(loss=CROSSENTROPY)
    data = np.random.default_rng(0).normal(size=(12, 6, 2)), np.arange(12) % 3
    assert complaint(model, data) is None
    assert complaint(make_model(), layers=["hidden"]) is None


def test_the_model_is_as_before(wrong_rule):
    model = make_model(Halved(5))
    before = [np.copy(v) for v in model.weights]
    assert complaint(model) is not None
    for variable, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    for layer in model._flatten_layers():
        assert "call" not in vars(layer)


class DroppingAlways(layers.Layer):
    """Drops units in inference mode too."""

    def __init__(self, rate):
        super().__init__()
        self.dropout = layers.Dropout(rate)

    def call(self, x):
        return self.dropout(x, training=True)


@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_a_layer_that_draws_random_numbers_is_only_warned_of(tmp_path, rate):
    model = make_model(DroppingAlways(rate))
    run = run_of(model, tmp_path)
    with pytest.warns(UserWarning, match="draws random numbers"):
        kt.TracIn(model, TRAIN, run).self_influence(verbose=0)
