"""What a call is said to take, before it is made."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.engine import forecast as forecast_module
from keras_tracin.engine.blocks import blocks
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.execution import Execution
from keras_tracin.engine.forecast import forecast_plainly
from keras_tracin.engine.planning import in_words
from keras_tracin.engine.visits import PRESENT_WEIGHTS
from tests.error_rows import row

RNG = np.random.default_rng(0)
TRAIN = (
    RNG.normal(size=(30, 12, 20)).astype("float32"),
    RNG.integers(3, size=30),
)
TEST = tuple(part[:20] for part in TRAIN)


@pytest.fixture(scope="module")
def model():
    """A Dense layer that 12 positions share: the two forms differ."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((12, 20)),
            keras.layers.Dense(60, activation="tanh"),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    return model


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    paths = []
    for epoch in range(3):
        paths.append(directory / f"{epoch}.weights.h5")
        model.save_weights(paths[-1])
    return kt.TrainingRun.from_weights(paths, 0.1)


def one_second(monkeypatch):
    """Each piece of work is taken to last a second, reading aside."""
    monkeypatch.setattr(forecast_module, "_seconds", lambda work: 1.0)


def test_time_grows_with_the_work(model, run, monkeypatch):
    one_second(monkeypatch)

    def seconds(run, test=None, train=TRAIN, **options):
        return kt.TracIn(model, train, run, **options).plan(test).seconds

    sweep = 1.0  # the training examples are one batch
    assert seconds(run) == 3 * (sweep + 1)  # each is loaded in a second
    assert seconds(run[:1]) == sweep + 1
    ranking = 1.0
    assert seconds(run, TEST) == 3 * (sweep + 2) + ranking  # queries captured
    many = tuple(np.repeat(part, 4, axis=0) for part in TRAIN)
    ranking = 120 / 64  # 64 rows are timed
    assert seconds(run, many) == 3 * (sweep + 2) + ranking
    engine = Engine(model, TRAIN)
    assert forecast_plainly(engine, PRESENT_WEIGHTS).seconds == sweep


def test_each_block_of_queries_takes_its_time(model, run, monkeypatch):
    one_second(monkeypatch)
    plan = kt.TracIn(model, TRAIN, run, memory_limit=1).plan(TEST)
    assert (plan.num_queries, plan.num_blocks) == (20, 20)
    assert plan.chunk == plan.batch_size
    batches = 30 / plan.batch_size
    # Each chunk goes through all checkpoints, and is ranked, before the next.
    starts = 2 * math.ceil(batches)
    assert plan.seconds == pytest.approx(
        20 * (3 * (batches + starts) + batches)
    )
    assert "20 queries (in 20 blocks)" in str(plan)


def test_reading_counts_once_however_many_checkpoints(model, run, monkeypatch):
    calls = []
    engine = Engine(model, TRAIN)
    monkeypatch.setattr(
        forecast_module,
        "_seconds",
        lambda work: calls.append(work()) or 1.0 + (len(calls) == 1),
    )
    rates = dict.fromkeys(run, 0.1)
    found = forecast_plainly(engine, rates)
    assert found.seconds == 1 + 3 * 2


def test_data_of_unknown_size_have_no_forecast(model, run):
    endless = tf.data.Dataset.from_generator(
        lambda: zip(*TRAIN, strict=True),
        output_signature=(tf.TensorSpec([12, 20]), tf.TensorSpec([], tf.int64)),
    ).batch(10)
    plan = kt.TracIn(model, endless, run).plan(TEST)
    assert plan.seconds is None
    assert str(plan).startswith("? training examples × 20 queries")


def test_a_forecast_leaves_the_model_as_it_was(model, run):
    before = [w * 2 for w in model.get_weights()]
    model.set_weights(before)
    plan = kt.TracIn(model, TRAIN, run).plan(TEST)
    assert plan.seconds > 0
    for left, right in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)
    with pytest.raises(ValueError, match=row("input-shape")):
        kt.TracIn(model, TRAIN, run).plan((TEST[0][..., :3], TEST[1]))


def test_blocks_of_queries_are_of_one_size(model):
    """Else the last would be small, and its time be taken for a whole one's."""
    bytes_each = Engine(model, TRAIN).train_steps.factor_bytes
    limit = Execution(memory_limit=19 * 8 * bytes_each)
    engine = Engine(model, TRAIN, execution=limit)

    def sizes_of(data):
        known = blocks(engine, data, bytes_per_query=bytes_each)
        return [len(queries.ids) for queries in known]

    assert sizes_of(TEST) == [10, 10]  # not 19 and 1
    assert sizes_of(TRAIN) == [15, 15]


def test_scarce_memory_is_met_by_the_smallest_form(model, run):
    """12 positions: 12·80 numbers as factors, 1,200 in full."""
    ample = kt.TracIn(model, TRAIN, run)
    scarce = kt.TracIn(model, TRAIN, run, memory_limit=8 * 4 * 2_000)
    assert not ample.plan(TEST).sparing
    assert scarce.plan(TEST).sparing
    assert "smallest form" in str(scarce.plan(TEST))
    np.testing.assert_allclose(
        scarce.influence(TEST, verbose=0).scores,
        ample.influence(TEST, verbose=0).scores,
        rtol=1e-4,
        atol=1e-6,
    )


def test_the_forms_are_chosen_by_multiplications_in_all(model, run):
    """Where all queries fit at once, the fast form is the cheaper one."""
    engine = Engine(model, TRAIN)
    fast, small = (engine.train_steps.work(s) for s in (False, True))
    assert small.nbytes < fast.nbytes
    assert small.pairing > fast.pairing
    assert small.making < fast.making


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "under a second"),
        (50, "about 50 s"),
        (700, "about 12 min"),
        (9000, "about 2.5 h"),
    ],
)
def test_times_are_said_roughly(seconds, words):
    assert in_words(seconds) == words


def test_batches_tell_about_how_many_examples_there_are(model, run):
    data = tf.data.Dataset.from_tensor_slices(TRAIN).batch(8)
    plan = kt.TracIn(model, data, run).plan()
    assert (plan.num_train, plan.exact) == (32, False)
    assert str(plan).startswith("about 32 training examples")
    assert plan.seconds is not None
    assert plan.steps is not None
