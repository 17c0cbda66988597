"""The training made again: seeds, memory, and batches that are not recorded."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.methods.unrolled import replay as replaying
from keras_tracin.methods.unrolled.batches import Steps
from tests.methods.unrolled.helpers import (
    BATCH,
    EPOCHS,
    QUERIES,
    Retrained,
    X,
    Y,
    make_model,
    recorded,
)


def model(*layers, optimizer=None):
    optimizer = optimizer or keras.optimizers.SGD(0.3, momentum=0.5)
    return make_model(optimizer, *layers, dtype="float32")


def scores(unrolled, **options):
    return unrolled.influence(QUERIES, verbose=0, **options).scores


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A recorded training, what unrolls it, and its scores."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    trained = model()
    unrolled = recorded(trained, directory)
    return directory, trained, unrolled, scores(unrolled)


def test_dropout_drops_what_it_dropped(tmp_path):
    def make():
        return model(keras.layers.Dropout(0.4, seed=7))

    trained = make()
    unrolled = recorded(trained, tmp_path)
    seeds = [v.numpy() for v in trained.non_trainable_variables]
    found = scores(unrolled)
    assert unrolled.replay_error < 1e-5
    oracle = Retrained(make, unrolled._recorded.steps.rows)
    for direction in np.random.default_rng(6).normal(size=(2, 30)):
        np.testing.assert_allclose(
            -found @ direction,
            oracle.derivative(direction, h=0.01),
            rtol=0.02,
            atol=2e-3,
        )
    for v, seed in zip(trained.non_trainable_variables, seeds, strict=True):
        np.testing.assert_array_equal(v.numpy(), seed)
    # Without them it would be another training.
    trained.layers[1].seed_generator.state.assign([3, 0])
    np.testing.assert_array_equal(scores(unrolled), found)


def test_retraining_with_counts_is_what_scores_predict(whole):
    *_, unrolled, found = whole
    ones = np.ones(30)
    counts = np.stack([ones, ones - 0.01 * (np.arange(30) % 3 == 0)])
    before, after = unrolled.retrain(QUERIES, counts)
    np.testing.assert_allclose(
        after - before, found @ (1 - counts[1]), rtol=0.02, atol=1e-5
    )
    np.testing.assert_array_equal(before, unrolled.retrain(QUERIES, ones))


def test_queries_alone_together_and_summed_agree(whole):
    *_, unrolled, found = whole
    size = np.abs(found).max()
    for row in range(2):
        one = tuple(part[row : row + 1] for part in QUERIES)
        alone = unrolled.influence(one, verbose=0).scores[0]
        np.testing.assert_allclose(alone, found[row], atol=1e-6 * size)
    summed = unrolled.influence(QUERIES, aggregate=True, verbose=0)
    assert summed.query_ids.tolist() == ["sum"]
    np.testing.assert_allclose(
        summed.scores[0], found.sum(axis=0), atol=1e-5 * size
    )
    top = unrolled.top_k(QUERIES, k=3, verbose=0)
    np.testing.assert_array_equal(
        top.proponents.ids, np.argsort(-found, axis=1)[:, :3]
    )


def test_one_after_another_is_the_same_as_side_by_side(whole, monkeypatch):
    directory, trained, _, found = whole
    monkeypatch.setattr(
        "keras_tracin.methods.unrolled.recorded._SIDE_BY_SIDE", 1
    )
    other = scores(kt.UnrolledInfluence(trained, (X, Y), directory))
    np.testing.assert_allclose(other, found, atol=1e-6)


@pytest.mark.parametrize("states", [1, 2, 4, 7])
def test_little_memory_costs_steps_and_changes_nothing(whole, states):
    directory, trained, _, found = whole
    size = 2 * 4 * trained.count_params()  # with the momentum
    unrolled = kt.UnrolledInfluence(
        trained, (X, Y), directory, memory_limit=2 * states * size
    )
    blocks = unrolled.influence(QUERIES, verbose=0).scores
    np.testing.assert_allclose(blocks, found, atol=1e-6)


@pytest.mark.parametrize(
    ("count", "room"), [(1, 2), (10, 2), (100, 20), (50, 9)]
)
def test_states_come_backwards_and_few_are_held(count, room, monkeypatch):
    """States are numbers here, and a step adds one."""
    steps = Steps(np.ones(count), ((0,),) * count)
    found = replaying.Replay(None, steps, None, 0, first=0, room=room)
    made = []

    def step(number, state, counts=None):
        assert number == state
        made.append(number)
        return state + 1

    monkeypatch.setattr(found, "advance", step)
    found._kept = found._forwards(0, 0, count, lambda number, state: None)
    assert found.last == count
    assert len(found._kept) <= max(2, room)
    made.clear()
    assert list(found.backwards()) == [(t, t) for t in reversed(range(count))]
    if room >= 2 * np.sqrt(count):
        assert len(made) < count


def test_model_and_optimizer_are_as_they_were(whole):
    _, trained, unrolled, _ = whole
    variables = [*trained.variables, *trained.optimizer.variables]
    before = [v.numpy() for v in variables]
    scores(unrolled)
    for v, value in zip(variables, before, strict=True):
        np.testing.assert_array_equal(v.numpy(), value)


def test_scores_are_of_the_last_checkpoint_of_a_slice(whole):
    directory, trained, unrolled, found = whole
    first = kt.TrainingRun(directory)[:1]
    one = kt.UnrolledInfluence(trained, (X, Y), first)
    assert len(one._recorded.steps) == 4
    assert np.abs(scores(one) - found).max() > 1e-3
    ones = np.ones(30)
    assert not np.allclose(
        one.retrain(QUERIES, ones), unrolled.retrain(QUERIES, ones)
    )


def test_batches_of_an_ordinary_fit_are_given_or_read(tmp_path):
    trained = model()
    trained.fit(
        X,
        Y,
        batch_size=BATCH,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[kt.TracInCheckpoint(tmp_path)],
    )

    def found(data, batches=None):
        return scores(
            kt.UnrolledInfluence(trained, data, tmp_path, batches=batches)
        )

    expected = found((X, Y), BATCH)
    ids = np.split(np.arange(30), [8, 16, 24]) * EPOCHS
    np.testing.assert_array_equal(found((X, Y), ids), expected)
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(BATCH)
    np.testing.assert_array_equal(found(dataset), expected)
    with_ids = kt.with_ids((X, Y)).batch(BATCH)
    np.testing.assert_array_equal(found(with_ids), expected)
    with pytest.raises(ValueError, match="does not say which examples"):
        found((X, Y))
    with pytest.raises(ValueError, match="another order each time"):
        found(kt.with_ids((X, Y)).shuffle(30).batch(BATCH))
    with pytest.raises(ValueError, match="each of the 12 steps"):
        found((X, Y), ids[:-1])
    with pytest.raises(ValueError, match=r"without the ids \[30\]"):
        found((X, Y), [*ids[:-1], [30]])
    with pytest.raises(ValueError, match="of 1 or more"):
        found((X, Y), 0)
    with pytest.raises(TypeError, match="number of examples"):
        found((X, Y), "8")
    with pytest.raises(ValueError, match=r"after step 4 .* of the way"):
        found((X, Y), ids[1:4] + ids)


def test_other_trainings_than_the_recorded_one_are_refused(whole, tmp_path):
    directory, trained, *_ = whole
    with pytest.raises(ValueError, match=r"after step 4 \(epoch 1\)"):
        scores(kt.UnrolledInfluence(trained, (X + 0.1, Y), directory))
    other = model(optimizer=keras.optimizers.SGD(0.3, momentum=0.6))
    with pytest.raises(ValueError, match="not the one that was recorded"):
        scores(kt.UnrolledInfluence(other, (X, Y), directory))
    lenient = kt.UnrolledInfluence(other, (X, Y), directory, tolerance=10.0)
    assert np.isfinite(scores(lenient)).all()
    assert 0.01 < lenient.replay_error < 10


def test_datasets_with_ids_are_scored_by_them(tmp_path):
    data = kt.with_ids((X, Y), [f"no {at}" for at in range(30)])
    unrolled = recorded(model(), tmp_path, data.shuffle(30, seed=2).batch(8))
    found = unrolled.influence(QUERIES, verbose=0)
    assert set(found.train_ids) == {f"no {at}" for at in range(30)}
    order = [int(name.removeprefix("no ")) for name in found.train_ids]
    by_position = np.zeros_like(found.scores)
    by_position[:, order] = found.scores
    batches = [
        [
            int(name.removeprefix("no "))
            for name in unrolled._recorded.held.ids[rows]
        ]
        for rows in unrolled._recorded.steps.rows
    ]
    plain = kt.UnrolledInfluence(
        unrolled.model, (X, Y), tmp_path, batches=batches
    )
    np.testing.assert_allclose(by_position, scores(plain), atol=1e-6)


def test_embeddings_masks_weights_and_loops_are_replayed(tmp_path):
    keras.utils.set_random_seed(3)
    net = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            keras.layers.Embedding(7, 4, mask_zero=True),
            keras.layers.SimpleRNN(3),
            keras.layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.Adam(0.02, epsilon=1e-3), loss)
    random = np.random.default_rng(4)
    x = random.integers(0, 7, (24, 5)).astype("int32")
    weight = np.linspace(0.5, 2, 24, dtype="float32")
    data = x, random.integers(0, 3, 24), weight
    unrolled = recorded(net, tmp_path, data, epochs=1)
    queries = x[:3], data[1][:3]
    found = unrolled.influence(queries, verbose=0).scores
    assert unrolled.replay_error < 1e-4
    direction = np.cos(np.arange(24))
    counts = 1 + 0.05 * np.stack([direction, -direction])
    up, down = unrolled.retrain(queries, counts)
    np.testing.assert_allclose(
        -found @ direction, (up - down) / 0.1, rtol=0.02, atol=1e-4
    )
