"""Sketches made while training, against the exact first-order trace."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.gradients import flat
from keras_tracin.trace import sketching
from tests.trace.helpers import QUERIES, X, Y, make_model


@dataclasses.dataclass(frozen=True)
class Whole:
    """Keeps a gradient as it is: a projection without error."""

    dim: int = 51

    def sketch(self, factors, position=0):
        return flat.rows(factors)


def model():
    return make_model(keras.optimizers.SGD(0.01), keras.layers.Dropout(0.3))


def sketched(directory, projection, queries=QUERIES, **options):
    settings = {"epochs": 3, "batch_size": 7, **options}
    return kt.sketch_training(
        model(),
        (X, Y),
        queries,
        directory=directory,
        projection=projection,
        **settings,
    )


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    directory = tmp_path_factory.mktemp("exact") / "a"
    return sketched(directory, Whole(), keep_weights=1)


def test_whole_gradients_give_the_first_order_trace(exact):
    trace = kt.trace_training(model(), (X, Y), QUERIES, epochs=3, batch_size=7)
    found = exact.influence()
    np.testing.assert_array_equal(found.train_ids, trace.train_ids)
    np.testing.assert_allclose(
        found.scores.sum(axis=1), trace.steps.first_order.sum(axis=0), atol=1e-6
    )
    # Example by example, up to the second order of small steps.
    size = np.abs(trace.scores).max()
    np.testing.assert_allclose(found.scores, trace.scores, atol=0.05 * size)


@pytest.mark.parametrize(
    "projection", [kt.GaussianProjection(64), kt.TensorSketch(64)]
)
def test_sketches_agree_within_the_projections_error(
    exact, tmp_path, projection
):
    found = sketched(tmp_path / "a", projection).influence().scores
    # The variance of a sum over steps, (‖g‖²‖g'‖² + (g·g')²) / dim of each.
    variance = np.zeros_like(found)
    for segment in exact._segments:
        ends = np.cumsum(segment["batch_sizes"])
        for at, (start, stop) in enumerate(zip([0, *ends], ends, strict=False)):
            rows = segment["sketches"][start:stop]
            queries = segment["query_sketches"][at]
            lengths = np.outer((queries**2).sum(1), (rows**2).sum(1))
            squares = (queries @ rows.T) ** 2
            variance[:, segment["ids"][start:stop]] += (lengths + squares) / 64
    errors = (found - exact.influence().scores) / np.sqrt(variance)
    assert 0.7 < np.sqrt(np.mean(errors**2)) < 1.3
    assert abs(errors.mean()) < 0.3


def test_later_queries_are_sketched_at_the_weights_kept(exact, tmp_path):
    trained = model()
    before = trained.get_weights()
    later = kt.TrainingSketches(exact.run.directory, projection=Whole())
    found = later.influence(QUERIES, model=trained)
    np.testing.assert_allclose(
        found.scores, exact.influence().scores, atol=1e-6
    )
    for one, other in zip(before, trained.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    # With the weights of epochs alone, nearly so.
    coarse = sketched(tmp_path / "a", Whole(), queries=None)
    assert [checkpoint.step for checkpoint in coarse.run] == [4, 8, 12]
    found = coarse.influence(QUERIES, model=trained).scores
    size = np.abs(found).max()
    np.testing.assert_allclose(found, exact.influence().scores, atol=0.1 * size)


def test_sketching_resumes_and_segments_change_nothing(
    tmp_path, monkeypatch, exact
):
    monkeypatch.setattr(sketching, "_SEGMENT", 1)  # a segment for each step

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.optimizer.iterations == 6:
                raise InterruptedError

    with pytest.raises(InterruptedError):
        sketched(tmp_path / "a", Whole(), callbacks=[Stop()])
    with pytest.warns(UserWarning, match="was dropped"):
        resumed = sketched(tmp_path / "a", Whole())
    np.testing.assert_array_equal(
        resumed.influence().scores, exact.influence().scores
    )


def test_what_sketches_cannot_answer_is_said(tmp_path, exact):
    found = sketched(tmp_path / "a", kt.TensorSketch(8), None, epochs=1)
    with pytest.raises(ValueError, match="No queries were sketched"):
        found.influence()
    with pytest.raises(ValueError, match="need the model"):
        found.influence(QUERIES)
    with pytest.raises(ValueError, match="were made by"):
        kt.TrainingSketches(tmp_path / "a", projection=kt.TensorSketch(9))
    with pytest.raises(ValueError, match="received 'sketches'"):
        kt.TrainingTrace.load(tmp_path / "a")
    with pytest.raises(ValueError, match="received kind 'trace'"):
        kt.trace_training(
            model(), (X, Y), QUERIES, epochs=1, directory=tmp_path / "a"
        )
    with pytest.raises(TypeError, match="should be a projection"):
        sketched(tmp_path / "b", tf.linalg.matvec)
