"""Parts of calls on disk: killed, resumed, shared among processes."""

import errno

import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.engine.distribution import check_alone, worker_of
from keras_tracin.engine.parts import Parts
from keras_tracin.storage import files
from tests import processes
from tests.engine import scoring_worker as worker
from tests.error_rows import row
from tests.processes import end_of, free_ports, tf_config

CALLS = ("influence", "top_k", "self_influence")
KILLED = -9


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model's training run."""
    directory = tmp_path_factory.mktemp("run")
    model = worker.build()
    callback = kt.TracInCheckpoint(directory)
    model.fit(*worker.TRAIN, epochs=2, callbacks=[callback], verbose=0)
    return directory


@pytest.fixture(scope="module")
def tracin(run):
    return worker.tracin(run)


def start(
    run,
    directory,
    call,
    *,
    index=0,
    workers=1,
    kill_after=0,
    port=None,
    strategy=None,
):
    """A process that makes one call and writes what it returns."""
    arguments = [run, directory, call, directory / f"{index}.npz", kill_after]
    if strategy is not None:
        arguments.append(strategy)
    config = None if workers == 1 else tf_config(index, workers, port)
    return processes.start(
        "tests.engine.scoring_worker", *arguments, config=config
    )


def parts_in(directory):
    return sorted(path.name for path in directory.glob("part-*.npz"))


@pytest.mark.parametrize("call", CALLS)
def test_scores_from_parts_are_those_without(tracin, tmp_path, call):
    whole = worker.arrays_of(worker.answer(tracin, call))
    for _ in range(2):  # the second time all parts are there
        found = worker.answer(tracin, call, tmp_path)
        for name, array in worker.arrays_of(found).items():
            np.testing.assert_allclose(array, whole[name], rtol=1e-5)
        if call == "influence":
            assert isinstance(found.scores, np.memmap)
            assert not parts_in(tmp_path)
        else:
            assert len(parts_in(tmp_path)) > 2


@pytest.mark.parametrize("call", ["influence", "self_influence"])
def test_a_killed_call_goes_on_with_the_same_bits(
    run, tracin, tmp_path, call, monkeypatch
):
    code, output = end_of(start(run, tmp_path / "a", call, kill_after=2))
    assert code == KILLED, output
    kept = parts_in(tmp_path / "a")
    assert len(kept) == 2
    written = []
    put = Parts.put

    def spy(self, block, chunk, *args, **kwargs):
        written.append((block, chunk))
        put(self, block, chunk, *args, **kwargs)

    monkeypatch.setattr(Parts, "put", spy)
    resumed = worker.arrays_of(worker.answer(tracin, call, tmp_path / "a"))
    assert (0, 0) not in written
    assert (0, 2) in written
    whole = worker.arrays_of(worker.answer(tracin, call, tmp_path / "b"))
    for name, array in resumed.items():
        np.testing.assert_array_equal(array, whole[name])


def test_processes_share_the_work_though_one_is_killed(run, tracin, tmp_path):
    workers, port = 2, free_ports(21700, 2)
    options = {"workers": workers, "port": port}
    started = [
        start(
            run, tmp_path, "top_k", index=i, kill_after=int(i == 1), **options
        )
        for i in range(workers)
    ]
    code, output = end_of(started[1])
    assert code == KILLED, output
    started[1] = start(run, tmp_path, "top_k", index=1, **options)
    for process in started:
        code, output = end_of(process)
        assert code == 0, output
    expected = worker.arrays_of(worker.answer(tracin, "top_k"))
    for index in range(workers):
        with np.load(tmp_path / f"{index}.npz") as found:
            for name, array in expected.items():
                np.testing.assert_allclose(found[name], array, rtol=1e-5)
        own = [int(n) for n in np.load(tmp_path / f"wrote-{index}.npy")]
        assert own
        assert all(chunk % workers == index for chunk in own)


def test_workers_of_a_strategy_share_the_work(run, tracin, tmp_path):
    port = free_ports(24700, 2)
    started = [
        start(
            run,
            tmp_path,
            "influence",
            index=index,
            workers=2,
            port=port,
            strategy="MultiWorkerMirroredStrategy",
        )
        for index in range(2)
    ]
    for process in started:
        code, output = end_of(process)
        assert code == 0, output
    expected = worker.answer(tracin, "influence").scores
    for index in range(2):
        with np.load(tmp_path / f"{index}.npz") as found:
            np.testing.assert_allclose(found["scores"], expected, rtol=1e-5)
        own = [int(n) for n in np.load(tmp_path / f"wrote-{index}.npy")]
        assert own
        assert all(chunk % 2 == index for chunk in own)


def test_workers_need_a_directory_in_common(run, monkeypatch):
    tracin = worker.tracin(run)
    monkeypatch.setenv("TF_CONFIG", tf_config(1, 2, 1))
    assert worker_of(None) == (1, 2)
    tracin.self_influence(verbose=0)  # without a strategy, all by itself
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    monkeypatch.setattr(
        tf.distribute.OneDeviceStrategy, "cluster_resolver", resolver
    )
    with pytest.raises(
        ValueError,
        match=row("no-common-directory", "2 processes...`directory=`"),
    ):
        check_alone(strategy)


def test_parts_of_another_call_are_not_taken(tracin, run, tmp_path):
    tracin.self_influence(directory=tmp_path, verbose=0)
    with pytest.raises(
        ValueError, match=row("other-parts", "call='top_k'...self_")
    ):
        tracin.top_k(worker.TEST, 3, directory=tmp_path, verbose=0)
    x, y = worker.TRAIN
    other = kt.TracIn(worker.build(), (x[::-1], y), run)
    with pytest.raises(ValueError, match=row("other-examples")):
        other.self_influence(directory=tmp_path, verbose=0)
    last = kt.TrainingRun(run).select([1])
    with pytest.warns(UserWarning, match="final checkpoint only"):
        other = kt.TracIn(worker.build(), worker.TRAIN, last)
    with pytest.raises(
        ValueError,
        match=row("other-parts", "Received checkpoints=...another dir"),
    ):
        other.self_influence(directory=tmp_path, verbose=0)


def test_other_queries_are_not_answered_from_parts(tracin, tmp_path):
    tracin.influence(worker.TEST, directory=tmp_path, verbose=0)
    x, y = worker.TEST
    with pytest.raises(ValueError, match=row("other-queries")):
        tracin.influence((x + 1, y), directory=tmp_path, verbose=0)


def test_a_damaged_part_is_named(tracin, tmp_path):
    tracin.self_influence(directory=tmp_path, verbose=0)
    path = tmp_path / parts_in(tmp_path)[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=row("damaged-part", "000001.npz is")):
        tracin.self_influence(directory=tmp_path, verbose=0)
    path.unlink()
    tracin.self_influence(directory=tmp_path, verbose=0)


@pytest.mark.parametrize("name", ["scores.npy", "ids.npz"])
def test_a_missing_matrix_is_named(tracin, tmp_path, name):
    tracin.influence(worker.TEST, directory=tmp_path, verbose=0)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=row("matrix-missing", name)):
        tracin.influence(worker.TEST, directory=tmp_path, verbose=0)


def test_a_file_is_no_directory(tracin, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("kept")
    with pytest.raises(ValueError, match=row("directory-file", "notes.txt")):
        tracin.self_influence(directory=path, verbose=0)
    assert path.read_text() == "kept"


def test_a_damaged_job_is_named(tracin, tmp_path):
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(ValueError, match=r"job.json cannot be read.*Delete"):
        tracin.self_influence(directory=tmp_path, verbose=0)


def test_a_sum_over_queries_keeps_no_parts(tracin, tmp_path):
    with pytest.raises(
        ValueError, match=row("aggregate-directory", "Leave out `directory")
    ):
        tracin.influence(worker.TEST, aggregate=True, directory=tmp_path)


def test_influence_functions_go_on_from_parts(tmp_path):
    model = worker.build()
    method = kt.InfluenceFunctions(
        model,
        worker.TRAIN,
        damping=10.0,
        curvature="gauss_newton",
        relative="loss",
    )
    with pytest.warns(UserWarning, match="not converged"):
        whole = method.influence(worker.TEST, verbose=0).scores
    for _ in range(2):
        found = method.influence(worker.TEST, directory=tmp_path, verbose=0)
        np.testing.assert_allclose(found.scores, whole, rtol=1e-4, atol=1e-7)
    model.layers[-1].kernel.assign(model.layers[-1].kernel + 1)
    with pytest.raises(ValueError, match=row("other-weights")):
        method.influence(worker.TEST, directory=tmp_path, verbose=0)


def test_a_full_disk_keeps_the_parts_that_are_finished(
    tracin, tmp_path, monkeypatch
):
    flush = files._flush_to_disk

    def full(path):
        if path.name == "unfinished-part-0000-000002.npz":
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_flush_to_disk", full)
        message = row(
            "parts-disk-full", "part-0000-000002.npz (... bytes)...2 finished"
        )
        with pytest.raises(OSError, match=message):
            tracin.self_influence(directory=tmp_path, verbose=0)
    assert len(parts_in(tmp_path)) == 2
    assert not list(tmp_path.glob("unfinished*"))
    scores = tracin.self_influence(directory=tmp_path, verbose=0).scores
    expected = tracin.self_influence(verbose=0).scores
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
