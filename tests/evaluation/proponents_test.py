"""Steps on proponents, and trainings without them, on small twins."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin import evaluation

RANDOM = np.random.default_rng(0)
COUNT, QUERIES = 24, 4


def examples(count):
    x = RANDOM.normal(size=(count, 3)).astype("float32")
    return x, (x[:, 0] + 0.3 * RANDOM.normal(size=count) > 0).astype("int32")


TRAIN, TEST = examples(COUNT), examples(QUERIES)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.5), LOSS)
    return model


def fit(train):
    model = network()
    model.fit(*train, epochs=10, batch_size=len(train[0]), verbose=0)
    return model


@pytest.fixture(scope="module")
def model():
    return fit(TRAIN)


def scored(values):
    return kt.Attribution(values, np.arange(QUERIES), np.arange(COUNT))


@pytest.fixture(scope="module")
def scores():
    return scored(RANDOM.normal(size=(QUERIES, COUNT)))


def losses(kernel, bias, x, y):
    logits = x @ kernel + bias
    return tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits).numpy()


def gain(model, chosen, query, rate):
    """What a step of descent does, by the softmax's own gradient."""
    kernel, bias = model.get_weights()
    x, y = TRAIN[0][chosen], TRAIN[1][chosen]
    delta = tf.nn.softmax(x @ kernel + bias).numpy() - np.eye(2)[y]
    asked = TEST[0][query : query + 1], TEST[1][query : query + 1]
    before = losses(kernel, bias, *asked)
    after = losses(
        kernel - rate * x.T @ delta / len(x),
        bias - rate * delta.mean(axis=0),
        *asked,
    )
    return before[0] - after[0]


@pytest.mark.parametrize("rate", [None, 0.05])
def test_a_step_is_taken_on_the_proponents_of_each_query(model, scores, rate):
    before = model.get_weights()
    state = [np.array(v) for v in model.optimizer.variables]
    found = evaluation.tail_patch(
        scores, model, TRAIN, TEST, k=3, learning_rate=rate
    )
    best = np.argsort(-scores.scores, axis=1)[:, :3]
    expected = [gain(model, best[q], q, rate or 0.5) for q in range(QUERIES)]
    np.testing.assert_allclose(found.gain, expected, atol=1e-6)
    assert (found.gain != found.random_gain).all()
    assert found.mean == pytest.approx((found.gain - found.random_gain).mean())
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(state, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, np.array(other))


def test_proponents_by_gradients_help_and_opponents_harm(model, tmp_path):
    model.save_weights(tmp_path / "a.weights.h5")
    run = kt.TrainingRun.from_weights([tmp_path / "a.weights.h5"], 1.0)
    found = kt.TracIn(model, TRAIN, run).influence(TEST, verbose=0)
    helped = evaluation.tail_patch(
        found.top_k(5), model, TRAIN, TEST, k=3, learning_rate=0.01
    )
    assert (helped.gain > helped.random_gain).all()
    harmed = evaluation.tail_patch(
        scored(-found.scores), model, TRAIN, TEST, k=3, learning_rate=0.01
    )
    assert (harmed.gain < 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 6}, "from 1 to 5"),
        ({"k": 3, "learning_rate": 0.0}, "above zero"),
        ({"test": TRAIN}, "of these queries"),
        ({"train": tuple(part[:3] for part in TRAIN)}, "not among them"),
    ],
    ids=["k", "rate", "test", "train"],
)
def test_a_patch_that_makes_no_sense_is_refused(
    model, scores, options, message
):
    given = {"train": TRAIN, "test": TEST, **options}
    with pytest.raises(ValueError, match=message):
        evaluation.tail_patch(scores.top_k(5), model, **{"k": 5, **given})


def ridge(x, y):
    """The weights `[4]`, bias last, of least squares on labels of ±1."""
    x = np.hstack([x, np.ones((len(x), 1))])
    return np.linalg.solve(x.T @ x + 0.1 * np.eye(4), x.T @ (2 * y - 1))


CLASSIFIER = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
CLASSIFIER.compile(loss=keras.losses.BinaryCrossentropy(from_logits=True))


def fit_ridge(train):
    w = ridge(*train)
    CLASSIFIER.layers[0].set_weights([w[:3, np.newaxis], w[3:]])
    return CLASSIFIER


def margins(train, queries):
    w = ridge(*train)
    logits = TEST[0][queries] @ w[:3] + w[3]
    return logits * (2 * TEST[1][queries] - 1)


def test_margins_are_those_of_training_without_the_proponents(scores):
    found = evaluation.brittleness(
        scores, TRAIN, TEST, fit_ridge, counts=(2, 12)
    )
    everyone = np.arange(QUERIES)
    np.testing.assert_allclose(
        found.margins, margins(TRAIN, everyone), atol=1e-5
    )
    order = np.argsort(-scores.scores, axis=1)
    for query in range(QUERIES):
        for column, count in enumerate((2, 12)):
            kept = np.sort(order[query, count:])
            expected = margins(tuple(p[kept] for p in TRAIN), [query])
            np.testing.assert_allclose(
                found.margins_without[query, column], expected[0], atol=1e-5
            )
    assert found.random_margins.shape == (QUERIES, 2)
    assert found.counts.tolist() == [2, 12]


def test_without_its_own_class_a_prediction_flips():
    same = TEST[1][:, np.newaxis] == TRAIN[1]
    count = int(same.sum(axis=1).max())
    found = evaluation.brittleness(
        scored(same.astype(float)), TRAIN, TEST, fit_ridge, counts=(1, count)
    )
    right = found.margins > 0
    assert right.sum() >= 2
    assert found.flipped[right, 1].all()
    assert found.share.tolist()[1] == 1
    assert found.random_share[0] < 1


def test_flips_are_counted_among_right_predictions():
    found = evaluation.Brittleness(
        query_ids=np.arange(3),
        counts=np.array([1, 2]),
        margins=np.array([1.0, -1.0, 2.0]),
        margins_without=np.array([[-1.0, -1], [-2, 1], [1, -0.5]]),
        random_margins=np.array([[1.0, -1], [1, 1], [1, 1]]),
    )
    assert found.flipped.tolist() == [
        [True, True],
        [False, False],
        [False, True],
    ]
    assert found.share.tolist() == [0.5, 1.0]
    assert found.random_share.tolist() == [0, 0.5]


@pytest.mark.parametrize("counts", [(), (0,), (COUNT,)])
def test_counts_leave_something_out_and_something_in(scores, counts):
    with pytest.raises(ValueError, match="from 1 to 23"):
        evaluation.brittleness(scores, TRAIN, TEST, fit_ridge, counts=counts)
