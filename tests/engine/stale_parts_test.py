"""Parts on disk that were made of something else are never taken."""

import contextlib
import functools
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.runs import run_weights
from tests.error_rows import row, says

HUBER = keras.losses.Huber
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3)).astype("float32")
TRAIN = X, (4 * X[:, :1] + 1).astype("float32")
TEST = X[:3] + 0.5, TRAIN[1][:3]


def build(activation="tanh", regularizer=None):
    """A small network, with the same weights each time."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, activation, kernel_regularizer=regularizer),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    callback = kt.TracInCheckpoint(directory)
    build().fit(*TRAIN, epochs=2, callbacks=[callback], verbose=0)
    return directory


def tracin(run, model=None, train=TRAIN, **options):
    return kt.TracIn(model or build(), train, run, **options)


@pytest.fixture(scope="module")
def plain(run):
    """Scores by the loss that the model was compiled with."""
    return tracin(run)


@pytest.fixture(scope="module")
def kept(plain, tmp_path_factory):
    directory = tmp_path_factory.mktemp("kept")
    plain.self_influence(directory=directory, verbose=0)
    return directory


@pytest.fixture
def parts(kept, tmp_path):
    """A copy of the parts that `plain` keeps of self-influence."""
    return shutil.copytree(kept, tmp_path / "parts")


@functools.cache
def self_influence_by_hand(run, delta):
    """Σ η ‖∇ℓ‖² of the first few, one tape for each example."""
    loss = HUBER(delta=delta)
    model, scores = build(), np.zeros(5)
    recorded = kt.TrainingRun(run)
    with run_weights(model) as load:
        for checkpoint in recorded:
            load(checkpoint)
            for row in range(5):
                with tf.GradientTape() as tape:
                    y_pred = model(X[row : row + 1])
                    value = loss(TRAIN[1][row : row + 1], y_pred)
                grads = tape.gradient(value, model.trainable_variables)
                scores[row] += 0.01 * sum(
                    float(tf.reduce_sum(g**2)) for g in grads
                )
    return scores


def closure(delta):
    return lambda y, p: keras.losses.huber(y, p, delta=delta)


class Own(keras.losses.Loss):
    """A loss whose configuration says nothing of its attribute."""

    def __init__(self, delta):
        super().__init__()
        self.delta = delta

    def call(self, y_true, y_pred):
        return keras.losses.huber(y_true, y_pred, delta=self.delta)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (lambda d: HUBER(delta=d), row("other-parts", "objective.loss...5.0")),
        (closure, row("stale-parts", "the loss gives other values...losses")),
        (Own, row("stale-parts", "the loss gives other values...losses")),
    ],
)
def test_scores_of_another_loss_are_not_taken(run, tmp_path, kind, message):
    first = tracin(run, loss=kind(5.0))
    scores = first.self_influence(directory=tmp_path / "a", verbose=0).scores
    np.testing.assert_allclose(
        scores[:5], self_influence_by_hand(run, 5.0), rtol=1e-4
    )
    second = tracin(run, loss=kind(0.05))
    with pytest.raises(ValueError, match=message + says("another directory")):
        second.self_influence(directory=tmp_path / "a", verbose=0)
    scores = second.self_influence(directory=tmp_path / "b", verbose=0).scores
    np.testing.assert_allclose(
        scores[:5], self_influence_by_hand(run, 0.05), rtol=1e-4
    )
    again = tracin(run, loss=kind(5.0), memory_limit=20_000)
    again.self_influence(directory=tmp_path / "a", verbose=0)


def test_compiled_losses_are_told_apart_by_options_and_weights(run, parts):
    model = build()
    model.compile(loss="mse", loss_weights=3.0)
    with pytest.raises(
        ValueError, match=row("other-parts", "objective.loss_weights=3.0")
    ):
        tracin(run, model).self_influence(directory=parts, verbose=0)


def test_a_name_of_a_loss_is_the_function_that_it_stands_for(run, parts):
    model = build()
    model.compile(loss=keras.losses.mean_squared_error)
    tracin(run, model).self_influence(directory=parts, verbose=0)


def test_scores_of_another_architecture_are_not_taken(run, parts):
    other = tracin(run, build("sigmoid"))
    with pytest.raises(
        ValueError, match=row("stale-parts", "has other outputs...activations")
    ):
        other.self_influence(directory=parts, verbose=0)


@pytest.fixture(scope="module")
def measured(run):
    """Two methods that measure queries by other losses."""
    return [tracin(run, query_loss=closure(delta)) for delta in (5.0, 0.05)]


def test_another_query_loss_is_seen_on_training_examples(measured, tmp_path):
    first, second = measured
    first.influence(TEST, directory=tmp_path, verbose=0)
    with pytest.raises(
        ValueError,
        match=row("stale-parts", "queries are measured by...query_l"),
    ):
        second.influence(TEST, directory=tmp_path, verbose=0)


def test_another_query_loss_is_seen_on_queries_of_another_form(
    measured, tmp_path
):
    first, second = measured
    weighted = (*TEST, np.ones(3, "float32"))
    first.top_k(weighted, 2, directory=tmp_path, verbose=0)
    with pytest.raises(
        ValueError, match=row("stale-parts", "queries are measured by")
    ):
        second.top_k(weighted, 2, directory=tmp_path, verbose=0)


@keras.saving.register_keras_serializable()
class Scaled(keras.layers.Layer):
    """Passes its input on, and a multiple of the gradient."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return self.factor * x + tf.stop_gradient((1 - self.factor) * x)


def test_a_layer_that_passes_on_another_gradient_is_seen(tmp_path):
    path = tmp_path / "model.weights.h5"

    def call(factor):
        model = keras.Sequential([build(), Scaled(factor)])
        model.build((None, 3))
        model.compile(loss="mse")
        if not path.exists():
            model.save_weights(path)
        recorded = kt.TrainingRun.from_weights([path], 0.01)
        return tracin(recorded, model).self_influence(
            directory=tmp_path / "parts", verbose=0
        )

    call(1.0)
    with pytest.raises(
        ValueError, match=row("stale-parts", "gradients have other lengths")
    ):
        call(3.0)


def test_parts_of_the_former_version_are_refused(plain, parts):
    path = parts / "job.json"
    job = json.loads(path.read_text())
    path.write_text(json.dumps({**job, "format_version": 1}))
    with pytest.raises(
        ValueError, match=row("old-parts", "version 1, expected 2...or delete")
    ):
        plain.self_influence(directory=parts, verbose=0)


def test_parts_without_their_numbers_are_refused(plain, parts):
    (parts / "fingerprint.npz").unlink()
    with pytest.raises(
        ValueError, match=row("lost-fingerprint", "fingerprint.npz is")
    ):
        plain.self_influence(directory=parts, verbose=0)


def test_a_matrix_of_more_queries_or_examples_is_not_taken(run, tmp_path):
    method = tracin(run, memory_limit=20_000)
    method.influence(TEST, directory=tmp_path, verbose=0)
    fewer = TEST[0][:2], TEST[1][:2]
    with pytest.raises(ValueError, match=row("other-queries")):
        method.influence(fewer, directory=tmp_path, verbose=0)


def test_another_optimizer_is_not_that_of_the_parts(run, tmp_path):
    def call(momentum):
        model = build()
        model.compile(keras.optimizers.SGD(0.01, momentum), "mse")
        method = tracin(run, model, optimizer_aware=True)
        return method.self_influence(directory=tmp_path, verbose=0)

    with contextlib.suppress(ValueError):  # the run is of plain SGD
        call(0.5)
    with pytest.raises(
        ValueError, match=row("other-parts", "optimizer.config.momentum=0.9")
    ):
        call(0.9)


def influence_functions(model, train=TRAIN, **options):
    return kt.InfluenceFunctions(
        *(model, train),
        **{"damping": 10.0, "curvature": "gauss_newton", **options},
    )


@pytest.mark.filterwarnings("ignore:The model has not converged")
def test_another_curvature_is_not_that_of_the_parts(tmp_path):
    def call(regularizer, train=TRAIN):
        method = influence_functions(build(regularizer=regularizer), train)
        return method.influence(TEST, directory=tmp_path, verbose=0)

    call(keras.regularizers.L2(0.01))
    with pytest.raises(
        ValueError, match=row("other-parts", "Received regularizers=...0.5")
    ):
        call(keras.regularizers.L2(0.5))
    x, y = TRAIN
    y = y.copy()
    y[-1] += 1
    with pytest.raises(ValueError, match=r"Received train="):
        call(keras.regularizers.L2(0.01), (x, y))


@pytest.mark.filterwarnings("ignore:The model has not converged")
def test_a_regularizer_without_a_configuration_is_seen(tmp_path):
    def call(factor):
        model = build(regularizer=lambda w: factor * tf.reduce_sum(w**2))
        method = influence_functions(model)
        return method.influence(TEST, directory=tmp_path, verbose=0)

    call(0.01)
    with pytest.raises(
        ValueError, match=row("stale-parts", "other numbers...penalties")
    ):
        call(0.5)


@pytest.mark.filterwarnings("ignore:The model has not converged")
def test_an_inverse_at_other_weights_is_refused():
    model = build()
    method = influence_functions(model)
    before = method.influence(TEST, verbose=0).scores
    kernel = model.layers[0].kernel.numpy()
    model.layers[0].kernel.assign(2 * kernel)
    for call in (method.influence, lambda test: method.top_k(test, 2)):
        with pytest.raises(ValueError, match=row("other-weights", "another")):
            call(TEST)
    model.layers[0].kernel.assign(kernel)
    after = method.influence(TEST, verbose=0).scores
    np.testing.assert_array_equal(after, before)


def test_another_pull_of_the_loss_is_seen_by_trak(run, tmp_path):
    def call(delta):
        method = kt.TRAK(
            *(build(), TRAIN, run),
            loss=closure(delta),
            output="prediction",
            projection=kt.TensorSketch(8),
        )
        return method.influence(TEST, directory=tmp_path, verbose=0)

    call(5.0)
    with pytest.raises(
        ValueError, match=row("stale-parts", "other numbers...pulls")
    ):
        call(0.05)


def test_representer_points_of_another_loss_or_layer_are_not_taken(tmp_path):
    def call(delta, activation="tanh"):
        points = kt.RepresenterPoints(
            build(activation), TRAIN, l2=0.1, loss=closure(delta), verbose=0
        )
        return points.influence(TEST, directory=tmp_path, verbose=0).scores

    scores = call(5.0)
    np.testing.assert_array_equal(call(5.0), scores)
    with pytest.raises(
        ValueError, match=row("stale-parts", "other numbers...values: received")
    ):
        call(0.05)
    with pytest.raises(ValueError, match=r"represents examples otherwise"):
        call(5.0, "sigmoid")


def test_representer_points_want_the_weights_that_they_were_made_at():
    model = build()
    points = kt.RepresenterPoints(model, TRAIN, l2=0.1, verbose=0)
    before = points.influence(TEST, verbose=0).scores
    kernel = model.layers[0].kernel.numpy()
    model.layers[0].kernel.assign(2 * kernel)
    for call in (points.influence, points.class_scores, points.logits):
        with pytest.raises(ValueError, match=r"weights.*give the model its"):
            call(TEST, verbose=0)
    model.layers[0].kernel.assign(kernel)
    after = points.influence(TEST, verbose=0).scores
    np.testing.assert_array_equal(after, before)
