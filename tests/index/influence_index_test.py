"""Indexes of influence functions by EK-FAC, and of TRAK."""

import shutil

import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.index.store import Store
from tests.error_rows import row
from tests.index.network import (
    MORE,
    NUM_TRAIN,
    NUM_WEIGHTS,
    TEST,
    TRAIN,
    all_scores,
    change_a_bit,
    contents,
    same,
    train_twice,
)

pytestmark = pytest.mark.filterwarnings("ignore:The model has not converged")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_twice(tmp_path_factory.mktemp)


def ekfac(model, run=None, train=TRAIN, **options):
    options = {"damping": 0.1, **options}
    method = kt.InfluenceFunctions(model, train, run=run, **options)
    return method.within(shard=1)


def trak(model, runs, train=TRAIN, **options):
    options = {"projection": kt.TensorSketch(24), **options}
    return kt.TRAK(model, train, runs, **options).within(shard=1)


LOGRA = {
    "projection": kt.FactoredProjection(9, joint=False),
    "output": "loss",
    "damping": 0.1,
}
METHODS = {
    "EK-FAC": lambda model, runs: ekfac(model),
    "EK-FAC, relative damping": lambda model, runs: ekfac(
        model, damping="auto", solver=kt.EKFAC(damping="relative")
    ),
    "EK-FAC of a run": lambda model, runs: ekfac(model, runs[0]),
    "TRAK": lambda model, runs: trak(model, runs[0]),
    "TRAK of two runs": lambda model, runs: trak(model, runs),
    "LoGra": lambda model, runs: trak(model, runs[1], **LOGRA),
}


@pytest.mark.parametrize("make", METHODS.values(), ids=list(METHODS))
def test_an_index_has_the_scores_of_its_method(make, trained, tmp_path):
    model, runs = trained
    method = make(model, runs)
    expected = method.top_k(TEST, 6, verbose=0)
    built = kt.InfluenceIndex.build(method, tmp_path / "index")
    same(built.query(TEST, 6), expected, rtol=1e-3)
    opened = kt.InfluenceIndex(tmp_path / "index", model)
    same(opened.query(TEST, 6), expected, rtol=1e-3)
    with_method = kt.InfluenceIndex(
        tmp_path / "index", model, method=make(model, runs)
    )
    same(with_method.query(TEST, 6), expected, rtol=1e-3)
    assert opened.recall["proponents"] == opened.recall["opponents"] == 1


@pytest.mark.parametrize("name", ["EK-FAC of a run", "TRAK of two runs"])
def test_a_build_that_goes_on_has_the_same_bits(name, trained, tmp_path):
    method = METHODS[name](*trained)
    whole = tmp_path / "whole"
    kt.InfluenceIndex.build(method, whole)
    begun = shutil.copytree(whole, tmp_path / "begun")
    manifest = Store(begun).manifest
    assert manifest.num_shards == 3
    manifest.change(shards=manifest.entries[:1], finished=0, search=None)
    # Another process: what was fitted is read from the files.
    kt.InfluenceIndex.build(METHODS[name](*trained), begun)
    assert contents(begun) == contents(whole)


@pytest.mark.parametrize("name", ["EK-FAC", "TRAK of two runs"])
def test_appended_examples_are_scored_by_what_was_fitted(
    name, trained, tmp_path
):
    method = METHODS[name](*trained)
    index = kt.InfluenceIndex.build(method, tmp_path)
    before = all_scores(index)
    index.append(MORE)
    after = all_scores(index)
    np.testing.assert_allclose(
        after[:, :NUM_TRAIN], before, rtol=1e-4, atol=1e-6
    )
    # As the same examples would be scored among those that were fitted to.
    first = all_scores(index, tuple(part[:2] for part in TRAIN))
    more = all_scores(index, tuple(part[:2] for part in MORE))
    if name == "EK-FAC":  # symmetric
        np.testing.assert_allclose(
            first[:, NUM_TRAIN : NUM_TRAIN + 2].T, more[:, :2], rtol=1e-3
        )
    assert len(index) == NUM_TRAIN + len(MORE[0])


def test_fewer_directions_are_those_of_the_longest_rows(trained, tmp_path):
    model, runs = trained
    method = ekfac(model, runs[0])
    whole = kt.InfluenceIndex.build(method, tmp_path / "whole")
    rows = Store(tmp_path / "whole").shards.read(np.arange(NUM_TRAIN))
    vectors = whole._resident.vectors(next(iter(opened_batches(whole))))
    expected = 0
    for checkpoint in range(2):
        own = slice(checkpoint * NUM_WEIGHTS, (checkpoint + 1) * NUM_WEIGHTS)
        _, _, right = np.linalg.svd(rows[:, own], full_matrices=False)
        both = (side[:, own] @ right[:20].T for side in (vectors, rows))
        query, train = both
        expected += query @ train.T
    few = kt.InfluenceIndex.build(
        method, tmp_path / "few", projection=kt.TensorSketch(20)
    )
    assert "2 × 20" in repr(few)
    received = all_scores(few)
    np.testing.assert_allclose(
        received, expected, atol=1e-3 * np.abs(expected).max()
    )
    assert few.recall["proponents"] < 1


def opened_batches(index):
    return index._resident.open(TEST).batches(10)


def test_of_more_entries_than_fit_the_longest_are_taken(
    trained, tmp_path, monkeypatch
):
    from keras_tracin.methods import whitened_rows

    monkeypatch.setattr(whitened_rows, "_WIDE", 30)
    method = ekfac(trained[0])
    index = kt.InfluenceIndex.build(
        method, tmp_path, projection=kt.TensorSketch(10)
    )
    with np.load(tmp_path / "directions-000.npz") as arrays:
        assert arrays["basis"].shape == (30, 10)
        assert arrays["chosen"].shape == (30,)
    opened = kt.InfluenceIndex(tmp_path, trained[0])
    same(opened.query(TEST, 6), index.query(TEST, 6))
    assert index.recall["proponents"] > 0.5


def test_another_projection_sketches_what_is_whitened(trained, tmp_path):
    method = ekfac(trained[0])
    projection = kt.GaussianProjection(3000)
    index = kt.InfluenceIndex.build(method, tmp_path, projection=projection)
    received = all_scores(index)
    expected = method.influence(TEST, verbose=0).scores
    assert np.corrcoef(received.ravel(), expected.ravel())[0, 1] > 0.98


def test_reranked_scores_are_exact_without_another_fit(
    trained, tmp_path, monkeypatch
):
    model, runs = trained
    method = ekfac(model, runs[0])
    expected = method.top_k(TEST, 5, verbose=0)
    options = {"projection": kt.TensorSketch(20)}
    kt.InfluenceIndex.build(method, tmp_path, **options)

    def refused(self, operator):
        raise AssertionError("fitted again")

    monkeypatch.setattr(kt.EKFAC, "prepare", refused)
    other = ekfac(model, runs[0])
    index = kt.InfluenceIndex(tmp_path, model, method=other)
    same(index.query(TEST, 5, rerank=200), expected, rtol=1e-3)


def test_products_of_trak_are_not_scored_again(trained, tmp_path):
    method = METHODS["TRAK"](*trained)
    index = kt.InfluenceIndex.build(method, tmp_path)
    with pytest.raises(
        ValueError, match=row("rerank-method", "are the scores")
    ):
        index.query(TEST, 3, rerank=10)


def test_runs_can_be_moved_together(trained, tmp_path):
    model, runs = trained
    moved = [shutil.copytree(run, tmp_path / run.name) for run in runs]
    index = kt.InfluenceIndex.build(trak(model, moved), tmp_path / "index")
    elsewhere = [tmp_path / f"moved {number}" for number in range(2)]
    for old, new in zip(moved, elsewhere, strict=True):
        old.rename(new)
    with pytest.raises(ValueError, match=row("moved-run")):
        kt.InfluenceIndex(tmp_path / "index", model)
    with pytest.raises(ValueError, match=row("index-run")):
        kt.InfluenceIndex(tmp_path / "index", model, run=elsewhere[:1])
    found = kt.InfluenceIndex(tmp_path / "index", model, run=elsewhere)
    same(found.query(TEST, 5), index.query(TEST, 5))


def test_what_was_fitted_belongs_to_the_index(trained, tmp_path):
    model, runs = trained
    directory = tmp_path / "ekfac"
    kt.InfluenceIndex.build(ekfac(model), directory)
    with pytest.raises(ValueError, match=row("index-settings", "damping")):
        kt.InfluenceIndex.build(ekfac(model, damping=0.2), directory)
    own = model.get_weights()
    try:
        model.set_weights([weight + 0.01 for weight in own])
        with pytest.raises(ValueError, match="are not those that the index"):
            kt.InfluenceIndex(directory, model)
    finally:
        model.set_weights(own)
    change_a_bit(directory / "factors-000.npz")
    with pytest.raises(ValueError, match=row("damaged-index")):
        kt.InfluenceIndex(directory, model)
    directory = tmp_path / "trak"
    kt.InfluenceIndex.build(trak(model, runs[0]), directory)
    other = trak(model, runs[0], damping=2.0)
    with pytest.raises(ValueError, match=row("index-settings", "damping")):
        kt.InfluenceIndex.build(other, directory)
    change_a_bit(directory / "kernel-001.npz")
    with pytest.raises(ValueError, match=row("damaged-index")):
        kt.InfluenceIndex(directory, model)


def test_what_an_index_cannot_hold_is_refused(trained, tmp_path):
    model, runs = trained

    def refused(method, message, **options):
        with pytest.raises(ValueError, match=message):
            kt.InfluenceIndex.build(method, tmp_path, **options)

    refused(ekfac(model, relative="loss"), row("index-relative"))
    refused(
        ekfac(model),
        row("index-sides"),
        projection=kt.FactoredProjection(16, joint=False),
    )
    refused(
        ekfac(model, solver=kt.CG(), curvature="gauss_newton"),
        row("index-solver", r"solver=CG"),
    )
    refused(
        trak(model, runs[0]),
        row("index-trak-projection"),
        projection=kt.TensorSketch(16),
    )
