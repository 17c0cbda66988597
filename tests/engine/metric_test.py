"""Lengths of gradients whose squares are zero in float32."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.engine.metric import (
    largest_numbers,
    per_length,
    squared_lengths,
    to_unit_size,
)
from keras_tracin.gradients.factors import PositionGradients, summed
from tests.gradients import in_full
from tests.points import CROSSENTROPY, examples

TINY = 1e-25
TRAIN, TEST = examples(8, seed=0), examples(4, seed=1)
WEIGHTS = np.where(np.arange(8) == 2, TINY, 1).astype("float32")
OPTIONS = {
    "plain": {},
    "optimizer-aware": {"optimizer_aware": True},
    "factored": {"optimizer_aware": "factored"},
    "projected": {"projection": kt.TensorSketch(64)},
}


@pytest.mark.parametrize(
    "groups",
    [
        (in_full.outer(4, 2, 3, 2, True), in_full.dense(4, 5, 1)),
        (in_full.looked_up(4, 5, 2),),
        (in_full.tied(4, 5, 2, 3),),
        (PositionGradients((tf.random.stateless_normal([4, 3, 2], [0, 1]),)),),
    ],
    ids=["kernel and whole", "look-ups", "table", "terms"],
)
def test_a_multiple_of_a_gradient_has_the_same_unit_size(groups):
    scaled, sizes = to_unit_size(groups)
    np.testing.assert_allclose(largest_numbers(scaled), 1)
    for own, whole in zip(scaled, groups, strict=True):
        sides = [in_full.rows(summed(x)) for x in (own, whole)]
        np.testing.assert_allclose(
            sides[0] * np.reshape(sizes, [-1, 1]), sides[1], rtol=1e-6
        )


def test_zeros_have_no_length_and_no_direction():
    nothing = in_full.dense(2, 3)
    nothing = type(nothing)((tf.zeros([2, 3]),))
    scaled, sizes = to_unit_size((nothing,))
    np.testing.assert_array_equal(sizes, 1)
    np.testing.assert_array_equal(per_length(squared_lengths(scaled)), 0)


def build():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.Adam(0.01), CROSSENTROPY)
    return model


@pytest.mark.filterwarnings("ignore:In training, batches had no weights")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_small_gradients_have_the_directions_that_they_have(options, tmp_path):
    model = build()
    recorder = kt.TracInCheckpoint(tmp_path)
    model.fit(*TRAIN, epochs=1, verbose=0, callbacks=[recorder])

    def tracin(normalize, *weights):
        run = kt.TrainingRun(tmp_path)
        data = (*TRAIN, *weights)
        return kt.TracIn(model, data, run, normalize=normalize, **options)

    expected = tracin("both").influence(TEST, verbose=0).scores
    tiny = (*TEST, np.full(4, TINY, "float32"))
    found = tracin("both", WEIGHTS).influence(tiny, verbose=0).scores
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    found = tracin("train", WEIGHTS).influence(TEST, verbose=0).scores
    expected = tracin("train").influence(TEST, verbose=0).scores
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    own = tracin("train", WEIGHTS).self_influence(verbose=0).scores
    expected = tracin("train").self_influence(verbose=0).scores
    np.testing.assert_allclose(own, expected * WEIGHTS, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:The model has not converged")
@pytest.mark.parametrize("relative", ["loss", "parameters"])
def test_so_they_have_in_relative_influence(relative):
    model = build()
    # The curvature is that of all examples: the same for both of these.
    scores = [
        kt.InfluenceFunctions(
            model,
            (*TRAIN, np.where(WEIGHTS < 1, weight, 1).astype("float32")),
            damping=0.1,
            curvature="ekfac",
            relative=relative,
        )
        .influence(TEST, verbose=0)
        .scores
        for weight in (TINY, 1e-8)
    ]
    assert np.abs(scores[0][:, 2]).min() > 0
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4)
