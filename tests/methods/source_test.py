"""SOURCE against its formula, written out for problems where it is exact."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_tracin as kt
from keras_tracin.engine.preconditioner import Preconditioner
from keras_tracin.runs import run_weights
from tests.error_rows import row
from tests.gradients.oracle import precision, sequential

NUM_TRAIN, NUM_TEST, INPUTS, RATE = 20, 3, 4, 0.015
RNG = np.random.default_rng(0)
X = RNG.normal(size=(NUM_TRAIN, INPUTS)) * [2.0, 1.0, 0.5, 0.25]
Y = X @ [[1.0], [-1.0], [2.0], [0.5]] + 0.3 * RNG.normal(size=(NUM_TRAIN, 1))
TRAIN = X, Y
TEST = X[:NUM_TEST] + 0.5, Y[:NUM_TEST]


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    with precision("float64"):
        yield


def trained(directory, optimizer, loss="mse", epochs=6, **dense):
    """A linear model and its run, four steps in each epoch."""
    keras.utils.set_random_seed(0)
    model = sequential((INPUTS,), layers.Dense(1, **dense))
    model.compile(optimizer, loss)
    model.fit(
        *TRAIN,
        batch_size=5,
        epochs=epochs,
        verbose=0,
        callbacks=[kt.TracInCheckpoint(directory)],
    )
    return model, kt.TrainingRun(directory)


class Written:
    """The parts of the formula for squared errors of one output.

    Args:
        model: the linear model.
        segments: epochs of each segment.
        run: the run.
    """

    def __init__(self, model, run, segments):
        self.model, self.run, self.segments = model, run, segments
        self.bias = model.layers[-1].use_bias

    def inputs(self, x):
        return np.hstack([x, np.ones([len(x), 1])]) if self.bias else x

    def gradients(self, data, checkpoint):
        x, y = data
        with run_weights(self.model) as load:
            load(checkpoint)
            errors = self.model.predict(x, verbose=0) - y
        return 2 * errors * self.inputs(x)

    @property
    def hessian(self):
        inputs = self.inputs(X)
        return 2 * inputs.T @ inputs / NUM_TRAIN

    def scores(self, step, metrics=(1.0, 1.0, 1.0), added=0.0):
        """The sum over segments.

        Args:
            step: `(H, D, ηK) -> (R, S)`, both `[p, p]`: the movement by a mean
                gradient, and what becomes of a change of the weights.
            metrics: D of each segment, diagonals.
            added: what is added to the curvature, per unit of the rate.
        """
        size = len(self.hessian)
        rows = self.gradients(TEST, self.run[-1])
        total, done = 0.0, self.run[-1].step
        for epochs, metric in zip(
            self.segments[::-1], metrics[::-1], strict=True
        ):
            checkpoints = [self.run[epoch - 1] for epoch in epochs]
            begin = epochs[0] - 1
            begin = self.run[begin - 1].step if begin else 0
            time = RATE * (done - begin)
            done = begin
            diagonal = np.diag(np.broadcast_to(metric, [size]))
            moved, kept = step(self.hessian, diagonal, added, time)
            gradients = np.mean(
                [self.gradients(TRAIN, own) for own in checkpoints], axis=0
            )
            total = total + rows @ moved @ gradients.T / NUM_TRAIN
            rows = rows @ kept
        return total


def exponential(hessian, diagonal, added, time):
    """The filters by their definition, of D H + λ."""
    values, left = np.linalg.eig(
        diagonal @ hessian + added * np.eye(len(hessian))
    )
    inverse = np.linalg.inv(left)
    moved = left @ np.diag(-np.expm1(-time * values) / values) @ inverse
    kept = left @ np.diag(np.exp(-time * values)) @ inverse
    return moved @ diagonal, kept


def powers(hessian, diagonal, added, time):
    """Steps one by one: (I − ηH)^K, and the sum of what they move."""
    step = np.eye(len(hessian)) - RATE * diagonal @ hessian
    moved, kept = np.zeros_like(step), np.eye(len(step))
    for _ in range(round(time / RATE)):
        moved += RATE * kept @ diagonal
        kept = kept @ step
    return moved, kept


PIECES = [[1, 2], [3, 4], [5, 6]]
CASES = {
    "SGD": ({}, {}, 1.0, 0.0),
    "momentum and decay": (
        {"momentum": 0.5, "nesterov": True, "weight_decay": 0.3},
        {},
        2.0,
        0.3,
    ),
    "L2": (
        {},
        {
            "use_bias": False,
            "kernel_regularizer": keras.regularizers.L2(0.15),
        },
        1.0,
        0.3,
    ),
}


@pytest.mark.parametrize(
    ("options", "dense", "factor", "added"), CASES.values(), ids=CASES
)
def test_scores_are_those_of_the_formula(
    tmp_path, options, dense, factor, added
):
    optimizer = keras.optimizers.SGD(RATE, **options)
    model, run = trained(tmp_path, optimizer, **dense)
    method = kt.SOURCE(model, TRAIN, run)
    scores = method.influence(TEST, verbose=0).scores
    written = Written(model, run, PIECES)
    expected = written.scores(exponential, 3 * [factor], added)
    np.testing.assert_allclose(
        scores, expected, rtol=1e-5, atol=1e-5 * abs(expected).max()
    )


def test_adam_has_its_second_moments_in_each_segment(tmp_path):
    optimizer = keras.optimizers.Adam(RATE, weight_decay=0.1, epsilon=1e-2)
    model, run = trained(tmp_path, optimizer)
    kinds = [[1], [2, 3, 4], [5, 6]]
    written = Written(model, run, kinds)
    metrics = []
    for epochs in kinds:
        own = [
            Preconditioner(model).at(run[epoch - 1], [model.weights])
            for epoch in epochs
        ]
        parts = [np.concatenate(diagonals) for (diagonals,) in own]
        metrics.append(np.mean(parts, axis=0, dtype=np.float64))
    expected = written.scores(exponential, metrics, 0.1)
    method = kt.SOURCE(model, TRAIN, run, segments=kinds)
    scores = method.influence(TEST, verbose=0).scores
    np.testing.assert_allclose(
        scores, expected, rtol=1e-5, atol=1e-5 * abs(expected).max()
    )
    # Bases differ from segment to segment: their order matters.
    other = written.scores(exponential, metrics[::-1], 0.1)
    assert abs(other - expected).max() > 1e-2 * abs(expected).max()
    own = kt.SOURCE(model, TEST, run, segments=kinds)
    alone = own.self_influence(verbose=0).scores
    pairs = own.influence(TEST, verbose=0).scores
    np.testing.assert_allclose(alone, np.diag(pairs), rtol=1e-6)


def test_small_steps_one_by_one_are_nearly_the_same(tmp_path):
    model, run = trained(tmp_path, keras.optimizers.SGD(RATE))
    written = Written(model, run, PIECES)
    largest = np.linalg.eigvalsh(written.hessian)[-1]
    assert 0.05 < RATE * largest <= 0.1
    scores = kt.SOURCE(model, TRAIN, run).influence(TEST, verbose=0).scores
    expected = written.scores(powers)
    assert abs(scores - expected).max() <= 0.03 * abs(expected).max()


def test_a_loss_that_is_summed_takes_steps_of_the_whole_batch(tmp_path):
    mean = trained(tmp_path / "mean", keras.optimizers.SGD(RATE), epochs=2)
    loss = keras.losses.MeanSquaredError(reduction="sum")
    given = keras.optimizers.SGD(RATE / 5), loss
    summed = trained(tmp_path / "sum", *given, epochs=2)
    with pytest.raises(ValueError, match=row("source-batch-size", "'sum'")):
        kt.SOURCE(summed[0], TRAIN, summed[1])
    expected = kt.SOURCE(mean[0], TRAIN, mean[1]).influence(TEST, verbose=0)
    method = kt.SOURCE(summed[0], TRAIN, summed[1], batch_size=5)
    scores = method.influence(TEST, verbose=0).scores
    np.testing.assert_allclose(scores, expected.scores, rtol=1e-6)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    directory = tmp_path_factory.mktemp("plain")
    return trained(directory, keras.optimizers.SGD(RATE), epochs=2)


def compiled(model, optimizer):
    twin = keras.models.clone_model(model)
    twin.compile(optimizer, "mse")
    return twin


def test_what_cannot_be_unrolled_is_refused(plain):
    model, run = plain
    with pytest.raises(ValueError, match=row("source-curvature", "CG")):
        kt.SOURCE(model, TRAIN, run, curvature=kt.CG())
    other = compiled(model, keras.optimizers.Ftrl())
    with pytest.raises(ValueError, match=row("source-optimizer", "'Ftrl'")):
        kt.SOURCE(other, TRAIN, run)
    bare = sequential((INPUTS,), layers.Dense(1))
    with pytest.raises(ValueError, match=row("source-optimizer", "NoneType")):
        kt.SOURCE(bare, TRAIN, run, loss="mse")
    other = compiled(model, "adam")
    with pytest.raises(ValueError, match=row("source-state", "Adam")):
        kt.SOURCE(other, TRAIN, run)


def test_a_run_that_froze_layers_is_refused(tmp_path):
    layer = layers.Dense(2)
    model = sequential((INPUTS,), layer, layers.Dense(1))
    for epochs, trainable in ((1, True), (2, False)):
        layer.trainable = trainable
        model.compile(keras.optimizers.SGD(RATE), "mse")
        model.fit(
            *TRAIN,
            epochs=epochs,
            initial_epoch=epochs - 1,
            verbose=0,
            callbacks=[kt.TracInCheckpoint(tmp_path)],
        )
    with pytest.raises(ValueError, match=row("uneven-updates", "SOURCE")):
        kt.SOURCE(model, TRAIN, tmp_path)
    scores = kt.SOURCE(model, TRAIN, tmp_path, layers=[model.layers[-1].name])
    assert np.isfinite(scores.influence(TEST, verbose=0).scores).all()
