"""Rows in float16 and int8: what they hold, and what rounding loses."""

import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.index.rounding import Kept, rounded
from keras_tracin.index.shards import restored
from keras_tracin.index.store import Store
from tests.error_rows import row
from tests.index.network import (
    MORE,
    NUM_TRAIN,
    TRAIN,
    all_scores,
    contents,
    train_twice,
)

PROJECTION = kt.GaussianProjection(16, seed=2)
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(50, 30)).astype(np.float32)
ROWS *= 10 ** RNG.uniform(-4, 6, (50, 1)).astype(np.float32)


def test_int8_is_within_half_a_step_of_each_row():
    ROWS[3] = 0
    arrays = rounded(ROWS, "int8")
    assert arrays["rows"].dtype == np.int8
    assert arrays["scales"].shape == (50,)
    back = restored(arrays["rows"], arrays["scales"])
    steps = np.abs(ROWS).max(axis=1, keepdims=True) / 127
    assert (np.abs(back - ROWS) <= 0.501 * steps).all()
    np.testing.assert_array_equal(back[3], 0)


def test_what_is_kept_beside_rounded_rows_counts_as_their_size():
    vectors = RNG.normal(size=(20, 30)).astype(np.float32)
    for dtype in ("float16", "int8"):
        kept = Kept(dtype, vectors)
        arrays = kept.arrays({"rows": ROWS / 1e6}, np.arange(50))
        del arrays["ids"]
        nbytes = sum(array.nbytes for array in arrays.values())
        assert 50 * kept.bytes_of_row(30) == nbytes
    assert Kept("float32").bytes_of_row(30) == 120


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_twice(tmp_path_factory.mktemp)


@pytest.fixture(scope="module")
def tracin(trained):
    model, runs = trained
    return kt.TracIn(model, TRAIN, runs[0]).within(shard=1)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_an_index_measures_what_rounding_loses(dtype, tracin, tmp_path):
    options = {"projection": PROJECTION}
    plain = kt.InfluenceIndex.build(tracin, tmp_path / "plain", **options)
    index = kt.InfluenceIndex.build(
        tracin, tmp_path / dtype, dtype=dtype, **options
    )
    expected, received = all_scores(plain), all_scores(index)
    correlation = [
        np.corrcoef(a, b)[0, 1] for a, b in zip(expected, received, strict=True)
    ]
    assert 0.999 < min(correlation) < 1
    assert "rounding" not in plain.recall
    queries = Store(tmp_path / dtype).manifest.get("queries")
    train, rough = (
        Store(tmp_path / name).shards.read(np.arange(NUM_TRAIN))
        for name in ("plain", dtype)
    )
    truth, found = train[queries] @ train.T, train[queries] @ rough.T
    shares = [
        len(set(without(a, own)[:10]) & set(without(b, own)[:10])) / 10
        for a, b, own in zip(truth, found, queries, strict=True)
    ]
    rounding = index.recall["rounding"]
    assert rounding["proponents"] == pytest.approx(np.mean(shares))
    correlations = [
        np.corrcoef(a, b)[0, 1] for a, b in zip(truth, found, strict=True)
    ]
    assert rounding["correlation"] == pytest.approx(np.mean(correlations))
    assert f"correlation of scores {rounding['correlation']:.4f}" in repr(index)


def without(scores, own):
    return [at for at in np.argsort(-scores).tolist() if at != own]


def test_int8_is_opened_resumed_and_appended_to(trained, tracin, tmp_path):
    options = {"projection": PROJECTION, "dtype": "int8"}
    whole, begun = tmp_path / "whole", tmp_path / "begun"
    kt.InfluenceIndex.build(tracin, whole, **options)
    kt.InfluenceIndex.build(tracin, begun, **options)
    manifest = Store(begun).manifest
    manifest.change(shards=manifest.entries[:1], finished=0, search=None)
    kt.InfluenceIndex.build(tracin, begun, **options)
    assert contents(begun) == contents(whole)
    opened = kt.InfluenceIndex(whole, trained[0], method=tracin)
    built = kt.InfluenceIndex(begun, trained[0], method=tracin)
    np.testing.assert_array_equal(all_scores(opened), all_scores(built))
    before = all_scores(opened)
    opened.append(MORE)
    np.testing.assert_array_equal(all_scores(opened)[:, :NUM_TRAIN], before)
    assert opened.recall["rounding"]["correlation"] > 0.999


@pytest.mark.parametrize("kind", ["exact", "flat"])
def test_both_ways_to_read_rows_restore_them(kind, tracin, tmp_path):
    kt.InfluenceIndex.build(
        tracin, tmp_path, projection=PROJECTION, dtype="int8", search=kind
    )
    for sparing in (False, True):
        shards = Store(tmp_path, sparing=sparing).shards
        blocks = np.concatenate([rows for _, rows in shards.blocks()])
        places = np.array([0, 5, 256, 300, NUM_TRAIN - 1])
        np.testing.assert_array_equal(shards.read(places), blocks[places])
        assert blocks.dtype == np.float32


def test_another_dtype_is_refused(tracin, tmp_path):
    with pytest.raises(ValueError, match=row("index-dtype", "int4")):
        kt.InfluenceIndex.build(tracin, tmp_path, dtype="int4")
