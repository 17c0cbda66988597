"""Scores of `keras.applications`' networks, for small images.

One is taken whole, the others are built by the functions that build the known
ones, of the same blocks but fewer.
"""

import keras
import numpy as np
import pytest
from keras.src.applications.convnext import ConvNeXt
from keras.src.applications.densenet import DenseNet
from keras.src.applications.efficientnet_v2 import EfficientNetV2
from keras.src.applications.resnet import ResNet, stack_residual_blocks_v1

from tests.gradients.oracle import precision
from tests.zoo import one_by_one


def resnet(**options):
    """ResNet50 with three narrow ones of its 16 blocks."""

    def stacks(x):
        x = stack_residual_blocks_v1(x, 16, 2, stride1=1, name="conv2")
        return stack_residual_blocks_v1(x, 32, 1, name="conv3")

    return ResNet(stacks, preact=False, use_bias=True, **options)


def efficientnet(**options):
    """EfficientNetV2B0 with six of its 21 blocks."""
    return EfficientNetV2(
        1.0,
        depth_coefficient=0.1,
        default_size=224,
        name="efficientnetv2-b0",
        **options,
    )


NETWORKS = {
    "MobileNetV2": lambda **options: keras.applications.MobileNetV2(
        alpha=0.35, **options
    ),
    "EfficientNetV2": efficientnet,
    "ResNet": resnet,
    "DenseNet": lambda **options: DenseNet([2, 1, 0, 0], **options),
    "ConvNeXt": lambda **options: ConvNeXt(
        [1, 0, 1, 0], [8, 16, 32, 64], **options
    ),
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
