"""TRAK against its closed form, from Jacobians in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit

import keras_tracin as kt
from keras_tracin.gradients import flat
from tests.error_rows import row

NUM_TRAIN, NUM_TEST, CLASSES = 40, 5, 3
DAMPING = 0.5
RANDOM = np.random.default_rng(0)


class Whole:
    """The gradients themselves, in the place of sketches."""

    def __init__(self, dim):
        self.dim = dim

    def sketch(self, factors, position=0):
        return flat.rows(factors)


def build(dtype="float32"):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((4,), dtype=dtype),
            keras.layers.Dense(3, "tanh", dtype=dtype),
            keras.layers.Dropout(0.5, dtype=dtype),
            keras.layers.Dense(CLASSES, "softmax", dtype=dtype),
        ]
    )
    optimizer = keras.optimizers.SGD(0.3)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    return model


def examples(count):
    x = RANDOM.normal(size=(count, 4)).astype("float32")
    return x, RANDOM.integers(0, CLASSES, count)


TRAIN, TEST = examples(NUM_TRAIN), examples(NUM_TEST)
WEIGHTS = RANDOM.uniform(0.2, 2, NUM_TRAIN).astype("float32")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model, and two runs of two checkpoints each."""
    runs = []
    model = build()
    for _ in range(2):
        directory = tmp_path_factory.mktemp("run")
        callback = kt.TracInCheckpoint(directory)
        model.fit(*TRAIN, epochs=2, verbose=0, callbacks=[callback])
        runs.append(kt.TrainingRun(directory))
    return model, runs


def margins(checkpoint, x, y):
    """The margins `[n]` and their gradients `[n, p]`, in float64."""
    twin, source = build("float64"), build()
    source.load_weights(checkpoint.path)
    twin.set_weights([w.astype("float64") for w in source.get_weights()])
    with tf.GradientTape() as tape:
        p = tf.gather(twin(x.astype("float64")), y, axis=1, batch_dims=1)
        f = tf.math.log(p / (1 - p))
    jacobian = tape.jacobian(f, [v.value for v in twin.trainable_weights])
    rows = np.hstack([np.reshape(part, (len(x), -1)) for part in jacobian])
    return f.numpy(), rows


def oracle(checkpoints, test, weights=1.0):
    """The means of kernels and of 1 - p, multiplied."""
    kernels, pulls = [], []
    for checkpoint in checkpoints:
        f, phi = margins(checkpoint, *TRAIN)
        _, queries = margins(checkpoint, *test)
        gram = phi.T @ (phi * np.reshape(weights, (-1, 1)))
        gram += DAMPING * np.trace(gram) / NUM_TRAIN * np.eye(len(gram))
        kernels.append(queries @ np.linalg.solve(gram, phi.T))
        pulls.append(weights * expit(-f))
    return np.mean(kernels, axis=0) * np.mean(pulls, axis=0)


def trak(model, run, train=TRAIN, **options):
    options = {
        "projection": Whole(model.count_params()),
        "damping": DAMPING,
        **options,
    }
    return kt.TRAK(model, train, run, **options)


def assert_alike(found, expected):
    np.testing.assert_allclose(
        found, expected, atol=1e-3 * np.abs(expected).max()
    )


def test_scores_are_the_closed_form_at_all_checkpoints_of_all_runs(trained):
    model, runs = trained
    before = model.get_weights()
    found = trak(model, runs).influence(TEST, verbose=0)
    assert_alike(found.scores, oracle([*runs[0], *runs[1]], TEST))
    assert found.train_ids.tolist() == list(range(NUM_TRAIN))
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_run_may_be_a_directory_and_a_slice(trained):
    model, runs = trained
    expected = oracle([runs[0][-1]], TEST)
    by_slice = trak(model, runs[0][-1:]).influence(TEST, verbose=0)
    assert_alike(by_slice.scores, expected)
    whole = trak(model, str(runs[0].directory)).influence(TEST, verbose=0)
    assert_alike(whole.scores, oracle(runs[0], TEST))
    assert np.abs(whole.scores - by_slice.scores).max() > 0.01


def test_a_sample_weight_counts_in_kernel_and_pull(trained):
    model, runs = trained
    method = trak(model, runs[0], (*TRAIN, WEIGHTS))
    found = method.influence((*TEST, np.full(NUM_TEST, 3.0)), verbose=0)
    assert_alike(found.scores, 3 * oracle(runs[0], TEST, WEIGHTS))


def test_self_influence_is_the_diagonal(trained):
    model, runs = trained
    found = trak(model, runs).self_influence(verbose=0)
    assert_alike(found.scores, np.diag(oracle([*runs[0], *runs[1]], TRAIN)))
    assert (found.scores > 0).all()


def test_pieces_and_parts_give_the_same(trained, tmp_path):
    model, runs = trained
    whole = trak(model, runs).influence(TEST, verbose=0)
    method = trak(model, runs, memory_limit=400).within(batch_sizes=(4, 4))
    assert method.plan().chunk < NUM_TRAIN
    found = method.influence(TEST, verbose=0, directory=tmp_path / "scores")
    assert_alike(found.scores, whole.scores)
    top = method.top_k(TEST, 3, verbose=0)
    np.testing.assert_array_equal(
        top.proponents.ids, found.top_k(3).proponents.ids
    )
    with pytest.raises(ValueError, match=row("other-parts", "damping")):
        trak(model, runs, damping=1.0).influence(
            TEST, verbose=0, directory=tmp_path / "scores"
        )


def test_features_are_the_same_held_and_computed_anew(trained):
    model, runs = trained
    held = trak(model, runs).within(batch_sizes=(4, 4))
    anew = trak(model, runs, memory_limit=400).within(batch_sizes=(4, 4))
    ids = [7, 30, 2]
    for method in (held, anew):
        whole = method.influence(TEST, verbose=0).scores
        assert_alike(
            method.among(ids).influence(TEST, verbose=0).scores,
            whole[:, sorted(ids)],
        )
    assert_alike(
        held.self_influence(verbose=0).scores,
        anew.self_influence(verbose=0).scores,
    )


def test_sketches_come_near_the_whole_gradients(trained):
    model, runs = trained
    exact = trak(model, runs).influence(TEST, verbose=0).scores
    sketched = trak(model, runs, projection=kt.TensorSketch(512))
    found = sketched.influence(TEST, verbose=0).scores
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.9


def regression(w, loss="mse"):
    layer = keras.layers.Dense(1, use_bias=False)
    model = keras.Sequential([keras.Input((3,)), layer])
    layer.kernel.assign(w)
    model.compile("sgd", loss)
    return model


def test_a_linear_regression_is_predicted_without_each_example(tmp_path):
    x = RANDOM.normal(size=(30, 3))
    y = x @ [[1.0], [-2.0], [0.5]] + RANDOM.normal(size=(30, 1))
    test = RANDOM.normal(size=(6, 3)), RANDOM.normal(size=(6, 1))
    solve = np.linalg.lstsq
    model = regression(solve(x, y)[0])
    model.save_weights(tmp_path / "a.weights.h5")
    run = kt.TrainingRun.from_weights([tmp_path / "a.weights.h5"], 1.0)
    found = kt.TRAK(
        model, (x, y), run, projection=Whole(3), damping=0
    ).influence(test, verbose=0)

    def losses(rows):
        w = solve(x[rows], y[rows])[0]
        return np.square(test[0] @ w - test[1])[:, 0]

    everything = np.arange(30)
    changes = np.stack(
        [losses(everything != i) - losses(everything) for i in everything],
        axis=1,
    )
    # The derivative of the query's squared error times the change of its
    # prediction; 2 of each side's derivative, of which one is the Hessian's.
    np.testing.assert_allclose(
        np.corrcoef(found.scores.ravel(), changes.ravel())[0, 1], 1, atol=0.05
    )
    assert 0.7 < found.scores.std() / (2 * changes.std()) < 1.1


def test_labels_of_one_sigmoid_have_a_margin(tmp_path):
    x = RANDOM.normal(size=(20, 3)).astype("float32")
    y = (x[:, 0] > 0).astype("float32")
    model = regression(
        np.array([[0.5], [0.1], [0.2]]),
        keras.losses.BinaryCrossentropy(from_logits=True),
    )
    model.save_weights(tmp_path / "a.weights.h5")
    run = kt.TrainingRun.from_weights([tmp_path / "a.weights.h5"], 1.0)
    found = kt.TRAK(model, (x, y), run, projection=Whole(3), damping=0)
    logits = model.predict(x, verbose=0)[:, 0]
    phi = x * np.where(y > 0, 1, -1)[:, np.newaxis]
    expected = phi @ np.linalg.solve(phi.T @ phi, phi.T)
    expected *= expit(-logits * np.where(y > 0, 1, -1))
    assert_alike(found.influence((x, y), verbose=0).scores, expected)


LENGTH = 3


def sequence_model(dtype="float32"):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((LENGTH, 4), dtype=dtype),
            keras.layers.Dense(3, "tanh", dtype=dtype),
            keras.layers.Dense(CLASSES, dtype=dtype),
        ]
    )


def sequences(count, seed):
    """Sequences of which some positions have no weight, or are ignored."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, LENGTH, 4)).astype("float32")
    y = rng.integers(0, CLASSES, (count, LENGTH))
    weights = rng.uniform(0.2, 2, (count, LENGTH)).astype("float32")
    weights[0, 1] = 0
    y[1, 2] = -1
    return x, y, weights


def test_a_sequence_has_the_mean_margin_of_its_positions(tmp_path):
    train, test = sequences(30, 0), sequences(4, 1)
    model, loss = (
        sequence_model(),
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=-1
        ),
    )
    model.compile("sgd", loss)
    model.save_weights(tmp_path / "a.weights.h5")
    run = kt.TrainingRun.from_weights([tmp_path / "a.weights.h5"], 1.0)
    found = trak(model, run, train)
    twin = sequence_model("float64")
    twin.set_weights(model.get_weights())

    def features(x, y, weights):
        counts = weights * (y >= 0)
        with tf.GradientTape() as tape:
            p = tf.nn.softmax(twin(x.astype("float64")))
            p = tf.gather(p, np.maximum(y, 0), axis=2, batch_dims=2)
            shares = counts / counts.sum(1, keepdims=True)
            f = tf.reduce_sum(tf.math.log(p / (1 - p)) * shares, axis=1)
        jacobian = tape.jacobian(f, [v.value for v in twin.trainable_weights])
        rows = np.hstack([np.reshape(part, (len(x), -1)) for part in jacobian])
        # As Keras: the mean over positions that are not ignored.
        total = counts.sum(1) / (y >= 0).sum(1)
        return rows, total, total * np.sum((1 - p) * shares, axis=1)

    phi, weights, pulls = features(*train)
    asked, helped, _ = features(*test)
    gram = phi.T @ (phi * weights[:, None])
    damped = gram + DAMPING * np.trace(gram) / len(phi) * np.eye(len(gram))
    solved = np.linalg.solve(damped, phi.T)
    expected = helped[:, None] * (asked @ solved) * pulls
    assert_alike(found.influence(test, verbose=0).scores, expected)
    own = weights * np.einsum("np,pn->n", phi, solved) * pulls
    assert_alike(found.self_influence(verbose=0).scores, own)


def test_logra_has_a_kernel_of_the_losses_gradients_for_each_layer(trained):
    model, runs = trained
    # So long that neither side of a layer is projected.
    projection = kt.FactoredProjection(64, joint=False)
    found = trak(
        model, runs[0][-1:], projection=projection, output="loss"
    ).influence(TEST, verbose=0)
    model.load_weights(runs[0][-1].path)

    def layers_of(x, y):
        with tf.GradientTape() as tape:
            losses = keras.losses.sparse_categorical_crossentropy(y, model(x))
        jacobian = tape.jacobian(
            losses, [v.value for v in model.trainable_weights]
        )
        rows = [np.reshape(part, (len(x), -1)) for part in jacobian]
        return [np.hstack(rows[:2]), np.hstack(rows[2:])]

    expected = 0.0
    for phi, asked in zip(layers_of(*TRAIN), layers_of(*TEST), strict=True):
        gram = phi.T @ phi
        gram += DAMPING * np.trace(gram) / len(phi) * np.eye(len(gram))
        expected = expected + asked @ np.linalg.solve(gram, phi.T)
    assert_alike(found.scores, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": -1}, "damping"),
        ({"run": []}, "empty list"),
        ({"output": "logit"}, "Received: 'logit'"),
        ({"loss": "kl_divergence"}, "'kl_divergence'.*output='margin'"),
    ],
    ids=lambda case: next(iter(case)) if isinstance(case, dict) else "",
)
def test_what_makes_no_sense_is_refused(trained, options, message):
    model, runs = trained
    with pytest.raises(ValueError, match=message):
        trak(model, **{"run": runs, **options})


def test_a_run_given_twice_is_refused(trained):
    model, runs = trained
    with pytest.raises(ValueError, match="more than once"):
        trak(model, [runs[0], str(runs[0].directory)])


def test_too_long_a_sketch_without_damping_is_refused(trained):
    model, runs = trained
    few = tuple(part[:10] for part in TRAIN)
    method = trak(model, runs[0], few, damping=0)
    with pytest.raises(ValueError, match=r"damping=0.*smaller `dim`"):
        method.influence(TEST, verbose=0)


@pytest.mark.parametrize(
    ("loss", "message"),
    [("mse", "one number for each"), ("binary_crossentropy", "one class")],
)
def test_several_outputs_are_refused(trained, loss, message):
    model, runs = trained
    method = trak(model, runs[0], loss=loss)
    one_hot = TEST[0], np.eye(CLASSES, dtype="float32")[TEST[1]]
    with pytest.raises(ValueError, match=message):
        method.influence(one_hot, verbose=0)


def test_a_gradient_that_is_not_a_number_is_named(trained):
    model, runs = trained
    x = TRAIN[0].copy()
    x[7] = np.nan
    with pytest.raises(ValueError, match=r"training examples with ids \[7\]"):
        trak(model, runs, (x, TRAIN[1])).influence(TEST, verbose=0)
