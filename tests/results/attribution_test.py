"""Scores with ids: ranking, merging, files and tables."""

import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_tracin.results import (
    Attribution,
    SelfInfluence,
    TopK,
    TopKMerger,
)


def attribution(m=3, n=20, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(m, n)).astype("float32")
    return Attribution(scores, np.arange(m) + 100, np.arange(n) * 3)


def sorted_ids(scores, train_ids, k):
    """Proponents and opponents by a plain stable sort."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    worst = np.argsort(scores, axis=1, kind="stable")[:, :k]
    return train_ids[best], train_ids[worst]


def assert_same(left: TopK, right: TopK):
    for side in ("proponents", "opponents"):
        a, b = getattr(left, side), getattr(right, side)
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_array_equal(a.scores, b.scores)
    np.testing.assert_array_equal(left.query_ids, right.query_ids)


# Few different values, so that there are many ties; up to 60 columns, so that
# both ways of selecting are used.
tied_scores = st.tuples(st.integers(1, 3), st.integers(1, 60)).flatmap(
    lambda shape: st.lists(
        st.lists(st.integers(-3, 3), min_size=shape[1], max_size=shape[1]),
        min_size=shape[0],
        max_size=shape[0],
    )
)


@settings(max_examples=60, deadline=None)
@given(values=tied_scores, data=st.data())
def test_top_k_is_a_stable_sort(values, data):
    scores = np.array(values, "float32")
    k = data.draw(st.integers(1, scores.shape[1]))
    train_ids = np.arange(scores.shape[1]) * 7
    top = Attribution(scores, np.arange(len(scores)), train_ids).top_k(k)
    proponents, opponents = sorted_ids(scores, train_ids, k)
    np.testing.assert_array_equal(top.proponents.ids, proponents)
    np.testing.assert_array_equal(top.opponents.ids, opponents)
    np.testing.assert_array_equal(
        top.proponents.scores, -np.sort(-scores, axis=1)[:, :k]
    )
    np.testing.assert_array_equal(
        top.opponents.scores, np.sort(scores, axis=1)[:, :k]
    )


@settings(max_examples=60, deadline=None)
@given(values=tied_scores, data=st.data())
def test_merging_in_pieces_is_the_same_as_at_once(values, data):
    scores = np.array(values, "float32")
    m, n = scores.shape
    k = data.draw(st.integers(1, n))
    cuts = sorted(data.draw(st.sets(st.integers(1, n), max_size=5)) | {n})
    train_ids, query_ids = np.arange(n) * 7, np.arange(m)
    merger = TopKMerger(query_ids, k)
    for start, stop in zip([0, *cuts], cuts, strict=False):
        merger.add(train_ids[start:stop], scores[:, start:stop])
    whole = Attribution(scores, query_ids, train_ids).top_k(k)
    assert_same(merger.result(), whole)


def test_merging_does_not_keep_views_of_what_was_added():
    scores, ids = np.ones((1, 3), "float32"), np.arange(3)
    merger = TopKMerger(np.array([0]), 2)
    merger.add(ids, scores)
    scores[:], ids[:] = -1.0, -1
    np.testing.assert_array_equal(merger.result().proponents.ids, [[0, 1]])
    np.testing.assert_array_equal(merger.result().proponents.scores, [[1, 1]])


def test_string_ids_are_ranked_as_they_are():
    scores = Attribution(
        np.array([[1.0, 3.0, -2.0]]),
        np.array(["query"]),
        np.array(["a", "long name", "c"]),
    )
    top = scores.top_k(2)
    assert top.proponents.ids.tolist() == [["long name", "a"]]
    assert top.opponents.ids.tolist() == [["c", "a"]]


@pytest.mark.parametrize("k", [0, -1, 1.0, True, "3", None])
def test_bad_k_is_refused(k):
    with pytest.raises(ValueError, match="whole number"):
        attribution().top_k(k)


def test_k_beyond_the_examples_is_refused():
    with pytest.raises(ValueError, match="k=21 with 20 examples"):
        attribution().top_k(21)
    with pytest.raises(ValueError, match="k=21 with 20 examples"):
        TopKMerger(np.arange(2), 21, available=20)


def test_k_of_a_numpy_type_is_taken():
    assert len(attribution().top_k(np.int64(2)).proponents.ids[0]) == 2


def test_concat_puts_queries_one_after_another():
    whole = attribution(m=5)
    blocks = [
        Attribution(whole.scores[rows], whole.query_ids[rows], whole.train_ids)
        for rows in (slice(0, 2), slice(2, 5))
    ]
    joined = TopK.concat([block.top_k(4) for block in blocks])
    assert_same(joined, whole.top_k(4))
    assert len(joined) == 5


def test_scores_must_fit_their_ids():
    with pytest.raises(ValueError, match=r"\(2, 3\).*2 query ids and 4 train"):
        Attribution(np.zeros((2, 3)), np.arange(2), np.arange(4))


def test_repr_gives_the_sizes():
    assert "3 queries to 20 training" in repr(attribution())


def test_results_are_printed_without_their_arrays():
    top = attribution().top_k(2)
    expected = "<TopK of 3 queries: 2 proponents and opponents of each>"
    assert repr(top) == expected
    assert repr(top.opponents) == (
        "<Ranking of 2 training examples for each of 3 queries>"
    )
    scores = SelfInfluence(np.zeros(4), np.arange(4))
    assert repr(scores) == "<SelfInfluence of 4 training examples>"


def test_top_k_prints_ids_and_scores_of_the_first_queries():
    scores = np.array([[12.345, -0.5, 0.25]])
    top = Attribution(scores, np.array(["q"]), np.array(["a", "b", "c"]))
    assert str(top.top_k(2)).splitlines()[1:] == [
        "query q",
        "  proponents: a (+12.3), c (+0.25)",
        "  opponents:  b (-0.5), c (+0.25)",
    ]
    lines = str(attribution(m=7).top_k(6)).splitlines()
    assert len(lines) == 1 + 5 * 3 + 1
    assert lines[-1] == "… and 2 more queries"
    assert lines[2].endswith(", …")
    assert lines[2].count("(") == 5


@pytest.mark.parametrize("kind", ["int", "str"])
def test_attribution_survives_its_file(tmp_path, kind):
    scores = np.random.default_rng(0).normal(size=(2, 3)).astype("float32")
    ids = [np.arange(2), np.arange(3)]
    if kind == "str":
        ids = [np.array(["a", "é"]), np.array(["x", "yy", "zzz"])]
    Attribution(scores, *ids).save(tmp_path / "scores.npz")
    loaded = Attribution.load(str(tmp_path / "scores.npz"))
    for name, expected in zip(
        ("scores", "query_ids", "train_ids"), (scores, *ids), strict=True
    ):
        value = getattr(loaded, name)
        np.testing.assert_array_equal(value, expected)
        assert value.dtype == expected.dtype


def test_top_k_saves_and_loads_the_same(tmp_path):
    saved = attribution().top_k(4)
    saved.save(tmp_path / "top.npz")
    assert_same(TopK.load(tmp_path / "top.npz"), saved)
    with pytest.raises(ValueError, match="expected"):
        Attribution.load(tmp_path / "top.npz")


def test_self_influence_survives_its_file(tmp_path):
    saved = SelfInfluence(np.array([1.0, 2.5]), np.array(["a", "b"]))
    saved.save(tmp_path / "self.npz")
    loaded = SelfInfluence.load(tmp_path / "self.npz")
    np.testing.assert_array_equal(loaded.scores, saved.scores)
    np.testing.assert_array_equal(loaded.ids, saved.ids)


def test_a_file_keeps_the_name_it_was_given(tmp_path):
    attribution().save(tmp_path / "scores")
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]
    assert Attribution.load(tmp_path / "scores").scores.shape == (3, 20)


def test_another_kind_of_file_is_refused(tmp_path):
    attribution().save(tmp_path / "scores.npz")
    with pytest.raises(ValueError, match=r"expected.*'ids', 'scores'"):
        SelfInfluence.load(tmp_path / "scores.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    with pytest.raises(ValueError, match=r"text\.npz"):
        Attribution.load(tmp_path / "text.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"array\.npy"):
        Attribution.load(tmp_path / "array.npy")


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="lost"):
        Attribution.load(tmp_path / "lost.npz")


def test_pickled_objects_are_not_read(tmp_path):
    np.savez(
        tmp_path / "scores.npz",
        scores=np.array([[{}]], dtype=object),
        query_ids=np.arange(1),
        train_ids=np.arange(1),
    )
    with pytest.raises(ValueError, match="allow_pickle"):
        Attribution.load(tmp_path / "scores.npz")


def test_failure_leaves_the_earlier_file_and_nothing_else(
    tmp_path, monkeypatch
):
    first = attribution()
    first.save(tmp_path / "scores.npz")

    def disk_full(file, **arrays):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", disk_full)
    with pytest.raises(OSError, match="no space left"):
        attribution(seed=1).save(tmp_path / "scores.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["scores.npz"]
    loaded = Attribution.load(tmp_path / "scores.npz")
    np.testing.assert_array_equal(loaded.scores, first.scores)


def test_attribution_as_a_table():
    scores = attribution(m=2, n=3)
    table = scores.to_dataframe()
    assert table.index.name == "query_id"
    assert table.columns.name == "train_id"
    assert table.loc[101, 6] == scores.scores[1, 2]


def test_top_k_as_a_table():
    scores = Attribution(
        np.array([[1.0, 3.0, -2.0], [0.0, -1.0, 5.0]]),
        np.array([7, 8]),
        np.array(["a", "b", "c"]),
    )
    expected = pd.DataFrame(
        [
            (7, "proponent", 1, "b", 3.0),
            (7, "proponent", 2, "a", 1.0),
            (8, "proponent", 1, "c", 5.0),
            (8, "proponent", 2, "a", 0.0),
            (7, "opponent", 1, "c", -2.0),
            (7, "opponent", 2, "a", 1.0),
            (8, "opponent", 1, "b", -1.0),
            (8, "opponent", 2, "a", 0.0),
        ],
        columns=["query_id", "side", "rank", "train_id", "score"],
    )
    pd.testing.assert_frame_equal(
        scores.top_k(2).to_dataframe(), expected, check_dtype=False
    )


def test_self_influence_as_a_table_and_ranked():
    influence = SelfInfluence(
        np.array([1.0, 5.0, 1.0, 2.0]), np.array([10, 11, 12, 13])
    )
    assert len(influence) == 4
    assert influence.to_dataframe().loc[13, "self_influence"] == 2.0
    ranked = influence.ranking()
    assert ranked.ids.tolist() == [11, 13, 10, 12]
    assert ranked.scores.tolist() == [5.0, 2.0, 1.0, 1.0]


def test_the_mean_of_several_trainings():
    ids = np.arange(2), np.arange(3)
    one, other = np.ones((2, 3)), np.arange(6.0).reshape(2, 3)
    found = Attribution.mean([Attribution(one, *ids), Attribution(other, *ids)])
    np.testing.assert_allclose(found.scores, (one + other) / 2)
    assert found.train_ids.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="differ in `train_ids`"):
        Attribution.mean(
            [
                Attribution(one, *ids),
                Attribution(other, ids[0], ids[1] + 1),
            ]
        )
    with pytest.raises(ValueError, match="Received: none"):
        Attribution.mean([])


def test_a_data_frame_without_pandas_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        attribution().to_dataframe()
