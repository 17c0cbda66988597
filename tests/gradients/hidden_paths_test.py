"""Gradients that reach the loss by other ways than what a layer returns."""

import dataclasses

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
    assert_products_close,
    jacobian,
    precision,
    randomize,
    sequential,
    uneven_loss,
)


class Scaled(keras.Layer):
    """A user's layer: what is done with `self.leave(hidden)` is others'."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(input_shape[-1],), name="scale")
        self.shift = self.add_weight(shape=(input_shape[-1],), name="shift")

    def call(self, inputs):
        hidden = inputs * self.scale + self.shift
        return self.leave(hidden)


class ReturnsTanh(Scaled):
    def leave(self, hidden):
        return ops.tanh(hidden)


class KeepsOnSelf(Scaled):
    def leave(self, hidden):
        self.kept = ops.sin(hidden)
        return ops.tanh(hidden)


class KeepsWhatItReturns(Scaled):
    def leave(self, hidden):
        self.kept = ops.tanh(hidden)
        return self.kept


class KeepsOnAnother(Scaled):
    def leave(self, hidden):
        self.other[0].kept = ops.sin(hidden)
        return ops.tanh(hidden)


class KeepsInList(Scaled):
    def leave(self, hidden):
        self.store["kept"] = [ops.sin(hidden)]
        return ops.tanh(hidden)


@dataclasses.dataclass
class Pair:
    first: tf.Tensor
    second: tf.Tensor


class ReturnsDataclass(Scaled):
    def leave(self, hidden):
        return Pair(ops.tanh(hidden), ops.sin(hidden))


class ReturnsRagged(Scaled):
    def leave(self, hidden):
        return tf.RaggedTensor.from_tensor(hidden)


class ReturnsTensorArray(Scaled):
    def leave(self, hidden):
        array = tf.TensorArray(hidden.dtype, 2, element_shape=(None, 3))
        return array.write(0, ops.tanh(hidden)).write(1, hidden)


class ReturnsFunction(Scaled):
    def leave(self, hidden):
        return lambda inputs: ops.sin(hidden) * inputs


class ReturnsGenerator(Scaled):
    def leave(self, hidden):
        return (ops.sin(hidden) * (k + 1) for k in range(2))


class Store:
    """What `tf.nest` and Keras pass on as it is."""


class Fills(Scaled):
    """Leaves a tensor in an object that it is given."""

    def call(self, inputs, store):
        hidden = inputs * self.scale + self.shift
        store.kept = ops.sin(hidden)
        return ops.tanh(hidden)


class CachesItsWeight(Scaled):
    """Reads its weight in its first call alone."""

    def call(self, inputs):
        if not hasattr(self, "cache"):
            self.cache = ops.exp(self.scale + 0.0) + self.shift
        return inputs * self.cache


class ReadsKept(keras.Layer):
    """A layer with a weight that reads what another has kept."""

    def __init__(self, other):
        super().__init__()
        self.other = [other]

    def build(self, input_shape):
        self.weight = self.add_weight(shape=(input_shape[-1],), name="weight")

    def call(self, inputs):
        return ops.tanh(inputs * self.weight) * self.other[0].kept


class Around(keras.Model):
    """Calls a layer, and makes something of whatever it left."""

    def __init__(self, layer, use):
        super().__init__()
        self.before = layers.Dense(3, activation="tanh")
        self.layer, self.use = layer, use
        self.after = layers.Dense(2)

    def call(self, inputs):
        hidden = self.before(inputs)
        return self.after(self.use(self.layer, hidden))


def keeping(layer_class):
    def use(layer, hidden):
        return layer(hidden) + layer.kept

    return lambda: Around(layer_class(), use)


def on_another():
    layer = KeepsOnAnother()

    def use(layer, hidden):
        return layer(hidden) * layer.other[0].kept

    model = Around(layer, use)
    layer.other = [model.after]
    return model


def in_a_list():
    layer = KeepsInList()
    layer.store = {}
    store = layer.store

    def use(layer, hidden):
        return layer(hidden) * store["kept"][0]

    return Around(layer, use)


def as_an_argument():
    def use(layer, hidden):
        store = Store()
        return layer(hidden, store=store) * store.kept

    return Around(Fills(), use)


def cached():
    def use(layer, hidden):
        if hasattr(layer, "cache"):
            del layer.cache
        return layer(ops.tanh(layer(hidden)))

    return Around(CachesItsWeight(), use)


def read_in_an_activation():
    dense = layers.Dense(3, name="reading")
    dense.activation = lambda value: ops.tanh(value) * dense.bias
    return Around(dense, lambda layer, hidden: layer(hidden))


def read_by_a_layer():
    first = KeepsOnSelf()
    second = ReadsKept(first)
    model = Around(first, lambda layer, hidden: second(layer(hidden)))
    model.second = second
    return model


MODELS = {
    "kept on self": keeping(KeepsOnSelf),
    "kept on self and returned": keeping(KeepsWhatItReturns),
    "kept on another layer": on_another,
    "kept in a dictionary": in_a_list,
    "left in an argument": as_an_argument,
    "returned as a dataclass": lambda: Around(
        ReturnsDataclass(),
        lambda layer, hidden: (lambda p: p.first * p.second)(layer(hidden)),
    ),
    "returned as a ragged tensor": lambda: Around(
        ReturnsRagged(), lambda layer, hidden: layer(hidden).to_tensor()
    ),
    "returned as a TensorArray": lambda: Around(
        ReturnsTensorArray(),
        lambda layer, hidden: tf.reduce_prod(layer(hidden).stack(), 0),
    ),
    "returned as a function": lambda: Around(
        ReturnsFunction(), lambda layer, hidden: layer(hidden)(hidden)
    ),
    "returned as a generator": lambda: Around(
        ReturnsGenerator(), lambda layer, hidden: sum(layer(hidden))
    ),
    "a weight cached in the first of two calls": cached,
    "a bias read in the activation": read_in_an_activation,
    "kept, and read by a layer with weights": read_by_a_layer,
}


def data(dtype="float64", count=5):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(count, 4)).astype(dtype)
    y = rng.normal(size=count).astype(dtype)
    return x, y, rng.uniform(0.5, 2.0, size=count).astype(dtype)


def check(model, batch, loss, dtype="float64"):
    """Holds products of captured gradients against rows of a Jacobian."""
    functions = GradientFunctions(model, loss, like=batch)
    rows = jacobian(model, batch, model.trainable_variables, loss)
    factors = functions.captured(batch).factors
    products = sum(algebra.inner(f, f).numpy() for f in factors)
    assert_products_close(products, rows, rows, dtype)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_what_a_layer_leaves_behind_counts(build):
    with precision("float64"):
        model = build()
        batch = data()
        model(batch[0])
        randomize(model)
        check(model, batch, uneven_loss)


def test_what_no_part_of_the_model_can_be_run_for_one_example_is_refused():
    class Transposed(Around):
        def call(self, inputs):
            return ops.transpose(super().call(inputs))

    def loss(y, y_pred, weight):
        return uneven_loss(y, ops.transpose(y_pred), weight)

    model = Transposed(
        KeepsOnSelf(), lambda layer, hidden: layer(hidden) + layer.kept
    )
    batch = data("float32")
    model(batch[0])
    with pytest.raises(ValueError, match=row("hidden-path", "scale'")):
        GradientFunctions(model, loss, like=batch)


class WithSoftmax(Scaled):
    """A user's last layer; Keras notes the logits on what it returns."""

    def leave(self, hidden):
        return keras.activations.softmax(hidden)


class OwnWeights(keras.Model):
    """A model that ends in a softmax, of weights of its own."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3, activation="tanh")
        self.kernel = self.add_weight(shape=(3, 3), name="kernel")

    def call(self, inputs):
        hidden = ops.matmul(self.dense(inputs), self.kernel)
        return keras.activations.softmax(hidden)


def crossentropy(y, y_pred, sample_weight=None):
    y = tf.cast(y > 0, tf.int32)
    return keras.losses.sparse_categorical_crossentropy(y, y_pred)


@pytest.mark.parametrize("last", ["layer", "model"])
def test_losses_that_start_from_noted_logits_reach_the_layer(last):
    with precision("float64"):
        x, y, _ = data()
        if last == "layer":
            model = sequential(
                (4,), layers.Dense(3, activation="tanh"), WithSoftmax()
            )
        else:
            model = OwnWeights()
            model(x)
        randomize(model)
        check(model, (x, y, np.ones_like(y)), crossentropy)


def kept_for_the_loss():
    """A model, and a loss that reads what a layer of it has kept."""
    layer = KeepsOnSelf()
    model = Around(layer, lambda layer, hidden: layer(hidden))

    def loss(y, y_pred, sample_weight=None):
        beside = ops.sum(layer.kept**2, -1) * (y + 2.0)
        return uneven_loss(y, y_pred, sample_weight) + beside

    return model, loss


def kernel_penalty():
    """The loss reads a kernel, with each example's outputs."""
    model = sequential(
        (4,), layers.Dense(3, activation="tanh"), layers.Dense(2)
    )

    def loss(y, y_pred, sample_weight=None):
        back = ops.matmul(y_pred, ops.transpose(model.layers[1].kernel))
        return uneven_loss(y, y_pred, sample_weight) + ops.sum(back**2, -1)

    return model, loss


def weight_decay():
    """The same for every example."""
    model = sequential((4,), ReturnsTanh(), layers.Dense(2))
    frozen = keras.Variable(np.ones((2, 2)), trainable=False)

    def loss(y, y_pred, sample_weight=None):
        penalty = ops.sum(model.layers[0].scale ** 2) + ops.sum(frozen)
        return uneven_loss(y, y_pred, sample_weight) + penalty

    return model, loss


def layer_in_the_loss():
    """The loss calls a layer of the model, on its outputs."""
    model = sequential(
        (3,), layers.Dense(3, activation="tanh"), layers.Dense(3)
    )

    def loss(y, y_pred, sample_weight=None):
        again = model.layers[0](y_pred)
        return uneven_loss(y, y_pred, sample_weight) + ops.sum(again**2, -1)

    return model, loss


def model_in_the_loss():
    """The loss calls the whole model."""
    model, _ = layer_in_the_loss()

    def loss(y, y_pred, sample_weight=None):
        again = model(y_pred)
        return uneven_loss(y, y_pred, sample_weight) + ops.sum(again**2, -1)

    return model, loss


def variable_and_kept():
    """The loss reads a weight, and what a layer has kept of it."""
    model, loss = kept_for_the_loss()
    layer = model.layer

    def both(y, y_pred, sample_weight=None):
        beside = ops.sum(layer.kept * layer.scale * model.before.bias, -1)
        return loss(y, y_pred, sample_weight) + beside

    return model, both


LOSSES = {
    "a kernel, with the outputs": kernel_penalty,
    "a weight, without them": weight_decay,
    "a layer": layer_in_the_loss,
    "the model": model_in_the_loss,
    "what a layer has kept": kept_for_the_loss,
    "a weight, and what a layer has kept": variable_and_kept,
}


@pytest.mark.parametrize("build", LOSSES.values(), ids=LOSSES)
def test_what_a_loss_reads_beside_the_outputs_counts(build):
    with precision("float64"):
        model, loss = build()
        width = 3 if build in (layer_in_the_loss, model_in_the_loss) else 4
        x, y, weight = data()
        batch = x[:, :width], y, weight
        model(batch[0])
        randomize(model)
        check(model, batch, loss)


def test_layers_that_are_named_alone_keep_what_the_loss_reads_of_them():
    with precision("float64"):
        model, loss = kernel_penalty()
        batch = data()
        randomize(model)
        for layer, readers in zip(model.layers, [0, 1], strict=True):
            x, y, weight = batch
            placement = place(
                model, x, [layer], loss=loss, y=y, sample_weight=weight
            )
            assert len(placement.of_loss) == readers


def test_common_models_get_no_further_sites():
    model, _ = kernel_penalty()
    x, y, weight = data("float32")
    placement = place(model, x, loss=uneven_loss, y=y, sample_weight=weight)
    assert [site.layer for site in placement.sites] == model.layers
    assert not placement.of_loss
    assert not placement.of_objective


@pytest.mark.parametrize("build", [MODELS["kept on self"], kernel_penalty])
def test_variables_spread_over_replicas_are_seen_too(build):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    loss = uneven_loss
    with strategy.scope():
        model = build()
        if isinstance(model, tuple):
            model, loss = model
        x, y, weight = data("float32")
        model(x)
    placement = place(model, x, loss=loss, y=y, sample_weight=weight)
    if loss is uneven_loss:
        assert placement.sites[-1].layer is model
    else:
        kernel = model.layers[1].kernel
        assert [v.path for v in placement.of_loss] == [kernel.path]
