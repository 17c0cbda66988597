"""Training recorded with its batches."""

import keras
import numpy as np
import pytest

import keras_tracin as kt
from tests.error_rows import row
from tests.trace.helpers import QUERIES, X, Y, make_model


def trained(directory, epochs=3, data=(X, Y), **options):
    model = make_model(
        keras.optimizers.SGD(0.2, momentum=0.5),
        keras.layers.Dropout(0.5, seed=1),
    )
    settings = {"batch_size": 7, "epochs": epochs, **options}
    return model, kt.record_training(model, data, directory, **settings)


def test_it_is_an_ordinary_training_on_the_batches_it_records(tmp_path):
    model, history = trained(tmp_path)
    assert len(history.history["loss"]) == 3
    unrolled = kt.UnrolledInfluence(model, (X, Y), tmp_path)
    other = make_model(
        keras.optimizers.SGD(0.2, momentum=0.5),
        keras.layers.Dropout(0.5, seed=1),
    )
    batches = unrolled._recorded.steps.rows
    assert [len(rows) for rows in batches] == [7, 7, 7, 3] * 3
    for epoch in range(3):
        rows = np.concatenate(batches[4 * epoch : 4 * epoch + 4])
        np.testing.assert_array_equal(np.sort(rows), np.arange(24))
        other.fit(X[rows], Y[rows], batch_size=7, shuffle=False, verbose=0)
    for one, same in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(one, same, atol=1e-6)
    scores = kt.TracIn(model, (X, Y), tmp_path).influence(QUERIES, verbose=0)
    assert scores.scores.shape == (5, 24)


def test_it_resumes_with_the_seeds_and_is_then_the_same(tmp_path):
    trained(tmp_path / "a", epochs=1)
    model, history = trained(tmp_path / "a")
    expected, _ = trained(tmp_path / "b")
    assert history.epoch == [0, 1, 2]
    for one, same in zip(
        model.get_weights(), expected.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, same)
    unrolled = kt.UnrolledInfluence(model, (X, Y), tmp_path / "a")
    assert unrolled.replay_error < 1e-5
    with pytest.raises(
        ValueError,
        match=row("trace-settings", "received batch_size 6, expected 7"),
    ):
        trained(tmp_path / "a", batch_size=6)


def test_runs_of_a_trace_can_be_unrolled_too(tmp_path):
    model = make_model(
        keras.optimizers.SGD(0.2), keras.layers.Dropout(0.5, seed=1)
    )
    trace = kt.trace_training(
        model, (X, Y), QUERIES, epochs=2, directory=tmp_path
    )
    unrolled = kt.UnrolledInfluence(model, (X, Y), tmp_path)
    assert unrolled.replay_error < 1e-5
    found = unrolled.influence(QUERIES, verbose=0)
    np.testing.assert_array_equal(found.train_ids, trace.train_ids)
