"""Calls of several threads on one model, and on models that share layers."""

import os
import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.models import exclusive
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.runs import TrainingRun, run_weights
from tests.error_rows import row

PROJECTION = kt.TensorSketch(16, seed=1)


def build():
    keras.utils.set_random_seed(0)
    x = keras.Input((5,))
    hidden = keras.layers.Dense(4, activation="tanh")(x)
    model = keras.Model(x, keras.layers.Dense(3)(hidden))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05), loss)
    # Another model of the same layers, and so of the same weights.
    other = keras.Model(x, model(x))
    other.compile(loss=loss)
    return model, other


def examples(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 5)).astype("float32")
    return x, rng.integers(0, 3, count)


TRAIN, TEST = examples(60, 0), examples(3, 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    models = build()
    callback = kt.TracInCheckpoint(directory)
    models[0].fit(*TRAIN, epochs=2, callbacks=[callback], verbose=0)
    models[1].save_weights(directory / "other.weights.h5")
    models[0].fit(*TRAIN, epochs=1, verbose=0)
    return (*models, TrainingRun(directory))


@pytest.fixture(scope="module")
def index(trained, tmp_path_factory):
    model, _, run = trained
    index = kt.InfluenceIndex.build(
        kt.TracIn(model, TRAIN, run),
        tmp_path_factory.mktemp("index"),
        projection=PROJECTION,
    )
    index.query(TEST, k=3)
    return index


def calls(model, other, run, index):
    """What threads do at the same time, each with an object of its own."""
    others_run = TrainingRun.from_weights(
        [run.directory / "other.weights.h5"], 0.1
    )

    return {
        "optimizer": lambda: (
            kt.TracIn(model, TRAIN, run, optimizer_aware=True)
            .influence(TEST, verbose=0)
            .scores
        ),
        "shared layers": lambda: (
            kt.TracIn(other, TRAIN, others_run).self_influence(verbose=0).scores
        ),
        "trak": lambda: (
            kt.TRAK(model, TRAIN, run, projection=PROJECTION)
            .influence(TEST, verbose=0)
            .scores
        ),
        "query": lambda: index.query(TEST, k=3).proponents.scores,
    }


MAKING = {
    "TracIn": lambda model, run: kt.TracIn(
        model, TRAIN, run, query_loss="margin"
    ),
    "influence functions": lambda model, run: kt.InfluenceFunctions(
        model, TRAIN, damping=0.1, query_loss="margin"
    ),
    "TRAK": lambda model, run: kt.TRAK(
        model, TRAIN, run, projection=PROJECTION
    ),
    "representer points": lambda model, run: kt.RepresenterPoints(
        model, TRAIN, l2=0.1, verbose=0
    ),
}


@pytest.mark.filterwarnings("ignore:TracIn was given the final checkpoint")
@pytest.mark.parametrize("make", MAKING.values(), ids=MAKING)
def test_a_method_is_made_with_the_model_for_itself(trained, make):
    """Another thread that watches the model's layers would see its calls."""
    model, _, run = trained
    alone, call = [], model.call

    def watched(*args, **options):
        alone.append(exclusive_access._lock._is_owned())
        return call(*args, **options)

    model.call = watched
    try:
        make(model, run)
    finally:
        del model.call
    assert alone
    assert all(alone)


@pytest.mark.filterwarnings("ignore:TracIn was given the final checkpoint")
def test_calls_of_several_threads_are_those_of_one(trained, index):
    model, other, run = trained
    before = [v.numpy() for v in model.variables]
    work = calls(model, other, run, index)
    expected = {name: call() for name, call in work.items()}

    with ThreadPoolExecutor(8) as pool:
        futures = [(name, pool.submit(call)) for name, call in work.items()]
    for name, future in futures:
        np.testing.assert_array_equal(future.result(), expected[name], name)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    assert "call" not in vars(model.layers[1])


def test_threads_share_one_object(trained):
    model, _, run = trained
    tracin = kt.TracIn(model, TRAIN, run)
    with ThreadPoolExecutor(4) as pool:
        futures = [
            pool.submit(tracin.influence, TEST, verbose=0) for _ in range(4)
        ]
    expected = kt.TracIn(model, TRAIN, run).influence(TEST, verbose=0).scores
    for future in futures:
        np.testing.assert_array_equal(future.result().scores, expected)


def test_a_query_does_not_wait_for_a_call_that_scores(trained, index):
    model, _, run = trained
    expected = index.query(TEST, k=3)
    with ThreadPoolExecutor(1) as pool, run_weights(model) as load:
        load(run[0])  # not the weights that the query takes
        queries = pool.submit(index.query, TEST, k=3).result(timeout=60)
    np.testing.assert_array_equal(
        queries.proponents.scores, expected.proponents.scores
    )


def test_a_query_waits_where_it_has_to_be_traced(trained, index):
    x, y = TEST
    weighted = (x, y, np.ones(len(x), "float32"))
    expected = index.query(TEST, k=3)
    with ThreadPoolExecutor(1) as pool:
        with exclusive_access:
            query = pool.submit(index.query, weighted, k=3)
            with pytest.raises(TimeoutError):
                query.result(timeout=0.2)
        np.testing.assert_allclose(
            query.result().proponents.scores,
            expected.proponents.scores,
            rtol=1e-5,
        )


@pytest.fixture
def held_elsewhere():
    """The lock is another thread's for the length of a test."""
    taken, done = threading.Event(), threading.Event()

    def hold():
        with exclusive_access:
            taken.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    yield
    done.set()
    thread.join()


def test_waiting_is_announced_and_ends_by_ctrl_c(
    trained, held_elsewhere, monkeypatch, capsys
):
    model, _, _ = trained
    monkeypatch.setattr(exclusive, "_PATIENCE", 0.05)
    main = threading.get_ident()
    timer = threading.Timer(0.5, signal.pthread_kill, [main, signal.SIGINT])
    # A process in the background ignores Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt), run_weights(model):
            pass
    finally:
        signal.signal(signal.SIGINT, before)
    assert "Waiting for another thread" in capsys.readouterr().out


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked")
def test_a_forked_process_does_not_wait_for_threads_it_has_not(held_elsewhere):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os._exit(0 if exclusive_access._lock.acquire(timeout=10) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_exception_lets_go(trained):
    model, _, run = trained
    with pytest.raises(ValueError, match="NaN"):
        kt.TracIn(model, (TRAIN[0] * np.nan, TRAIN[1]), run).self_influence()
    with ThreadPoolExecutor(1) as pool:
        lock = exclusive_access._lock
        assert pool.submit(lock.acquire, timeout=1).result()
        pool.submit(lock.release).result()


def test_training_while_weights_are_lent_is_an_error(trained):
    model, _, run = trained
    before = [v.numpy() for v in model.variables]
    model.compile("sgd", model.loss)
    x, y = TRAIN

    def lend():
        with run_weights(model) as load, ThreadPoolExecutor(1) as pool:
            load(run[0])
            pool.submit(model.train_on_batch, x, y).result()

    with pytest.raises(RuntimeError, match="what was trained is lost"):
        lend()
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_training_that_was_lent_nothing_is_not_lost():
    model, _ = build()
    trained = []

    def lend():
        with run_weights(model):
            model.train_on_batch(*TRAIN)
            trained.extend(v.numpy() for v in model.variables)

    with pytest.raises(
        RuntimeError, match=row("trained-meanwhile", "went from update 0 to 1")
    ):
        lend()
    for variable, value in zip(model.variables, trained, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
