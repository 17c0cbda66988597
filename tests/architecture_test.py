"""The worked examples of docs/architecture.md, run as they stand."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from tests.source_tree import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.fixture(scope="module")
def names():
    """Everything that the examples define."""
    namespace: dict = {}
    exec(compile("\n".join(BLOCKS), "docs/architecture.md", "exec"), namespace)
    return namespace


def test_the_method_makes_cosines_of_gradients(names):
    model, x, y = names["model"], names["x"], names["y"]
    with tf.GradientTape() as tape:
        losses = model.loss.call(y, model(x))
    jacobians = tape.jacobian(losses, model.trainable_variables)
    rows = np.concatenate([np.reshape(j, [20, -1]) for j in jacobians], 1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.testing.assert_allclose(names["scores"], rows[:5] @ rows.T, atol=1e-5)
    cosines, test = names["cosines"], (x[:5], y[:5])
    ranked = cosines.top_k(test, 3, verbose=0)
    assert (ranked.proponents.ids[:, 0] == np.arange(5)).all()
    groups = {"first": [0, 1], "last": [19]}
    sums = cosines.influence(test, groups=groups, verbose=0).scores
    np.testing.assert_allclose(
        sums[:, 0], names["scores"][:, :2].sum(1), atol=1e-5
    )
    with pytest.raises(NotImplementedError, match="TracIn"):
        cosines.self_influence()


def test_the_methods_example_is_short():
    assert len(BLOCKS[0].splitlines()) <= 150


def test_the_layer_rule_is_what_the_layer_gives_without_one(names):
    class Ungoverned(names["Gain"]):
        def call(self, inputs):  # code of its own: the rule does not apply
            return self.gain * inputs

    rng = np.random.default_rng(1)
    x = rng.normal(size=[6, 3, 4]).astype("float32")
    y = rng.normal(size=[6, 3, 4]).astype("float32")
    scores = []
    for kind in (names["Gain"], Ungoverned):
        model = keras.Sequential([keras.Input((3, 4)), kind()])
        model.compile("sgd", "mse")
        model.set_weights([np.linspace(1, 2, 4)])
        method = names["GradientCosines"](model, (x, y))
        scores.append(method.influence((x, y), verbose=0).scores)
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


def test_the_solver_inverts(names):
    assert names["solution"].converged.all()
    np.testing.assert_allclose(
        names["solution"].value.numpy(),
        np.diag(1 / (np.array([1, 2, 4]) + 0.5)),
        atol=1e-3,
    )


def test_the_page_names_every_room():
    package = ROOT / "keras_tracin"
    rooms = {p.parent.name for p in package.glob("*/__init__.py")}
    listed = set(re.findall(r"`(\w+)`", PAGE.split("## The contracts")[0]))
    assert rooms <= listed
    assert kt.__name__ == package.name
