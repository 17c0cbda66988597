"""Representer points whose calls keep parts: killed, resumed, shared."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.engine.parts import Parts
from keras_tracin.methods import base
from tests.engine import scoring_worker
from tests.error_rows import row

TRAIN, TEST = scoring_worker.examples(300, 0), scoring_worker.examples(6, 1)
# Blocks of 4 queries; with "lje" the Hessian fits as well.
OPTIONS = {"l2": 0.01, "memory_limit": 60_000, "verbose": 0}
CALLS = ("influence", "top_k", "class_scores")


@pytest.fixture(scope="module", params=["l2", "lje"])
def points(request):
    model = scoring_worker.build()
    return kt.RepresenterPoints(model, TRAIN, method=request.param, **OPTIONS)


def answer(points, call, directory=None, test=TEST, **options):
    """The arrays of one call's result."""
    options |= {"directory": directory, "verbose": 0}
    if call == "class_scores":
        return {"scores": points.class_scores(test, **options)}
    if call == "top_k":
        found = points.top_k(test, 4, target="predicted", **options)
        return scoring_worker.arrays_of(found)
    found = points.influence(test, **options)
    assert found.query_ids.tolist() == list(range(len(test[0])))
    assert found.train_ids.tolist() == list(range(len(TRAIN[0])))
    return {"scores": found.scores}


def check(found, expected):
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6)


@pytest.fixture
def written(monkeypatch):
    """The parts that are written, as they are."""
    written, put = [], Parts.put

    def spy(self, block, chunk, *args, **kwargs):
        put(self, block, chunk, *args, **kwargs)
        written.append((block, chunk))

    monkeypatch.setattr(Parts, "put", spy)
    return written


@pytest.mark.parametrize("call", CALLS)
def test_scores_from_parts_are_those_without(points, call, tmp_path, written):
    whole = answer(points, call)
    check(answer(points, call, tmp_path), whole)
    assert {block for block, _ in written} == {0, 1}
    assert len(written) == len(set(written)) > 10
    before = len(written)
    found = answer(points, call, tmp_path)
    check(found, whole)
    assert len(written) == before
    if call != "top_k":
        assert isinstance(found["scores"], np.memmap)
        assert not list(tmp_path.glob("part-*"))


@pytest.mark.parametrize("call", CALLS)
def test_a_call_goes_on_where_it_was_stopped(
    points, call, tmp_path, written, monkeypatch
):
    put = Parts.put

    def stop(self, *args, **kwargs):
        if len(written) == 3:
            raise KeyboardInterrupt
        put(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "put", stop)
        with pytest.raises(KeyboardInterrupt):
            answer(points, call, tmp_path)
    resumed = answer(points, call, tmp_path)
    assert len(written) == len(set(written)) > 3
    whole = answer(points, call, tmp_path / "again")
    for name, array in whole.items():
        np.testing.assert_array_equal(resumed[name], array)


def test_workers_share_the_scores(points, tmp_path, written, monkeypatch):
    here = threading.local()
    by_worker = {0: set(), 1: set()}
    wants = Parts.wants

    def spy(self, block, chunk, digest):
        wanted = wants(self, block, chunk, digest)
        if wanted:
            by_worker[here.index].add(chunk)
        return wanted

    monkeypatch.setattr(Parts, "wants", spy)
    monkeypatch.setattr(base, "worker_of", lambda strategy: (here.index, 2))
    expected = answer(points, "influence")

    def work(index):
        here.index = index
        return answer(points, "influence", tmp_path)

    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(work, range(2)):
            check(found, expected)
    assert len(written) == len(set(written))
    for index, chunks in by_worker.items():
        assert chunks
        assert all(chunk % 2 == index for chunk in chunks)


def test_parts_of_another_call_are_not_taken(points, tmp_path):
    answer(points, "influence", tmp_path)
    with pytest.raises(
        ValueError, match=row("other-parts", "target='predicted'")
    ):
        answer(points, "influence", tmp_path, target="predicted")
    x, y = TEST
    with pytest.raises(ValueError, match=row("other-parts", "test=")):
        answer(points, "influence", tmp_path, test=(x + 1, y))
    with pytest.raises(ValueError, match=row("other-parts", "call=")):
        answer(points, "class_scores", tmp_path)
    x, y = TRAIN
    model = scoring_worker.build()
    other = kt.RepresenterPoints(model, (x + 1, y), **OPTIONS)
    with pytest.raises(ValueError, match=r"another call.*(kind|train)="):
        answer(other, "influence", tmp_path)
    model.layers[0].kernel.assign(2 * model.layers[0].kernel)
    other = kt.RepresenterPoints(model, TRAIN, **OPTIONS)
    with pytest.raises(ValueError, match=r"another call.*(kind|weights)="):
        answer(other, "influence", tmp_path)


def test_workers_of_a_strategy_need_a_directory(monkeypatch):
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    with strategy.scope():
        model = scoring_worker.build()
    points = kt.RepresenterPoints(model, TRAIN, strategy=strategy, **OPTIONS)
    monkeypatch.setattr(
        "keras_tracin.engine.distribution.worker_of", lambda _: (1, 2)
    )
    for call in CALLS:
        with pytest.raises(
            ValueError,
            match=row("no-common-directory", "2 processes...`directory=`"),
        ):
            answer(points, call)
