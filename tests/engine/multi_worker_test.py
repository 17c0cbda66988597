"""Training, and an index, by two processes of MultiWorkerMirroredStrategy."""

import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.runs import run_weights
from tests import processes
from tests.engine import scoring_worker
from tests.index import index_worker
from tests.runs import training_worker as worker

STEPS = worker.EPOCHS * worker.BATCHES


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What both processes have left behind."""
    directory = tmp_path_factory.mktemp("trained")
    port = processes.free_ports(27700, worker.WORKERS)
    started = [
        processes.start(
            "tests.runs.training_worker",
            *(index, directory),
            config=processes.tf_config(index, worker.WORKERS, port),
        )
        for index in range(worker.WORKERS)
    ]
    for process in started:
        code, output = processes.end_of(process)
        assert code == 0, output
    return directory


def test_only_the_first_worker_writes_the_run(trained):
    assert sorted(path.name for path in trained.glob("[es]*-*")) == [
        "epochs-0",
        "steps-0",
    ]
    kt.TrainingRun(trained / "epochs-0").verify()


def test_the_run_holds_what_every_worker_had(trained):
    run = kt.TrainingRun(trained / "epochs-0")
    model = scoring_worker.build()
    with run_weights(model) as load:
        saved = []
        for checkpoint in run:
            load(checkpoint)
            saved.append(
                np.concatenate([w.ravel() for w in model.get_weights()])
            )
    for index in range(worker.WORKERS):
        weights = np.load(trained / f"weights-{index}.npy")
        np.testing.assert_array_equal(np.stack(saved), weights)
    assert not np.array_equal(saved[0], saved[1])


def test_the_run_has_the_rates_of_all_steps(trained):
    expected = [float(worker.RATE(step)) for step in range(STEPS)]
    by_epochs = kt.TrainingRun(trained / "epochs-0")
    assert [each.step for each in by_epochs] == [worker.BATCHES, STEPS]
    by_steps = kt.TrainingRun(trained / "steps-0")
    saved = list(range(worker.SAVE_FREQ, STEPS + 1, worker.SAVE_FREQ))
    assert [each.step for each in by_steps] == saved
    for run in (by_epochs, by_steps):
        np.testing.assert_allclose(run.learning_rates, expected, rtol=1e-6)


def test_both_build_the_index_that_one_process_builds(trained, tmp_path):
    method = index_worker.tracin(trained / "epochs-0")
    one = index_worker.build(method, tmp_path)
    expected = index_worker.contents(tmp_path)
    found = index_worker.contents(trained / "index")
    assert found.keys() == expected.keys()
    for path in expected:
        if path.suffix == ".npy":
            assert found[path] == expected[path], path
    ids = one.query(scoring_worker.TEST, 4).proponents.ids
    for index in range(worker.WORKERS):
        np.testing.assert_array_equal(
            np.load(trained / f"ids-{index}.npy"), ids
        )
        shards = index_worker.noted(trained / f"notes-{index}")
        assert shards == list(range(index, 6, worker.WORKERS))
