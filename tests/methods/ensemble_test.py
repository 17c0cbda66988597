"""Ensembles against NumPy, over members whose scores are given."""

import dataclasses
import json

import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.data.examples import open_examples
from keras_tracin.engine.planning import Plan
from tests.error_rows import row

NUM_TRAIN, NUM_TEST = 30, 40
RNG = np.random.default_rng(0)
IDS = np.array([f"z{i}" for i in range(NUM_TRAIN)])
X = RNG.normal(size=(NUM_TEST, 2)).astype("float32")
TEST = X, np.zeros(NUM_TEST, int)


@dataclasses.dataclass
class Fixed:
    """A method whose scores are given.

    Attributes:
        scores: those of the queries in `TEST`.
        ids: ids of the training examples.
        num_train: their number, None if it does not tell.
        asked: number of queries, and directory, of each call.
    """

    scores: np.ndarray
    ids: np.ndarray = dataclasses.field(default_factory=lambda: IDS)
    num_train: int | None = NUM_TRAIN
    query_shift: int = 0
    asked: list = dataclasses.field(default_factory=list)

    def influence(self, test, *, groups=None, directory=None, verbose=1):
        ids = np.concatenate(
            [batch.ids for batch in open_examples(test, "test").batches(8)]
        )
        self.asked.append((len(ids), directory))
        return kt.Attribution(
            self.scores[ids], ids + self.query_shift, self.ids
        )

    def top_k(self, test, k=10, *, directory=None, verbose=1):
        raise AssertionError("An ensemble ranks sums.")

    def self_influence(self, *, directory=None, verbose=1):
        return kt.SelfInfluence(self.scores[0], self.ids)

    def plan(self, test=None):
        return Plan(NUM_TRAIN, NUM_TEST, 2, 8, 16, 1000, seconds=1.5)

    def among(self, ids):
        rows = np.isin(self.ids, ids)
        return dataclasses.replace(
            self, scores=self.scores[:, rows], ids=self.ids[rows]
        )

    def describe(self):
        return {"method": type(self).__name__, "sum": float(self.scores.sum())}


class Keeping(Fixed):
    """A method that keeps its scores, and compares them when asked again."""

    def self_influence(self, *, directory=None, verbose=1):
        kept = directory.with_suffix(".npy")
        if kept.exists() and np.any(np.load(kept) != self.scores[0]):
            raise ValueError("Other scores are kept here.")
        directory.parent.mkdir(exist_ok=True)
        np.save(kept, self.scores[0])
        return super().self_influence()

    def describe(self):
        return {"method": "Keeping"}


class Other(Fixed):
    """A method of another class."""


def fixed(seed, kind=Fixed, size=1.0, **options):
    rng = np.random.default_rng(seed)
    scores = size * rng.normal(size=(NUM_TEST, NUM_TRAIN)).astype("float32")
    return kind(scores, **options)


def scaled_mean(members):
    return np.mean(
        [m.scores / m.scores.std(axis=1, keepdims=True) for m in members],
        axis=0,
    )


def check_ranking(top, scores, k):
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(top.proponents.ids, IDS[order])
    np.testing.assert_allclose(
        top.proponents.scores, np.take_along_axis(scores, order, 1), rtol=1e-5
    )
    order = np.argsort(scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(top.opponents.ids, IDS[order])


def test_members_of_one_class_are_averaged_as_they_are():
    members = [fixed(seed) for seed in range(3)]
    ensemble = kt.Ensemble(members)
    scores = ensemble.influence(TEST, verbose=0)
    expected = kt.Attribution.mean([m.influence(TEST) for m in members])
    np.testing.assert_array_equal(scores.scores, expected.scores)
    assert scores.scores.dtype == np.float32
    np.testing.assert_array_equal(scores.train_ids, IDS)
    check_ranking(ensemble.top_k(TEST, 4, verbose=0), expected.scores, 4)
    np.testing.assert_array_equal(
        ensemble.self_influence().scores,
        np.mean([m.scores[0] for m in members], axis=0),
    )


def test_members_are_divided_by_their_deviation_for_each_query():
    members = [fixed(1), fixed(2, Other, size=1e6)]
    ensemble = kt.Ensemble(members, scale="query")
    expected = scaled_mean(members)
    scores = ensemble.influence(TEST, verbose=0).scores
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
    check_ranking(ensemble.top_k(TEST, 4, verbose=0), expected, 4)
    np.testing.assert_allclose(
        ensemble.self_influence().scores, expected[0], rtol=1e-5, atol=1e-6
    )


def test_scores_that_are_all_the_same_rank_nothing():
    members = [fixed(1), fixed(2, Other)]
    members[1].scores[:3] = 0.1
    scores = kt.Ensemble(members, scale="query").influence(TEST, verbose=0)
    np.testing.assert_allclose(
        scores.scores[:3], scaled_mean(members[:1])[:3] / 2, rtol=1e-5
    )


@pytest.mark.parametrize("scale", [None, "query"])
@pytest.mark.parametrize("num_train", [NUM_TRAIN, None])
def test_blocks_of_queries_change_nothing(scale, num_train):
    members = [fixed(seed, num_train=num_train) for seed in range(2)]
    whole = kt.Ensemble(members, scale=scale).influence(TEST, verbose=0)
    for member in members:
        member.asked.clear()
    # Room for seven queries.
    small = kt.Ensemble(
        members, scale=scale, memory_limit=4 * 7 * 12 * NUM_TRAIN
    )
    scores = small.influence(TEST, verbose=0)
    np.testing.assert_array_equal(scores.scores, whole.scores)
    np.testing.assert_array_equal(scores.query_ids, np.arange(NUM_TEST))
    sizes = [size for size, _ in members[0].asked]
    assert sum(sizes) == NUM_TEST
    assert sizes[0] == (7 if num_train else 16)
    assert max(sizes[1:]) == (7 if num_train else 16)
    assert members[1].asked == members[0].asked
    check_ranking(small.top_k(TEST, 3, verbose=0), whole.scores, 3)


def test_members_keep_parts_in_directories_of_their_own(tmp_path):
    members = [fixed(seed) for seed in range(2)]
    ensemble = kt.Ensemble(members)
    whole = ensemble.influence(TEST, verbose=0).scores
    for member in members:
        member.asked.clear()
    kept = ensemble.influence(TEST, directory=tmp_path, verbose=0)
    assert isinstance(kept.scores, np.memmap)
    np.testing.assert_array_equal(kept.scores, whole)
    for number, member in enumerate(members):
        directory = tmp_path / f"member-{number:02}"
        assert member.asked == [(NUM_TEST, directory)]
    again = ensemble.influence(TEST, directory=tmp_path, verbose=0)
    np.testing.assert_array_equal(again.scores, whole)
    top = ensemble.top_k(TEST, 3, directory=tmp_path / "top", verbose=0)
    check_ranking(top, whole, 3)
    for other, match in [
        (kt.Ensemble(members, scale="query"), "scale='query'"),
        (kt.Ensemble([*members, fixed(3)]), "members="),
    ]:
        with pytest.raises(ValueError, match=row("other-parts", match)):
            other.influence(TEST, directory=tmp_path, verbose=0)


def test_a_k_that_cannot_be_is_refused_before_members_work(tmp_path):
    members = [fixed(0)]
    for k in (0, NUM_TRAIN + 1):
        with pytest.raises(ValueError, match=row("k")):
            kt.Ensemble(members).top_k(TEST, k, directory=tmp_path / str(k))
    assert not members[0].asked


def test_groups_are_sums_of_the_mean():
    members = [fixed(1), fixed(2, Other)]
    ensemble = kt.Ensemble(members, scale="query")
    groups = {"a": IDS[:3], "b": IDS[2:9]}
    scores = ensemble.influence(TEST, groups=groups, verbose=0)
    expected = scaled_mean(members)
    np.testing.assert_allclose(
        scores.scores,
        np.stack([expected[:, :3].sum(1), expected[:, 2:9].sum(1)], axis=1),
        rtol=1e-4,
        atol=1e-5,
    )
    assert scores.train_ids.tolist() == ["a", "b"]


def test_among_is_the_ensemble_of_the_members_among():
    members = [fixed(1), fixed(2, Other)]
    ensemble = kt.Ensemble(members, scale="query").among(IDS[4:11])
    scores = ensemble.influence(TEST, verbose=0)
    np.testing.assert_array_equal(scores.train_ids, IDS[4:11])
    expected = scaled_mean([member.among(IDS[4:11]) for member in members])
    np.testing.assert_allclose(scores.scores, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=row("k", "k=8 with 7 examples")):
        ensemble.top_k(TEST, 8, verbose=0)


def test_members_that_take_no_limits_are_named():
    ensemble = kt.Ensemble([fixed(1)])
    with pytest.raises(TypeError, match="`Fixed`, which has no `within`"):
        ensemble.within(memory_limit=2**20)


def test_units_are_mixed_with_a_scale_only():
    one, other = fixed(0), fixed(1, Other)
    with pytest.raises(
        ValueError, match=row("ensemble-units", "Fixed, Other with scale=None")
    ):
        kt.Ensemble([one, other])
    scaled = kt.Ensemble([one, other], scale="query")
    plain = kt.Ensemble([fixed(2), one])
    assert kt.Ensemble([plain, one]).unit == "Fixed"
    kt.Ensemble([scaled, kt.Ensemble([other], scale="query")])
    for pair in ([plain, other], [scaled, one], [scaled, plain]):
        with pytest.raises(ValueError, match=row("ensemble-units")):
            kt.Ensemble(pair)
        kt.Ensemble(pair, scale="query")


def test_members_with_other_examples_are_refused():
    with pytest.raises(
        ValueError, match=row("ensemble-size", "[29, 30] of them")
    ):
        kt.Ensemble([fixed(0), fixed(1, num_train=29)])
    shuffled = kt.Ensemble([fixed(0), fixed(1, ids=IDS[::-1])])
    with pytest.raises(
        ValueError,
        match=row("ensemble-order", "same training examples", "'z29'"),
    ):
        shuffled.influence(TEST, verbose=0)
    with pytest.raises(
        ValueError, match=row("ensemble-order", "same training examples")
    ):
        shuffled.self_influence()
    shifted = kt.Ensemble([fixed(0), fixed(1, query_shift=1)])
    with pytest.raises(
        ValueError, match=row("ensemble-order", "same query examples")
    ):
        shifted.top_k(TEST, 2, verbose=0)


def test_what_is_no_list_of_methods_is_refused():
    with pytest.raises(TypeError, match="list of methods"):
        kt.Ensemble(fixed(0))
    with pytest.raises(TypeError, match="is a class"):
        kt.Ensemble([kt.TracIn])
    with pytest.raises(TypeError, match="no 'influence'"):
        kt.Ensemble([fixed(0), "runs/a"])
    with pytest.raises(ValueError, match="one method or more"):
        kt.Ensemble([])
    with pytest.raises(ValueError, match=r"None or 'query'.*'all'"):
        kt.Ensemble([fixed(0)], scale="all")


def test_the_plan_is_the_sum_of_the_members_plans():
    ensemble = kt.Ensemble([fixed(0), fixed(1)], memory_limit=10**9)
    plan = ensemble.plan(TEST)
    assert plan.num_checkpoints == 4
    assert plan.seconds == 3.0
    assert plan.memory >= 1000 + 4 * NUM_TRAIN * NUM_TEST
    assert "about 3 s" in str(plan)


def test_the_description_is_json_and_names_the_members():
    ensemble = kt.Ensemble([fixed(0), fixed(1)])
    described = json.loads(json.dumps(ensemble.describe()))
    assert [m["method"] for m in described["members"]] == ["Fixed", "Fixed"]
    assert repr(ensemble).startswith("Ensemble([\n")


def test_every_member_compares_what_is_kept_of_self_influence(tmp_path):
    members = [fixed(0, Keeping), fixed(1, Keeping)]
    ensemble = kt.Ensemble(members)
    before = ensemble.self_influence(directory=tmp_path, verbose=0)
    again = ensemble.self_influence(directory=tmp_path, verbose=0)
    np.testing.assert_array_equal(again.scores, before.scores)
    # `describe` does not tell, as it does not tell of labels or losses.
    members[1].scores = members[1].scores[::-1]
    with pytest.raises(ValueError, match="Other scores are kept"):
        ensemble.self_influence(directory=tmp_path, verbose=0)
