"""An index built by several processes is that of one."""

import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.index import writing
from tests import processes
from tests.engine import scoring_worker
from tests.error_rows import row
from tests.index import index_worker
from tests.processes import end_of, free_ports, tf_config

KILLED = -signal.SIGKILL
WORKERS = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model's training run."""
    directory = tmp_path_factory.mktemp("run")
    model = scoring_worker.build()
    callback = kt.TracInCheckpoint(directory)
    model.fit(*scoring_worker.TRAIN, callbacks=[callback], epochs=2, verbose=0)
    return directory


@pytest.fixture(scope="module")
def tracin(run):
    return index_worker.tracin(run)


@pytest.fixture(scope="module")
def whole(tracin, tmp_path_factory):
    """The index that one process builds."""
    directory = tmp_path_factory.mktemp("whole") / "index"
    return directory, index_worker.build(tracin, directory)


def failed(future):
    return future.done() and (future.exception() or future.result()[0])


def test_processes_build_one_index_though_one_is_killed(
    run, tracin, whole, tmp_path, monkeypatch
):
    port = free_ports(15700, WORKERS)
    directory = tmp_path / "index"

    def start(index, *kill_in):
        return processes.start(
            "tests.index.index_worker",
            *(run, directory, tmp_path / f"notes-{index}", *kill_in),
            config=tf_config(index, WORKERS, port),
        )

    def killed_and_restarted():
        code, output = end_of(start(1, 4))  # its second shard
        assert code == KILLED, output
        assert index_worker.noted(tmp_path / "notes-1") == [1]
        return end_of(start(1))

    def look(there, *arguments):
        """The first process does not wait for what will never come."""
        wait(lambda: there() or any(map(failed, others)), *arguments)
        for other in filter(failed, others):
            pytest.fail(str(other.result()))

    wait = writing.wait_for_worker
    monkeypatch.setattr(writing, "wait_for_worker", look)
    monkeypatch.setenv("TF_CONFIG", tf_config(0, WORKERS, port))
    with ThreadPoolExecutor() as pool:
        others = [
            pool.submit(killed_and_restarted),
            pool.submit(lambda: end_of(start(2))),
        ]
        index = index_worker.build(tracin, directory)
        ends = [other.result() for other in others]
    assert [code for code, _ in ends] == [0, 0], ends
    expected, one = whole
    assert index_worker.contents(directory) == index_worker.contents(expected)
    assert index.recall == one.recall
    answer = one.query(scoring_worker.TEST, 4).proponents.ids
    for number in (1, 2):
        notes = tmp_path / f"notes-{number}"
        assert index_worker.noted(notes) == [number, number + WORKERS]
        np.testing.assert_array_equal(np.load(f"{notes}.npy"), answer)


def test_other_examples_in_another_process_are_refused(
    run, tracin, whole, tmp_path, monkeypatch
):
    def put(index, x):
        monkeypatch.setenv("TF_CONFIG", tf_config(index, 2, 1))
        method = tracin
        if x is not None:
            train = (x, index_worker.TRAIN[1])
            method = kt.TracIn(scoring_worker.build(), train, run)
        return index_worker.build(method, tmp_path / "index")

    class Stopped(Exception):
        """In place of waiting for the others."""

    def stop(there, *_):
        if not there():
            raise Stopped

    for module in ("writing", "building"):
        monkeypatch.setattr(
            f"keras_tracin.index.{module}.wait_for_worker", stop
        )
    with pytest.raises(Stopped):
        put(0, None)
    x = index_worker.TRAIN[0].copy()
    x[-1] += 1  # one of those that are compared at once
    with pytest.raises(ValueError, match=row("index-examples")):
        put(1, x)
    x = index_worker.TRAIN[0].copy()
    x[-2] += 1  # in the last shard
    with pytest.raises(Stopped):
        put(1, x)
    with pytest.raises(ValueError, match=row("index-examples", "shard 5")):
        put(0, None)


def test_several_processes_can_only_go_on(tracin, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", tf_config(0, 2, 1))
    with pytest.raises(
        ValueError, match=row("shared-build", "2 processes...resume=False")
    ):
        kt.InfluenceIndex.build(tracin, tmp_path, resume=False)


def test_an_append_is_not_shared(run, tracin, whole, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", tf_config(1, 2, 1))
    index = kt.InfluenceIndex(
        whole[0], scoring_worker.build(), method=tracin, run=run
    )
    with pytest.raises(
        ValueError, match=row("undivided-call", "first of 2 processes")
    ):
        index.append(scoring_worker.TEST)
