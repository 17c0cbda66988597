"""Which rule a layer gets."""

import keras
import pytest
import tensorflow as tf
from keras import layers

from keras_tracin.gradients.rules import registry, rule_for
from keras_tracin.gradients.rules.registry import (
    LayerUse,
    own_variables,
    watch_before_activation,
)


def built(layer, shape=(None, 3)):
    layer.build(shape)
    return layer


class Renamed(layers.Dense):
    """A subclass that computes what its parent does."""


class Doubled(layers.Dense):
    """A subclass that computes something else."""

    def call(self, inputs):
        return 2.0 * super().call(inputs)


class Tempered(layers.Dense):
    """A subclass with a weight that its parent does not know."""

    def build(self, input_shape):
        super().build(input_shape)
        self.temperature = self.add_weight(shape=(), name="temperature")


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Dense(2), (None, 3)),
        (layers.EinsumDense("ab,bc->ac", 2), (None, 3)),
        (layers.Conv1D(2, 2), (None, 4, 3)),
        (layers.Conv2D(2, 2), (None, 4, 4, 3)),
        (layers.Conv3D(2, 2), (None, 4, 4, 4, 3)),
        (layers.Conv1DTranspose(2, 2), (None, 4, 3)),
        (layers.Conv2DTranspose(2, 2), (None, 4, 4, 3)),
        (layers.Conv3DTranspose(2, 2), (None, 4, 4, 4, 3)),
        (layers.DepthwiseConv1D(2), (None, 4, 3)),
        (layers.DepthwiseConv2D(2), (None, 4, 4, 3)),
        (layers.SeparableConv1D(2, 2), (None, 4, 3)),
        (layers.SeparableConv2D(2, 2), (None, 4, 4, 3)),
        (layers.Embedding(4, 2), (None, 3)),
        (layers.LayerNormalization(), (None, 3)),
        (layers.BatchNormalization(), (None, 3)),
        (layers.GroupNormalization(3), (None, 3)),
        *(
            (layer(), (None, 3))
            for layer in registry.present("RMSNormalization")
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_built_in_layers_have_rules(layer, shape):
    assert rule_for(built(layer, shape)) is not None


def test_a_subclass_that_keeps_call_keeps_the_rule():
    assert rule_for(built(Renamed(2))) is rule_for(built(layers.Dense(2)))


class Standardized(layers.Conv2D):
    """A subclass that redefines a step of its parent's `call`."""

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel - keras.ops.mean(kernel))


class Normed(layers.Dense):
    """A subclass whose kernel is made from the variable."""

    @property
    def kernel(self):
        return keras.ops.normalize(super().kernel)


@pytest.mark.parametrize("layer_class", [Doubled, Tempered, Normed])
def test_a_subclass_that_computes_otherwise_has_no_rule(layer_class):
    assert rule_for(built(layer_class(2))) is None


def test_a_subclass_that_redefines_a_step_of_call_has_no_rule():
    assert rule_for(built(Standardized(2, 2), (None, 4, 4, 3))) is None


def test_a_layer_with_adapters_keeps_the_rule():
    layer = built(layers.Dense(2))
    rule = rule_for(layer)
    layer.enable_lora(1)
    assert rule_for(layer) is rule


def test_a_call_replaced_on_the_instance_has_no_rule():
    layer = built(layers.Dense(2))
    vars(layer)["call"] = lambda inputs: 2.0 * type(layer).call(layer, inputs)
    assert rule_for(layer) is None


def test_a_layer_of_no_known_family_has_no_rule():
    assert rule_for(built(layers.PReLU(), (None, 4))) is None


def test_a_registered_function_becomes_the_rule_of_its_layers(monkeypatch):
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))

    @registry.register(
        layers.PReLU, layers.ReLU, watching=watch_before_activation
    )
    def rule(layer, use):
        return []

    for layer in (layers.PReLU(), layers.ReLU()):
        found = rule_for(layer)
        assert found.factors is rule
        assert found.watching is watch_before_activation


def test_own_variables_are_those_the_layer_made_and_trains():
    layer = built(layers.BatchNormalization())
    assert own_variables(layer) == [layer.gamma, layer.beta]
    layer.gamma.trainable = False
    assert own_variables(layer) == [layer.beta]
    layer.trainable = False
    assert own_variables(layer) == []
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    assert own_variables(model) == []


def test_inputs_are_found_however_they_were_passed():
    x = tf.ones((2, 3))
    positional = LayerUse((x,), {}, (), ())
    named = LayerUse((), {"inputs": x}, (), ())
    assert positional.inputs is x
    assert named.inputs is x
