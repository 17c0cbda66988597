"""The rules of layers of KerasHub."""

import ast
import importlib
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_tracin
from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.gradients.placement import place
from keras_tracin.gradients.rules import registry, rule_for
from tests.gradients.oracle import (
    Case,
    check,
    functional,
    jacobian,
    precision,
    randomize,
    sequential,
    uneven_loss,
)

hub = pytest.importorskip(
    "keras_hub", reason="KerasHub is an extra: pip install keras-tracin[hub]"
)
NAMES = [name for name in registry._RULES if isinstance(name, str)]


def layer_class(name):
    """The class of a rule, by the end of its name."""
    (path,) = (path for path in NAMES if path.endswith(name))
    module, _, last = path.rpartition(".")
    return getattr(importlib.import_module(module), last)


NORMS = [name for name in NAMES if "orm" in name.rpartition(".")[2]]


def normalized(name):
    return lambda: sequential(
        (3, 4),
        layers.Dense(4, activation="tanh"),
        layer_class(name)(),
        layers.Dense(2),
    )


def with_positions(call, shape=(4, 3)):
    def build():
        table = hub.layers.PositionEmbedding(6)
        return functional(shape, lambda x: call(table, x))

    return build


def at_positions(table, x):
    moved = ops.zeros_like(x[..., 0], "int32") + ops.arange(4) // 2
    return ops.tanh(x + table(x, positions=moved)) + table(x, start_index=2)


def of_patches():
    return sequential(
        (4, 6, 2),
        layer_class("ViTPatchingAndEmbedding")((4, 6), (2, 2), 3, 2),
        layers.Dense(2, activation="tanh"),
    )


def of_relative_positions():
    table = layer_class("RelativeEmbedding")(3, 2)
    return functional((5, 3), lambda x: ops.einsum("nti,nri->ntr", x, table(x)))


class Attention(keras.Layer):
    """Two layers of T5's attention, with the bias of the first."""

    def __init__(self, width):
        super().__init__()
        attention = layer_class("T5MultiHeadAttention")
        self.first, self.second = (
            attention(
                first, width, 3, 2, 0.0, use_relative_attention_bias=first
            )
            for first in (True, False)
        )

    def call(self, x):
        mask = ops.tril(ops.ones_like(x[:, :, :1] + x[:, None, :, 0]))
        hidden, bias, _ = self.first(x, mask=mask)
        return self.second(hidden, position_bias=bias)[0]


def on_ids(backbone, **more):
    """A model that takes ids alone."""

    def call(ids):
        ones = ops.ones_like(ids)
        inputs = {name: ones for name in backbone.input if "mask" in name}
        inputs |= {name: ids for name in backbone.input if "token" in name}
        inputs |= {name: ids % 2 for name in backbone.input if "seg" in name}
        return tf.nest.flatten(backbone(inputs))

    return functional((4,), call, dtype="int32")


def transformer(name, **options):
    sizes = {
        "vocabulary_size": 8,
        "num_layers": 1,
        "hidden_dim": 4,
        "intermediate_dim": 3,
    }

    def build():
        return on_ids(getattr(hub.models, name)(**sizes, **options))

    return build


ENCODER = {"num_heads": 2, "dropout": 0.0, "max_sequence_length": 6}
CASES = {
    "positions": Case(with_positions(lambda table, x: ops.tanh(x + table(x)))),
    "positions, named and shifted": Case(
        with_positions(at_positions), compact=False
    ),
    "positions, called twice": Case(
        with_positions(lambda table, x: table(x) * ops.sin(x + table(x))),
        compact=False,
    ),
    "positions of what has two axes": Case(
        lambda: functional(
            (2, 4, 3),
            lambda x: ops.tanh(x + hub.layers.PositionEmbedding(6)(x)),
        ),
        compact=False,
    ),
    "patches": Case(of_patches),
    "relative positions": Case(of_relative_positions),
    "biases of attention": Case(
        lambda: sequential((5, 4), Attention(4)),
        compact=False,
        dtype="float32",
    ),
    "a normalization": Case(normalized("T5LayerNorm"), compact=False),
    "a normalization in float32": Case(
        normalized("LlamaLayerNorm"), compact=False, dtype="float32"
    ),
    "a normalization by one more than its scale": Case(
        normalized("gemma.rms_normalization.RMSNormalization"),
        compact=False,
        dtype="float32",
    ),
    "GPT-2": Case(
        transformer("GPT2Backbone", **ENCODER), tokens=8, compact=False
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_factors_match_the_jacobian(case):
    check(case)
    model = case.build()
    (given,) = model.inputs
    placement = place(model, tf.TensorSpec(given.shape, given.dtype))
    assert all(site.rule is not None for site in placement.sites)


@pytest.mark.parametrize("name", NORMS)
def test_every_normalization_has_the_rule(name):
    layer = layer_class(name)()
    layer.build((None, 3, 4))
    assert rule_for(layer) is not None


def of_everything(*attention):
    """All rules in one model; T5's own attention overflows in float16."""

    def call(x):
        x = x + hub.layers.PositionEmbedding(6)(x)
        x = layer_class("T5LayerNorm")()(x)
        for layer in attention:
            x = x + layer(3)(x)
        x = layer_class("gemma.rms_normalization.RMSNormalization")()(x)
        relative = layer_class("RelativeEmbedding")(3, 2)(x)
        return ops.cast(ops.einsum("nti,nri->ntr", x, relative), "float32")

    return functional((4, 3), call)


@pytest.mark.parametrize(
    ("policy", "inside"),
    [("mixed_float16", ()), ("mixed_bfloat16", (Attention,))],
)
def test_half_precision_keeps_the_rules_and_their_gradients(policy, inside):
    keras.utils.set_random_seed(0)
    model = of_everything(*inside)
    randomize(model)
    x = np.random.default_rng(0).normal(size=(4, 4, 3)).astype("float32")
    data = x, x[:, 0, 0], np.float32([1, 1e-6, 1, 0])
    rows = jacobian(model, data, model.trainable_variables)
    with precision("float32"):
        keras.config.set_dtype_policy(policy)
        twin = of_everything(*inside)
    twin.set_weights(model.get_weights())
    placement = place(twin, x)
    assert all(site.rule is not None for site in placement.sites)
    functions = GradientFunctions(twin, uneven_loss, like=data)
    norms = functions.squared_norms(data, tf.constant(1.0))
    np.testing.assert_allclose(norms, np.sum(rows**2, axis=1), rtol=0.1)


def test_what_another_release_computes_has_no_rule(monkeypatch):
    norm = layer_class("LlamaLayerNorm")

    def call(self, x):
        return x / ops.mean(ops.abs(x), -1, keepdims=True) * self.scale

    monkeypatch.setattr(norm, "call", call)
    layer = norm()
    layer.build((None, 3, 4))
    assert rule_for(layer) is None


def test_a_table_with_adapters_has_no_rule():
    layer = layer_class("ViTPatchingAndEmbedding")((4, 6), (2, 2), 3, 2)
    layer.build((None, 4, 6, 2))
    assert rule_for(layer) is not None
    layer.position_embedding.enable_lora(1)
    assert rule_for(layer) is None


def test_frozen_tables_are_left_out():
    model = of_patches()
    patches = model.layers[0]
    patches.position_embedding.trainable = False
    placement = place(model, tf.TensorSpec(model.inputs[0].shape))
    (site,) = (site for site in placement.sites if site.layer is patches)
    assert site.rule is not None
    assert site.variables == (patches.class_token,)


def test_the_library_never_imports_keras_hub():
    package = pathlib.Path(keras_tracin.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            else:
                continue
            assert not any(name.startswith("keras_hub") for name in names)
