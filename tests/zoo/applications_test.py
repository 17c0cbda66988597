"""Scores of `keras.applications`' networks, for small images."""

import keras
import numpy as np
import pytest

from tests.gradients.oracle import precision
from tests.zoo import one_by_one

APPLICATIONS = keras.applications
NETWORKS = {
    "MobileNetV2": lambda **kw: APPLICATIONS.MobileNetV2(alpha=0.35, **kw),
    "EfficientNetV2B0": APPLICATIONS.EfficientNetV2B0,
    "ResNet50": APPLICATIONS.ResNet50,
    "DenseNet121": APPLICATIONS.DenseNet121,
    "ConvNeXtTiny": APPLICATIONS.ConvNeXtTiny,
}


@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_scores_are_those_of_gradients_taken_one_by_one(build):
    with precision("float64"):
        keras.utils.set_random_seed(0)
        model = build(weights=None, classes=3, input_shape=(32, 32, 3))
        model.compile(loss="sparse_categorical_crossentropy")
        one_by_one.disturb(model)
        rng = np.random.default_rng(1)
        x = rng.uniform(0, 255, size=(2, 32, 32, 3))
        one_by_one.check(model, x, np.array([0, 2]))
    keras.backend.clear_session()
