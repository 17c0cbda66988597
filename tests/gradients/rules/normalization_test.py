"""The rules of the normalization layers."""

import pytest
from keras import layers

from tests.gradients.oracle import (
    Case,
    check,
    compact_in,
    sequential,
)


def normalized(shape, layer_class, **kwargs):
    """A model with the layer between two others."""
    return lambda: sequential(
        shape,
        layers.Dense(shape[-1], activation="tanh"),
        layer_class(**kwargs),
        layers.Dense(2),
    )


LAYER, BATCH = layers.LayerNormalization, layers.BatchNormalization
GROUP, RMS = layers.GroupNormalization, layers.RMSNormalization
CASES = {
    "layer, vectors": Case(normalized((4,), LAYER)),
    "layer, sequences": Case(normalized((3, 4), LAYER)),
    "layer, several axes": Case(normalized((3, 4), LAYER, axis=[1, 2])),
    "layer, an inner axis": Case(normalized((3, 4), LAYER, axis=1)),
    "layer, outer and inner axis": Case(
        normalized((3, 2, 4), LAYER, axis=[1, 3])
    ),
    "layer, no scale": Case(normalized((3, 4), LAYER, scale=False)),
    "layer, no offset": Case(normalized((3, 4), LAYER, center=False)),
    "layer, neither": Case(
        normalized((3, 4), LAYER, scale=False, center=False)
    ),
    "layer, scaled by the variance": Case(
        normalized((3, 4), LAYER, rms_scaling=True)
    ),
    "group, vectors": Case(normalized((4,), GROUP, groups=2)),
    "group, sequences": Case(normalized((3, 4), GROUP, groups=2)),
    "group, images": Case(normalized((3, 2, 6), GROUP, groups=3)),
    "group, an axis from the end": Case(
        normalized((3, 4, 2), GROUP, groups=2, axis=-2)
    ),
    "group, one channel each": Case(normalized((3, 4), GROUP, groups=-1)),
    "root mean square, vectors": Case(normalized((4,), RMS)),
    "root mean square, sequences": Case(normalized((3, 4), RMS)),
    "root mean square, several axes": Case(
        normalized((3, 2), RMS, axis=[1, 2])
    ),
    "root mean square, an inner axis": Case(normalized((4, 4), RMS, axis=1)),
    "root mean square, an inner axis of one": Case(
        normalized((1, 4), RMS, axis=1)
    ),
    "batch, vectors": Case(normalized((4,), BATCH)),
    "batch, images": Case(normalized((3, 2, 4), BATCH)),
    "batch, an inner axis": Case(normalized((3, 4), BATCH, axis=1)),
    "batch, no scale": Case(normalized((3, 4), BATCH, scale=False)),
    "batch, no offset": Case(normalized((3, 4), BATCH, center=False)),
    "batch, neither": Case(normalized((4,), BATCH, scale=False, center=False)),
    "batch, its layer alone": Case(
        lambda: sequential(
            (3, 4), layers.Dense(4), BATCH(name="norm"), layers.Dense(2)
        ),
        layers=["norm"],
    ),
}
CASES = compact_in(
    CASES,
    "layer, sequences",
    "layer, outer and inner axis",
    "group, images",
    "root mean square, several axes",
    "batch, images",
)


@pytest.mark.filterwarnings("ignore:You passed `rms_scaling")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_factors_match_the_jacobian(case):
    check(case)
