"""Training dynamics, against plain NumPy on what `predict` returns."""

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.runs import run_weights
from tests.error_rows import row
from tests.points import CROSSENTROPY, examples
from tests.states import state

N = 23
X, Y = examples(N, 0)
WEIGHTS = np.linspace(0.5, 2, N)
ONE_HOT = np.eye(3, dtype="float32")[Y]


def build(units=3, activation=None, loss=CROSSENTROPY, shape=(4,), rate=0.5):
    keras.utils.set_random_seed(1)
    layer = keras.layers.Dense(units, activation=activation)
    model = keras.Sequential([keras.Input(shape), layer])
    model.compile(keras.optimizers.SGD(rate), loss)
    return model


def measure(model, data, run=None, **options):
    return kt.training_dynamics(model, data, run, verbose=0, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    model = build()
    recorder = kt.TracInCheckpoint(directory)
    options = {"batch_size": 4, "epochs": 4, "verbose": 0}
    model.fit(X, Y, sample_weight=WEIGHTS, callbacks=[recorder], **options)
    return model, kt.TrainingRun(directory)


@pytest.fixture(scope="module")
def dynamics(trained):
    model, run = trained
    return measure(model, (X, Y, WEIGHTS), run, probabilities="all")


def outputs_along(model, run):
    """`[k, n, classes]`, by plain Keras."""
    with run_weights(model) as load:
        outputs = []
        for checkpoint in run:
            load(checkpoint)
            outputs.append(model.predict(X, verbose=0))
    return np.stack(outputs).astype("float64")


def test_losses_of_held_out_examples_are_those_that_fit_reported(tmp_path):
    model, held_out = build(), examples(9, 1)
    recorder = kt.TracInCheckpoint(tmp_path)
    history = model.fit(
        *(X, Y, 5, 3, 0), callbacks=[recorder], validation_data=held_out
    ).history
    run = kt.TrainingRun(tmp_path)
    measured = measure(model, (X, Y), run[1:])
    assert measured.held_out_loss.tolist() == history["val_loss"][1:]


def test_each_number_is_that_of_the_outputs_at_each_checkpoint(
    trained, dynamics
):
    logits = outputs_along(*trained)
    p = scipy.special.softmax(logits, axis=-1)
    own = logits[:, np.arange(N), Y]
    others = np.where(ONE_HOT == 1, -np.inf, logits).max(-1)
    expected = {
        "loss": -np.log(p[:, np.arange(N), Y]),
        "margin": own - others,
        "correct": own > others,
        "probability": p[:, np.arange(N), Y],
        "error": np.linalg.norm(p - ONE_HOT, axis=-1),
        "probabilities": p,
        "mean_probabilities": p.mean(0),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(
            getattr(dynamics, name), values, atol=1e-5, err_msg=name
        )
    assert dynamics.kind == "classes"
    assert dynamics.epochs.tolist() == [1, 2, 3, 4]
    assert dynamics.given_labels.tolist() == Y.tolist()
    assert dynamics.ids.tolist() == list(range(N))
    assert dynamics.residual is None


def test_the_model_and_the_run_stay_as_they_were(trained):
    model, run = trained
    before = state(model, run.directory)
    measure(model, (X, Y), run)
    assert state(model, run.directory) == before


def test_small_batches_and_chunks_change_nothing(trained, dynamics):
    model, run = trained
    ids = np.array([f"image-{number}" for number in range(N)])
    data = kt.with_ids((X, Y), ids).batch(5)
    named = measure(model, data, run, memory_limit=1)
    np.testing.assert_allclose(named.loss, dynamics.loss, atol=1e-5)
    np.testing.assert_allclose(
        named.mean_probabilities, dynamics.mean_probabilities, atol=1e-5
    )
    assert named.ids.tolist() == ids.tolist()


def test_lengths_of_gradients_are_those_of_tracin(trained):
    model, run = trained
    one = run.select([1])
    with pytest.warns(UserWarning, match=row("one-checkpoint")):
        measured = measure(model, (X, Y), one, gradients=True)
    own = kt.TracIn(model, (X, Y), one).self_influence(verbose=0)
    expected = np.sqrt(own.scores / one[0].learning_rate)
    np.testing.assert_allclose(measured.grand, expected, rtol=1e-4)
    shuffled = kt.with_ids((X, Y)).shuffle(N).batch(4)
    with pytest.warns(UserWarning, match=row("one-checkpoint")):
        measured = measure(model, shuffled, one, gradients=True)
    grand = measured.grand[np.argsort(measured.ids)]
    np.testing.assert_allclose(grand, expected, rtol=1e-4)


def test_without_a_run_the_present_weights_are_measured(trained):
    model, _ = trained
    measured = measure(model, (X, Y))
    p = scipy.special.softmax(model.predict(X, verbose=0), axis=-1)
    np.testing.assert_allclose(measured.mean_probabilities, p, atol=1e-5)
    assert measured.epochs.tolist() == [0]


def sigmoid_oracle(p, y):
    """Margin, probability and squared error of choices of two."""
    sign = 2 * y - 1
    margin = sign * scipy.special.logit(p)
    return margin, np.where(y == 1, p, 1 - p), 2 * (p - y) ** 2


def test_one_hot_labels_of_probabilities():
    model = build(3, "softmax", "categorical_crossentropy")
    measured = measure(model, (X, ONE_HOT))
    p = model.predict(X, verbose=0)
    own = p[np.arange(N), Y]
    others = np.where(ONE_HOT == 1, 0, p).max(1)
    np.testing.assert_allclose(
        measured.margin[0], np.log(own / others), atol=1e-4
    )
    np.testing.assert_allclose(measured.probability[0], own, atol=1e-6)
    assert measured.given_labels.tolist() == Y.tolist()


def test_probabilities_of_no_known_logits():
    class Own(keras.layers.Layer):
        def call(self, x):
            powers = tf.exp(x)
            return powers / tf.reduce_sum(powers, axis=-1, keepdims=True)

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), Own()])
    model.compile("sgd", "sparse_categorical_crossentropy")
    measured = measure(model, (X, Y))
    p = model.predict(X, verbose=0)
    np.testing.assert_allclose(measured.mean_probabilities, p, atol=1e-6)


@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_a_single_output_counts_as_two_classes(activation):
    y = (Y > 0).astype("float32")
    loss = keras.losses.BinaryCrossentropy(from_logits=activation is None)
    model = build(1, activation, loss)
    measured = measure(model, (X, y))
    p = model.predict(X, verbose=0)[:, 0]
    if activation is None:
        p = scipy.special.expit(p)
    margin, probability, squares = sigmoid_oracle(p, y)
    assert measured.kind == "classes"
    np.testing.assert_allclose(measured.margin[0], margin, atol=1e-4)
    np.testing.assert_allclose(measured.probability[0], probability, atol=1e-5)
    np.testing.assert_allclose(measured.error[0], np.sqrt(squares), atol=1e-5)
    np.testing.assert_allclose(
        measured.mean_probabilities, np.stack([1 - p, p], 1), atol=1e-5
    )


def test_several_labels_of_an_example_are_averaged():
    y = (X[:, :3] > 0).astype("int64")
    model = build(3, "sigmoid", "binary_crossentropy")
    measured = measure(model, (X, y))
    p = model.predict(X, verbose=0)
    margin, probability, squares = sigmoid_oracle(p, y)
    assert measured.kind == "labels"
    np.testing.assert_allclose(measured.margin[0], margin.mean(1), atol=1e-4)
    np.testing.assert_allclose(
        measured.probability[0], probability.mean(1), atol=1e-5
    )
    np.testing.assert_allclose(
        measured.error[0], np.sqrt(squares.mean(1)), atol=1e-5
    )
    np.testing.assert_allclose(measured.mean_probabilities, p, atol=1e-5)
    assert measured.given_labels.tolist() == y.tolist()
    right = ((p > 0.5) == y).mean(1)
    np.testing.assert_allclose(measured.correct[0], right, atol=1e-6)


def test_positions_of_sequences_are_averaged_by_their_weights():
    rng = np.random.default_rng(0)
    x = rng.normal(size=[6, 5, 4]).astype("float32")
    y = rng.integers(0, 3, [6, 5])
    weights = rng.uniform(0, 1, [6, 5]).round().astype("float32")
    weights[:, 0] = 2
    model = build(3, loss=CROSSENTROPY, shape=(5, 4))
    measured = measure(model, (x, y, weights))
    p = scipy.special.softmax(model.predict(x, verbose=0), axis=-1)
    own = np.take_along_axis(p, y[..., None], -1)[..., 0]
    for name, values in (
        ("loss", -np.log(own)),
        ("probability", own),
        ("correct", p.argmax(-1) == y),
    ):
        mean = np.average(values, axis=1, weights=weights)
        np.testing.assert_allclose(
            getattr(measured, name)[0], mean, atol=1e-5, err_msg=name
        )
    assert measured.kind == "sequences"
    assert measured.mean_probabilities is None
    weights[4] = 0
    with pytest.raises(ValueError, match=row("nothing-counts", "ids [4]")):
        measure(model, (x, y, weights))


def test_residuals_of_a_regression():
    y = X @ np.array([[1.0], [0], [0], [2]], "float32")
    model = build(1, loss="mae")
    measured = measure(model, (X, y[:, 0]))
    residual = np.abs(model.predict(X, verbose=0) - y)[:, 0]
    np.testing.assert_allclose(measured.residual[0], residual, atol=1e-5)
    np.testing.assert_allclose(measured.loss[0], residual, atol=1e-5)
    spread = 1.4826 * np.median(residual)
    np.testing.assert_allclose(
        measured.robust_residual, residual / spread, rtol=1e-4
    )
    with pytest.raises(ValueError, match=row("no-such-dynamics", "`margin`")):
        _ = measured.area_under_margin


def test_a_hinge_has_margins_and_no_probabilities():
    model = build(1, loss="hinge")
    model.set_weights([np.array([[3.0], [0], [0], [0]]), np.zeros(1)])
    sign = np.where(Y > 0, 1, -1)
    measured = measure(model, (X, sign))
    expected = sign * model.predict(X, verbose=0)[:, 0]
    np.testing.assert_allclose(measured.margin[0], expected, atol=1e-5)
    with pytest.raises(ValueError, match=row("no-such-dynamics")):
        _ = measured.confidence


def test_outputs_that_nothing_explains_are_refused():
    model = build(loss=lambda y, p: keras.ops.mean(p, axis=-1))
    with pytest.raises(ValueError, match=row("unexplained-outputs")):
        measure(model, (X, Y))
    explained = measure(model, (X, Y), loss=CROSSENTROPY)
    assert explained.margin is not None
    x = keras.Input((4,))
    two = keras.Model(x, [keras.layers.Dense(1)(x), keras.layers.Dense(1)(x)])
    two.compile("sgd", ["mse", "mse"])
    with pytest.raises(ValueError, match=row("dynamics-outputs")):
        measure(two, (X, [Y, Y]))


def test_labels_outside_of_the_classes_are_named(trained):
    model, run = trained
    labels = Y.copy()
    labels[[3, 7]] = 5
    with pytest.raises(ValueError, match=row("invalid-labels", "ids [3, 7]")):
        measure(model, (X, labels), run)


def test_outputs_that_are_not_finite_are_named():
    class Reciprocal(keras.layers.Layer):
        def call(self, x):
            return x / x[:, :1]

    layers = [keras.Input((3,)), Reciprocal(), keras.layers.Dense(3)]
    model = keras.Sequential(layers)
    model.compile("sgd", CROSSENTROPY)
    x = np.ones([6, 3], "float32")
    x[2, 0] = 0
    found = row("dynamics-not-finite", "ids [2]", "present weights")
    with pytest.raises(ValueError, match=found):
        measure(model, (x, Y[:6]))


def test_arguments_that_cannot_be(trained):
    model, run = trained
    with pytest.raises(ValueError, match=row("dynamics-no-checkpoint")):
        measure(model, (X, Y), run[:0])
    with pytest.raises(ValueError, match=row("dynamics-probabilities")):
        measure(model, (X, Y), run, probabilities="some")
