"""Losses kept apart by example, and what the batch makes of them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_tracin.losses.per_example import (
    batch_shares,
    batch_weights,
    per_example_loss,
)
from tests.error_rows import row
from tests.gradients.oracle import functional, sequential

COUNT, CLASSES = 4, 3
REDUCTIONS = (
    "sum_over_batch_size",
    "mean",
    "sum",
    "mean_with_sample_weight",
    "none",
    None,
)
PADDED = np.array([[1, 2, 3, 4], [5, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]])
LABELS = np.array([[0, 1, 2, 0], [2, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])


def compiled(loss, shape=(CLASSES,)):
    model = sequential(shape, layers.Activation("linear"))
    model.compile(loss=loss)
    return model


def masked_model(loss):
    keras.utils.set_random_seed(0)
    model = sequential(
        (4,),
        layers.Embedding(6, 3, mask_zero=True),
        layers.Dense(CLASSES, activation="softmax"),
        dtype="int32",
    )
    model.compile(loss=loss)
    return model


def trained_on(model, y, y_pred, weight=None):
    """What Keras differentiates: the sum, where a loss is not reduced."""
    return np.sum(model.compute_loss(None, y, y_pred, weight))


def assert_adds_up(model, y, y_pred, weight=None):
    expected = trained_on(model, y, y_pred, weight)
    values = per_example_loss(model)(y, y_pred, weight)
    weights = batch_weights(model)(y, y_pred, weight)
    assert values.shape == weights.shape == (len(y),)
    np.testing.assert_allclose(np.sum(weights * values), expected, rtol=1e-5)
    shares = batch_shares(model)(y, y_pred, weight)
    np.testing.assert_allclose(shares, weights * values, rtol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_batch_weights_relate_examples_to_their_batch(reduction, weighted):
    rng = np.random.default_rng(0)
    y, y_pred = rng.normal(size=(2, COUNT, 3, 2)).astype("float32")
    weight = rng.uniform(size=(COUNT, 3)) if weighted else None
    loss = keras.losses.MeanSquaredError(reduction=reduction)
    model = compiled(loss, (3, 2))
    assert_adds_up(model, y, tf.constant(y_pred), weight)


@pytest.mark.parametrize("weight", [None, (COUNT, 1), (COUNT, 4)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_batch_weights_count_unmasked_positions(reduction, weight):
    if weight:
        weight = np.random.default_rng(0).uniform(size=weight)
    model = masked_model(
        keras.losses.SparseCategoricalCrossentropy(reduction=reduction)
    )
    assert_adds_up(model, LABELS, model(PADDED), weight)


@pytest.mark.parametrize("reduction", REDUCTIONS[:4])
def test_ignored_classes_are_masked(reduction):
    loss = keras.losses.SparseCategoricalCrossentropy(
        ignore_class=-1, reduction=reduction
    )
    y = np.array([0, -1, 2, 1])
    y_pred = np.random.default_rng(0).uniform(size=(COUNT, CLASSES))
    model = compiled(loss)
    y_pred = tf.constant(y_pred, tf.float32)
    assert_adds_up(model, y, y_pred)
    assert per_example_loss(model)(y, y_pred, None)[1] == 0


def two_outputs(*losses):
    def call(x):
        return [layers.Dense(2)(x), layers.Dense(1)(x)]

    model = functional((3,), call)
    model.compile(loss=list(losses), loss_weights=[0.3, 2.0])
    return model


def test_outputs_of_one_kind_have_one_weight_for_an_example():
    model = two_outputs("mse", "mae")
    y = [np.ones((COUNT, 2)), np.ones((COUNT, 1))]
    y_pred = model(np.random.default_rng(0).normal(size=(COUNT, 3)))
    found = batch_weights(model)(y, y_pred, None)
    np.testing.assert_allclose(found, np.full(COUNT, 1 / COUNT))


def test_outputs_of_several_kinds_have_shares_but_no_weight():
    model = two_outputs("mse", keras.losses.MeanSquaredError(reduction="sum"))
    y = [np.ones((COUNT, 2)), np.ones((COUNT, 1))]
    y_pred = model(np.random.default_rng(0).normal(size=(COUNT, 3)))
    with pytest.raises(ValueError, match=r"'mean', 'sum'.*`batch_shares`"):
        batch_weights(model)(y, y_pred, None)
    np.testing.assert_allclose(
        np.sum(batch_shares(model)(y, y_pred, None)),
        trained_on(model, y, y_pred),
        rtol=1e-5,
    )


class Pairwise(keras.losses.Loss):
    """Labels `[n]` against predictions `[n, 1]`: all pairs of examples."""

    def call(self, y_true, y_pred):
        return keras.ops.square(y_true - y_pred)


def flattened(y_true, y_pred):
    return tf.reshape(tf.square(y_true - y_pred), [-1])


def one_number(y_true, y_pred):
    return tf.reshape(tf.reduce_mean(tf.square(y_true - y_pred)), [1])


@pytest.mark.parametrize("count", [1, CLASSES, COUNT])
@pytest.mark.parametrize(
    "loss",
    [
        flattened,
        one_number,
        keras.losses.CosineSimilarity(axis=0),
        keras.losses.BinaryCrossentropy(axis=0),
    ],
    ids=["flattened", "one number", "cosine of a column", "mean of a column"],
)
def test_losses_that_do_not_keep_examples_apart_are_refused(loss, count):
    y = np.ones((count, CLASSES), "float32")
    model = compiled(loss)
    with pytest.raises(ValueError, match="in the examples' order"):
        per_example_loss(model)(y, tf.constant(y) / 2, None)


@pytest.mark.parametrize("count", [1, COUNT])
def test_losses_that_pair_examples_by_broadcasting_are_refused(count):
    y = np.ones(count, "float32")
    model = compiled(Pairwise(), (1,))
    with pytest.raises(ValueError, match="broadcasts"):
        per_example_loss(model)(y, tf.ones((count, 1)), None)


@pytest.mark.parametrize("count", [1, COUNT])
@pytest.mark.parametrize("loss", [keras.losses.Dice(), keras.losses.Tversky()])
def test_overlap_of_the_whole_batch_is_refused_naming_axis(loss, count):
    y = np.ones((count, CLASSES), "float32")
    with pytest.raises(ValueError, match=r"`axis=\(1, 2, 3\)`"):
        per_example_loss(compiled(loss))(y, tf.constant(y), None)


class Doubling(keras.losses.Loss):
    """Prepares its arguments in a `__call__` of its own."""

    def __call__(self, y_true, y_pred, sample_weight=None):
        return super().__call__(2.0 * y_true, y_pred, sample_weight)

    def call(self, y_true, y_pred):
        return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)


class Reducing(keras.losses.Loss):
    """Reduces the batch by itself."""

    def __call__(self, y_true, y_pred, sample_weight=None):
        return keras.ops.mean(keras.ops.square(y_true - y_pred))


@pytest.mark.parametrize("reduction", REDUCTIONS[:4])
def test_a_call_of_a_losss_own_is_taken_as_it_is(reduction):
    rng = np.random.default_rng(0)
    y, y_pred = rng.normal(size=(2, COUNT, CLASSES)).astype("float32")
    weight = rng.uniform(size=COUNT).astype("float32")
    model = compiled(Doubling(reduction=reduction))
    assert_adds_up(model, y, tf.constant(y_pred), weight)
    np.testing.assert_allclose(
        per_example_loss(model)(y, tf.constant(y_pred), weight),
        weight * np.mean((2 * y - y_pred) ** 2, axis=1),
        rtol=1e-5,
    )


def test_a_call_of_a_losss_own_that_reduces_is_refused():
    y = np.ones((COUNT, CLASSES), "float32")
    with pytest.raises(ValueError, match=row("reduced-loss")):
        per_example_loss(compiled(Reducing()))(y, tf.constant(y), None)


def test_masks_and_weights_that_do_not_fit_are_refused():
    y = np.ones((COUNT, CLASSES), "float32")
    weight = np.ones((COUNT, CLASSES))
    with pytest.raises(ValueError, match="`sample_weight` should have no more"):
        per_example_loss(compiled("mse"))(y, tf.constant(y), weight)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_a_loss_computes_in_its_own_dtype_and_is_summed_in_float32(dtype):
    rng = np.random.default_rng(0)
    y, y_pred = rng.uniform(size=(2, COUNT, 5, CLASSES)).astype("float32")
    loss = keras.losses.MeanAbsoluteError(dtype=dtype)
    found = per_example_loss(compiled(loss))(y, tf.constant(y_pred), None)
    assert found.dtype.size >= 4
    np.testing.assert_allclose(
        found, np.mean(np.abs(y - y_pred), axis=(1, 2)), rtol=0.02
    )


class OwnLoss(keras.Sequential):
    """A model that computes its loss by itself."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return keras.ops.mean(keras.ops.abs(y - y_pred))


class OwnStep(keras.Sequential):
    """A model that trains in its own way, on another loss."""

    def train_step(self, data):
        return {"loss": keras.ops.sum(self(data[0]))}


class OwnStepOfLoss(OwnStep):
    """A model that trains in its own way, on the compiled loss."""

    def train_step(self, data):
        return {"loss": self.evaluated(*data)}

    def evaluated(self, x, y):
        return self.compute_loss(x, y, self(x))


def test_a_model_that_computes_its_loss_itself_needs_one_given():
    model = OwnLoss([keras.Input((2,)), layers.Dense(1)])
    model.compile(loss="mse")
    with pytest.raises(ValueError, match=r"`compute_loss`.*`loss=`"):
        per_example_loss(model)
    assert callable(per_example_loss(model, "mae"))


def test_the_compiled_loss_of_a_model_with_its_own_step_is_warned_about():
    model = OwnStepOfLoss([keras.Input((2,)), layers.Dense(1)])
    model.compile(loss="mse")
    with pytest.warns(UserWarning, match="`train_step` of its own"):
        per_example_loss(model)


def test_a_model_whose_own_step_leaves_the_compiled_loss_needs_one_given():
    model = OwnStep([keras.Input((2,)), layers.Dense(1)])
    model.compile(loss="mse")
    with pytest.raises(ValueError, match=row("own-step-loss", "`loss=`")):
        per_example_loss(model)
    assert callable(per_example_loss(model, "mae"))
