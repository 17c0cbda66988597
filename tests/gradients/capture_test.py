"""What `capture` covers, refuses, and leaves as it was."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_tracin.gradients.capture import capture
from keras_tracin.gradients.sites import find_sites
from tests.error_rows import row
from tests.gradients.oracle import (
    Case,
    check,
    functional,
    sequential,
    uneven_loss,
)


def run(model, width=3, chosen=None, loss=uneven_loss, count=4):
    """Captures a batch of `count` examples, with the batch size left open."""

    @tf.function(
        autograph=False,
        input_signature=[tf.TensorSpec([None, width]), tf.TensorSpec([None])],
    )
    def step(x, y):
        return capture(model, loss, (x, y, None), chosen)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, width)).astype("float32")
    return step(x, np.linspace(-1, 1, count, dtype="float32"))


def small_model():
    return sequential(
        (3,),
        layers.Dense(4, activation="tanh", name="first"),
        layers.PReLU(name="slope"),
        layers.Dropout(0.5, name="dropout"),
        layers.Dense(2, name="last"),
        name="net",
    )


def find(model, name):
    return next(x for x in model._flatten_layers() if x.name == name)


class Failing(keras.Model):
    """A model that fails after its first layer."""

    def __init__(self):
        super().__init__()
        self.first = layers.Dense(3, activation="relu")
        self.second = layers.Dense(3)
        self.fails = False

    def call(self, inputs):
        hidden = self.first(inputs)
        if self.fails:
            raise RuntimeError("in the middle")
        return self.second(hidden)


def test_each_trainable_variable_is_covered_once():
    model = small_model()
    found = run(model)
    assert found.names == ("net/first", "net/slope", "net/last")
    widths = [
        sum(variable.shape.num_elements() for variable in site.variables)
        for site in find_sites(model)
    ]
    assert sum(widths) == model.count_params()


def test_losses_are_those_of_the_model():
    model = small_model()
    found = run(model, count=4)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3)).astype("float32")
    y = np.linspace(-1, 1, 4, dtype="float32")
    np.testing.assert_allclose(
        found.losses, uneven_loss(y, model(x, training=False)), rtol=1e-5
    )


def test_the_model_is_as_before():
    model = small_model()
    before = [vars(layer).copy() for layer in model._flatten_layers()]
    weights = model.get_weights()
    run(model)
    for layer, attributes in zip(model._flatten_layers(), before, strict=True):
        assert "call" not in vars(layer)
        for name in ("activation", "_trainable_variables", "_layers"):
            assert vars(layer).get(name) is attributes.get(name)
    for value, expected in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_the_model_is_as_before_after_an_exception_in_its_call():
    model = Failing()
    model(tf.ones((1, 3)))
    activation = model.first.activation
    model.fails = True
    with pytest.raises(RuntimeError, match="in the middle"):
        capture(model, uneven_loss, (tf.ones((2, 3)), tf.ones(2), None))
    for layer in (model, model.first, model.second):
        assert "call" not in vars(layer)
    assert model.first.activation is activation


def test_the_model_is_as_before_after_an_exception_in_a_layer():
    def activation(x):
        if x.shape[0] == 2:
            raise RuntimeError("in an activation")
        return x

    model = sequential((3,), layers.Dense(2, activation=activation))
    with pytest.raises(RuntimeError, match="in an activation"):
        capture(model, uneven_loss, (tf.ones((2, 3)), tf.ones(2), None))
    assert "call" not in vars(model.layers[0])
    assert model.layers[0].activation is activation


def test_the_model_is_as_before_after_an_exception_in_the_loss():
    def loss(y, y_pred, sample_weight):
        raise KeyboardInterrupt

    model = small_model()
    with pytest.raises(KeyboardInterrupt):
        capture(model, loss, (tf.ones((2, 3)), tf.ones(2), None))
    assert all("call" not in vars(x) for x in model._flatten_layers())


def test_a_call_that_the_user_put_on_a_layer_stays():
    layer = layers.Dense(2)
    model = sequential((3,), layer)

    def call(inputs, training=None):
        return 2.0 * type(layer).call(layer, inputs)

    vars(layer)["call"] = call
    run(model)
    assert vars(layer)["call"] is call


def test_training_goes_on_as_if_nothing_had_happened():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(8, 2))
    trained = []
    for captures in (False, True):
        keras.utils.set_random_seed(1)
        model = small_model()
        model.compile("adam", "mse")
        model.fit(x, y, verbose=0, shuffle=False)
        if captures:
            run(model)
        model.fit(x, y, verbose=0, shuffle=False)
        trained.append(model.get_weights() + model.optimizer.variables)
    for plain, captured in zip(*trained, strict=True):
        np.testing.assert_array_equal(plain, captured)


@pytest.mark.parametrize(
    "mode", ["full", "activations", "larger_than", "list_of_layers"]
)
def test_rematerialized_layers_have_the_same_gradients(mode):
    def build():
        scope = keras.RematScope(mode, 1, layer_names=["first", "slope"])
        with scope:
            return sequential(
                (3,),
                layers.Dense(4, activation="tanh", name="first"),
                layers.PReLU(name="slope"),
                layers.Dense(2, name="last"),
            )

    check(Case(build, compact=mode == "full"))


def test_rematerialized_layers_stay_so():
    with keras.RematScope("full"):
        model = small_model()
    before = [layer._remat_mode for layer in model._flatten_layers()]
    run(model)
    after = [layer._remat_mode for layer in model._flatten_layers()]
    assert before == after
    assert None not in after


class TwoHeads(keras.Model):
    """A model that uses one of its heads in training only."""

    def __init__(self):
        super().__init__()
        self.main = layers.Dense(2, name="main")
        self.other = layers.Dense(2, name="other")

    def build(self, input_shape):
        self.main.build(input_shape)
        self.other.build(input_shape)

    def call(self, inputs, training=False):
        return self.other(inputs) if training else self.main(inputs)


def test_layer_without_a_part_in_inference_is_refused():
    model = TwoHeads()
    model.build((None, 3))
    assert run(model).names == ("two_heads/main",)
    with pytest.raises(ValueError, match=r"none of the layers.*/other"):
        run(model, chosen=["other"])


def test_unknown_layer_is_refused_with_the_layers_there_are():
    with pytest.raises(
        ValueError,
        match=row("unknown-layer", "'lost'...no layer...'first'...'last'"),
    ):
        find_sites(small_model(), ["lost"])


def test_layer_object_of_another_model_is_refused():
    with pytest.raises(ValueError, match=row("unknown-layer", "fits no layer")):
        find_sites(small_model(), [layers.Dense(2)])


def test_layer_without_weights_is_refused():
    with pytest.raises(ValueError, match=row("no-variables", "'dropout'")):
        find_sites(small_model(), ["dropout"])


def test_frozen_layer_is_refused_where_it_is_named():
    model = small_model()
    find(model, "first").trainable = False
    assert len(find_sites(model)) == 2
    with pytest.raises(ValueError, match=row("no-variables", "'first'")):
        find_sites(model, ["first"])


def test_model_with_nothing_to_train_is_refused():
    model = small_model()
    model.trainable = False
    with pytest.raises(ValueError, match=row("no-variables", "'net'")):
        find_sites(model)


def test_layers_are_named_in_several_ways():
    model = small_model()
    by_name = find_sites(model, ["last"])
    assert [site.layer.name for site in by_name] == ["last"]
    for other in (["net/last"], [find(model, "last")], "last"):
        assert find_sites(model, other) == by_name


def test_layers_of_one_name_are_told_apart_by_path_or_object():
    block = [
        sequential((3,), layers.Dense(3, name="same"), name=name)
        for name in ("a", "b")
    ]
    model = functional((3,), lambda x: block[1](block[0](x)))
    with pytest.raises(ValueError, match="'same', which fits 2 layers"):
        find_sites(model, ["same"])
    (by_object,) = find_sites(model, [block[1].layers[0]])
    (by_path,) = find_sites(model, [block[1].layers[0].path])
    assert by_object == by_path
    assert by_object.layer is block[1].layers[0]


@pytest.mark.parametrize(
    "layer",
    [
        layers.LSTM(2),
        layers.RNN([layers.LSTMCell(2), layers.GRUCell(2)]),
        layers.TimeDistributed(layers.Dense(2)),
    ],
    ids=lambda layer: layer.name,
)
def test_recurrences_and_wrappers_answer_for_all_in_them(layer):
    model = sequential((3, 2), layer)
    (site,) = find_sites(model)
    assert site.layer is layer
    assert len(site.variables) == len(layer.trainable_variables)


def test_shared_variables_are_named_after_all_their_owners():
    first, second = layers.Dense(3, name="a"), layers.Dense(3, name="b")
    model = sequential((3,), first, second, name="net")
    vars(second)["_kernel"] = first.kernel
    second._trainable_variables[0] = first.kernel
    assert run(model).names == ("net/a+net/b", "net/a", "net/b")


def test_fallback_refuses_a_trace_with_a_fixed_batch_size():
    model = sequential((3,), layers.PReLU(), layers.Dense(2))
    batch = tf.ones((4, 3)), tf.ones(4), None
    with pytest.raises(ValueError, match="open batch size"):
        capture(model, uneven_loss, batch)
