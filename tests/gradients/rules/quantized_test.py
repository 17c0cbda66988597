"""Layers with quantized kernels: what is left to train beside them.

The kernel is held fixed, so biases and low-rank adapters have gradients, and
so have layers before: Keras takes the dequantized kernel on the way back.
"""

import keras
import pytest
from keras import layers

from keras_tracin.gradients.sites import find_sites
from tests.error_rows import row
from tests.gradients.oracle import (
    Case,
    check,
    compact_in,
    covered,
    functional,
    sequential,
)
from tests.gradients.rules.adapters import adapt

TOKENS = 7
GROUPS = keras.quantizers.Int4QuantizationConfig(block_size=2)
WEIGHTS_ALONE = keras.quantizers.Int8QuantizationConfig(
    activation_quantizer=None
)


def quantized(make, mode=None, config=None, adapted=False):
    """A model of a layer before the quantized one, which is to be trained."""

    def build():
        layer = make()
        model = sequential((3, 4), layers.Dense(4, activation="tanh"), layer)
        layer.quantize(mode, config=config)
        if adapted:
            adapt(layer)
        return model

    return Case(build)


def looked_up(layer_class, mode=None, config=None):
    """An embedding with adapters: without, nothing of it is trained."""

    def build():
        layer = layer_class(TOKENS, 4)
        model = sequential((3,), layer, layers.Dense(2), dtype="int32")
        layer.quantize(mode, config=config)
        adapt(layer)
        return model

    return Case(build, tokens=TOKENS)


def adapted_before():
    """Adapters that were there when the kernel was quantized."""
    layer = layers.Dense(3)
    model = sequential((4,), layers.Dense(4, activation="tanh"), layer)
    adapt(layer)
    layer.quantize("int8")
    return model


def whole_model(mode):
    def build():
        model = sequential(
            (3, 4),
            layers.Dense(4, activation="tanh"),
            einsum(),
            layers.Reshape((3, 6)),
            layers.LayerNormalization(),
            layers.Dense(2),
        )
        model.quantize(mode)
        return model

    return Case(build)


def projecting_back(tie_weights=True):
    """Weights alone are quantized, so that there is a way back."""

    def build():
        shared = layers.ReversibleEmbedding(TOKENS, 4, tie_weights=tie_weights)

        def call(ids):
            hidden = layers.Dense(4, activation="tanh")(shared(ids))
            return shared(hidden, reverse=True)

        model = functional((3,), call, dtype="int32")
        shared.quantize("int8", config=WEIGHTS_ALONE)
        adapt(shared)
        return model

    return Case(build, tokens=TOKENS)


def dense():
    return layers.Dense(5, activation="tanh")


def einsum():
    return layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de")


EMBEDDING, REVERSIBLE = layers.Embedding, layers.ReversibleEmbedding
CASES = {
    "Dense, int8": quantized(dense, "int8"),
    "Dense, int8, adapters": quantized(dense, "int8", adapted=True),
    "Dense, int8, weights alone": quantized(dense, config=WEIGHTS_ALONE),
    "Dense, int8, adapters from before": Case(adapted_before),
    "Dense, int4": quantized(dense, "int4"),
    "Dense, int4, adapters": quantized(dense, "int4", adapted=True),
    "Dense, int4 in groups, adapters": quantized(
        dense, config=GROUPS, adapted=True
    ),
    "EinsumDense, int8": quantized(einsum, "int8"),
    "EinsumDense, int8, adapters": quantized(einsum, "int8", adapted=True),
    "EinsumDense, int4, adapters": quantized(einsum, "int4", adapted=True),
    "EinsumDense, int4 in groups": quantized(einsum, config=GROUPS),
    "Embedding, int8": looked_up(EMBEDDING, "int8"),
    "Embedding, int4": looked_up(EMBEDDING, "int4"),
    "Embedding, int4 in groups": looked_up(EMBEDDING, config=GROUPS),
    "ReversibleEmbedding, int8": looked_up(REVERSIBLE, "int8"),
    "ReversibleEmbedding, int4": looked_up(REVERSIBLE, "int4"),
    "ReversibleEmbedding both ways": projecting_back(),
    "ReversibleEmbedding both ways, untied": projecting_back(False),
    "model, int8": whole_model("int8"),
    "model, int4": whole_model("int4"),
}

# Their factors are of three kinds, and float32 is what such models are used in.
CASES = compact_in(
    CASES,
    "Dense, int8, adapters",
    "EinsumDense, int4, adapters",
    "Embedding, int4",
    "ReversibleEmbedding both ways",
    "model, int8",
)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_factors_match_the_jacobian(case):
    check(case)


def test_adapters_and_bias_are_covered_and_the_kernel_is_not():
    model = CASES["Dense, int8, adapters"].build()
    _, site = find_sites(model)
    names = {variable.name for variable in site.variables}
    assert names == {"lora_kernel_a", "lora_kernel_b", "bias"}
    assert site.rule is not None
    assert len(covered(model, [site.layer.name])) == 3


def test_quantized_model_with_nothing_to_train_is_refused():
    model = sequential((4,), layers.Dense(3, use_bias=False))
    model.quantize("int8")
    with pytest.raises(ValueError, match=row("no-variables")):
        find_sites(model)
