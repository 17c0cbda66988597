"""The rules of LayerNormalization and BatchNormalization."""

import pytest
from keras import layers

from tests.gradients.oracle import Case, check, sequential


def normalized(shape, layer_class, **kwargs):
    """A model with the layer between two others."""
    return lambda: sequential(
        shape,
        layers.Dense(shape[-1], activation="tanh"),
        layer_class(**kwargs),
        layers.Dense(2),
    )


LAYER, BATCH = layers.LayerNormalization, layers.BatchNormalization
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


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_factors_match_the_jacobian(case):
    check(case)
