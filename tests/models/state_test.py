"""Layers that assign variables when they are called leave no trace.

What the next call would read is refused; what nothing reads is put back.
"""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.models.state import preserved, variables_of
from tests.error_rows import row
from tests.points import CROSSENTROPY, examples

layers, ops = keras.layers, keras.ops
TRAIN, TEST = examples(20, 0), examples(3, 1)


class Counting(layers.Layer):
    """Counts its calls, where Keras sees it and where it does not."""

    def build(self, shape):
        self.calls = self.add_weight(shape=(), dtype="int32", trainable=False)
        self.within = {"unseen": [tf.Variable(0.0, trainable=False)]}

    def call(self, x):
        self.calls.assign_add(1)
        self.within["unseen"][0].assign_add(1.0)
        return x


class UnitLength(layers.Layer):
    """Brings its kernel to length one before it uses it."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 5))

    def call(self, x):
        self.kernel.assign(self.kernel / ops.norm(self.kernel))
        return x @ self.kernel


class LaterUnitLength(UnitLength):
    """Does so after the use: the next call has another kernel."""

    def call(self, x):
        outputs = x @ self.kernel
        self.kernel.assign(self.kernel / ops.norm(self.kernel))
        return outputs


class MovingMean(layers.Layer):
    """Centres by an average that moves with every call."""

    def build(self, shape):
        self.mean = self.add_weight(shape=shape[1:], trainable=False)

    def call(self, x):
        self.mean.assign(0.99 * self.mean + 0.01 * ops.mean(x, axis=0))
        return x - self.mean


class UnseenMovingMean(layers.Layer):
    """The same in a variable of TensorFlow's own."""

    def build(self, shape):
        self.mean = tf.Variable(tf.zeros(shape[1:]), trainable=False)

    def call(self, x):
        self.mean.assign(0.99 * self.mean + 0.01 * tf.reduce_mean(x, axis=0))
        return x - self.mean


class Noisy(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + keras.random.normal(ops.shape(x), seed=self.seeds)


def make_model(*inside):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), *inside, layers.Dense(3, name="logits")]
    )
    model.compile(keras.optimizers.SGD(0.1), CROSSENTROPY)
    return model


def values(model):
    return [
        np.copy(tf.convert_to_tensor(held.variable))
        for held in variables_of(model)
    ]


def works(model, tmp_path):
    """Whatever is done with a model, by name."""
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    run = kt.TrainingRun.from_weights([path], 1.0)
    projection = kt.TensorSketch(dim=16)

    def index():
        method = kt.TracIn(model, TRAIN, run)
        kt.InfluenceIndex.build(
            method, tmp_path / "index", projection=projection
        )

    return {
        "TracIn": lambda: kt.TracIn(model, TRAIN, run).influence(TEST),
        "TRAK": lambda: kt.TRAK(
            model, TRAIN, run, projection=projection
        ).influence(TEST),
        "influence functions": lambda: kt.InfluenceFunctions(
            model, TRAIN, damping=0.1, solver=kt.Exact()
        ).influence(TEST),
        "representer points": lambda: kt.RepresenterPoints(
            model, TRAIN, l2=0.1
        ).influence(TEST),
        "index": index,
        "check": lambda: kt.check(model, TRAIN, run, TEST, verbose=0),
    }


@pytest.mark.filterwarnings("ignore:The model has not converged")
def test_whatever_is_done_with_a_model_its_variables_are_as_before(tmp_path):
    model = make_model(Counting(), UnitLength())
    before = values(model)
    for name, work in works(model, tmp_path).items():
        work()
        for held, value in zip(variables_of(model), before, strict=True):
            now = tf.convert_to_tensor(held.variable)
            np.testing.assert_array_equal(now, value, f"{name}: {held.name}")


def by_one_tape_each(model, x, y):
    """`[n, p]`, with the variables as before at each of them."""
    rows = []
    for at in range(len(x)):
        with preserved(model), tf.GradientTape() as tape:
            logits = model(x[at : at + 1], training=False)
            loss = CROSSENTROPY(y[at : at + 1], logits)
        grads = tape.gradient(loss, [v.value for v in model.trainable_weights])
        rows.append(np.concatenate([np.ravel(grad) for grad in grads]))
    return np.stack(rows)


@pytest.mark.parametrize("layer", [Counting, UnitLength])
def test_scores_are_those_of_the_weights_as_they_are(layer, tmp_path):
    model = make_model(layer())
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    run = kt.TrainingRun.from_weights([path], 1.0)
    train, test = (by_one_tape_each(model, *data) for data in (TRAIN, TEST))
    scores = kt.TracIn(model, TRAIN, run).influence(TEST).scores
    np.testing.assert_allclose(scores, test @ train.T, rtol=1e-4, atol=1e-5)


SOME = ("TracIn", "check")  # the others look at a model as TracIn does
REFUSED = {
    "a moving mean": (MovingMean, "moving_mean.*mean", None),
    "one that Keras does not see": (
        UnseenMovingMean,
        "unseen_moving_mean",
        SOME,
    ),
    "a kernel that is changed after its use": (
        LaterUnitLength,
        "later_unit_length.*variable '",
        SOME,
    ),
}


@pytest.mark.parametrize(
    ("layer", "named", "names"), REFUSED.values(), ids=REFUSED
)
def test_a_layer_that_changes_what_it_computes_is_refused(
    layer, named, names, tmp_path
):
    model = make_model(layer())
    before = values(model)
    for name, work in works(model, tmp_path).items():
        if names and name not in names:
            continue
        if name == "check":
            report = work()
            assert not report.ok
            assert re.search(row("changing-state"), report.errors[0].message)
        else:
            with pytest.raises(
                ValueError, match=row("changing-state")
            ) as error:
                work()
            assert re.search(named, str(error.value)), name
        for held, value in zip(variables_of(model), before, strict=True):
            now = tf.convert_to_tensor(held.variable)
            np.testing.assert_array_equal(now, value, f"{name}: {held.name}")


def test_random_numbers_are_no_change_of_state(tmp_path):
    model = make_model(Counting(), Noisy(name="noisy"))
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    run = kt.TrainingRun.from_weights([path], 1.0)
    with pytest.warns(UserWarning, match="noisy.*draws random numbers"):
        kt.TracIn(model, TRAIN, run).influence(TEST)


def test_variables_are_as_before_after_an_exception():
    model = make_model(Counting())
    before = values(model)

    def interrupted():
        with preserved(model) as state:
            model(TRAIN[0])
            assert {type(held.owner) for held in state.changed()} == {Counting}
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    for held, value in zip(variables_of(model), before, strict=True):
        now = tf.convert_to_tensor(held.variable)
        np.testing.assert_array_equal(now, value)
