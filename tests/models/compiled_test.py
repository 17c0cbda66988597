"""The loss that a model was compiled with is read in one place."""

import keras
import pytest
from keras import layers

from keras_tracin.models.compiled import compiled_loss, losses_of
from tests import source_tree
from tests.gradients.oracle import sequential


@pytest.fixture
def model():
    return sequential((3,), layers.Dense(2))


def test_a_model_that_is_not_compiled_has_no_loss(model):
    assert compiled_loss(model) is None
    assert losses_of(model) == []
    assert losses_of(model, "mse") == ["mse"]


def test_a_loss_is_as_compile_was_given_it(model):
    loss = keras.losses.Huber()
    model.compile("sgd", [loss], loss_weights=[0.5])
    compiled = compiled_loss(model)
    assert (compiled.loss, compiled.weights) == ([loss], [0.5])
    assert losses_of(model) == [loss]


def test_outputs_without_a_loss_are_left_out(model):
    assert losses_of(model, {"b": "mae", "a": None, "c": "mse"}) == [
        "mae",
        "mse",
    ]


def test_no_other_module_reads_the_private_attributes_of_keras():
    readers = [
        module
        for module, path in source_tree.modules().items()
        if module.startswith("keras_tracin.")
        and "._user_loss" in (source_tree.ROOT / path).read_text("utf-8")
    ]
    assert readers == ["keras_tracin.models.compiled"]
