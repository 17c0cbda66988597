"""The calls that all methods have in common, on two small methods."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.data.batches import Batch
from keras_tracin.data.examples import open_examples
from keras_tracin.engine.chunks import Chunk
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.passes import norms_pass, products_pass
from keras_tracin.engine.planning import Plan
from keras_tracin.methods.base import Method, NoSelfInfluence
from keras_tracin.runs.manifest import weights_digest
from tests.error_rows import row

NUM_TRAIN, NUM_TEST = 20, 3
RNG = np.random.default_rng(0)
TRAIN = (
    RNG.normal(size=(NUM_TRAIN, 4)).astype("float32"),
    RNG.integers(0, 3, NUM_TRAIN),
)
TEST = (
    RNG.normal(size=(NUM_TEST, 4)).astype("float32"),
    RNG.integers(0, 3, NUM_TEST),
)
GROUPS = {"few": [1, 4], "one": [7], "odd": list(range(1, NUM_TRAIN, 2))}


def build():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, "softmax")]
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    return model


class Dot(Method):
    """A sweeping method: products of gradients at the present weights."""

    title = "Dot products"

    def __init__(self, model, train):
        self.engine = Engine(model, train)
        self.remember_weights()

    @property
    def settings(self):
        return {"scale": 1.0, "option": None}

    def query_pass(self, queries):
        return products_pass(self.title, queries, self.checkpoints)

    def self_pass(self):
        steps = self.engine.train_steps
        return norms_pass(self.title, steps, self.checkpoints)


class Given(Method):
    """A streaming method: scores that are there, in chunks of three."""

    title = "Given scores"

    def __init__(self, model, scores):
        self._model, self._scores = model, scores

    model = property(lambda self: self._model)
    strategy = property(lambda self: None)
    num_train = property(lambda self: self._scores.shape[1])
    no_self_influence = property(lambda self: "No such score. Use TracIn.")

    def job(self, test):
        return {"method": "Given"}

    def fingerprint(self, test):
        return {"scores": self._scores[0]}, 1e-3

    def blocks(self, test, call):
        return open_examples(test).batches(2)

    def stream(self, queries, sink, call):
        rows = self._scores[queries.ids]
        starts = range(0, self.num_train, 3)
        for number, start in enumerate(starts):
            ids = np.arange(start, min(start + 3, self.num_train))
            if sink.wants(Chunk(number, start, (Batch(ids, None),))):
                sink.add(ids, rows[:, ids])


@pytest.fixture(scope="module")
def scores():
    return Dot(build(), TRAIN).influence(TEST, verbose=0).scores


METHODS = pytest.mark.parametrize(
    "make",
    [
        lambda scores: Dot(build(), TRAIN),
        lambda scores: Dot(build(), TRAIN).within(batch_sizes=(4, 4)),
        lambda scores: Given(build(), scores),
    ],
    ids=["sweeping", "in small batches", "streaming"],
)


def summed(scores):
    return np.stack([scores[:, ids].sum(axis=1) for ids in GROUPS.values()], 1)


@METHODS
def test_groups_are_summed_with_and_without_a_directory(make, scores, tmp_path):
    method = make(scores)
    for options in ({}, {"directory": tmp_path}, {"directory": tmp_path}):
        found = method.influence(TEST, groups=GROUPS, verbose=0, **options)
        np.testing.assert_allclose(found.scores, summed(scores), atol=1e-6)
        assert found.train_ids.tolist() == list(GROUPS)
    one = method.group_influence(TEST, [1, 4], verbose=0)
    assert one.train_ids.tolist() == ["group"]
    np.testing.assert_allclose(one.scores, summed(scores)[:, :1], atol=1e-6)
    with pytest.raises(ValueError, match=row("other-parts", "groups")):
        method.influence(
            TEST, groups={"few": [1, 5]}, directory=tmp_path, verbose=0
        )
    with pytest.raises(
        ValueError, match=row("group-ids", "them: {'lost': [99]}")
    ):
        method.influence(TEST, groups={"lost": [1, 99]}, verbose=0)


@METHODS
def test_some_training_examples_have_their_columns(make, scores, tmp_path):
    ids = np.array([2, 3, 11])
    method = make(scores).among(ids)
    found = method.influence(TEST, verbose=0)
    np.testing.assert_array_equal(found.train_ids, ids)
    np.testing.assert_allclose(found.scores, scores[:, ids], atol=1e-6)
    kept = method.influence(TEST, directory=tmp_path / "a", verbose=0)
    np.testing.assert_allclose(kept.scores, scores[:, ids], atol=1e-6)
    top = method.top_k(TEST, 2, directory=tmp_path / "b", verbose=0)
    order = np.argsort(-scores[:, ids], axis=1)[:, :2]
    np.testing.assert_array_equal(top.proponents.ids, ids[order])
    with pytest.raises(ValueError, match=row("k", "not exceed")):
        method.top_k(TEST, 4, verbose=0)


@METHODS
def test_training_examples_that_are_not_there_are_an_error(make, scores):
    method = make(scores).among([3, 99, 3])
    for call in (method.influence, method.top_k):
        with pytest.raises(
            ValueError, match=row("among-ids", "[99]...not there")
        ):
            call(TEST, **({"k": 1} if call == method.top_k else {}), verbose=0)
    again = make(scores).among([3, 3]).influence(TEST, verbose=0)
    assert again.train_ids.tolist() == [3]
    few = make(scores).among([2, 3, 5])
    assert few.among([3]).influence(TEST, verbose=0).train_ids.tolist() == [3]
    with pytest.raises(ValueError, match=row("among-ids", "[7]...not there")):
        few.among([3, 7]).influence(TEST, verbose=0)


@METHODS
def test_ids_are_a_list_of_ids(make, scores):
    """A mask would be read as the ids 0 and 1, in silence."""
    method = make(scores)
    mask = np.arange(scores.shape[1]) == 2
    mask_refused, others_refused = row("ids-mask"), row("ids-list")
    for wrong, message in (
        (mask, mask_refused),
        (mask.tolist(), mask_refused),
        (3, others_refused),
        ("3", others_refused),
        (np.array([[3]]), others_refused),
        (np.int64(3), others_refused),
    ):
        with pytest.raises(ValueError, match=message):
            method.among(wrong)
        with pytest.raises(ValueError, match=message):
            method.influence(TEST, groups={"a": wrong}, verbose=0)
    with pytest.raises(ValueError, match=row("no-ids")):
        method.among([])
    alike = {3}, (3,), np.array([3]), [np.int64(3)], tf.constant([3])
    for ids in alike:
        assert method.among(ids).influence(TEST, verbose=0).train_ids == [3]


def test_groups_whose_names_would_be_the_same_are_refused():
    method = Dot(build(), TRAIN)
    for names in ([1, "1"], [None, "a"], [(1, 2), (3, 4)]):
        groups = {name: [at] for at, name in enumerate(names)}
        with pytest.raises(ValueError, match=row("group-names", str(names))):
            method.influence(TEST, groups=groups, verbose=0)


@METHODS
def test_groups_in_another_order_are_another_call(make, scores, tmp_path):
    groups = {"a": [0, 1], "b": [2]}
    method = make(scores)
    method.influence(TEST, groups=groups, directory=tmp_path, verbose=0)
    turned = dict(reversed(groups.items()))
    with pytest.raises(ValueError, match="groups"):
        method.influence(TEST, groups=turned, directory=tmp_path, verbose=0)


@METHODS
def test_top_k_are_the_ends_of_the_scores(make, scores):
    top = make(scores).top_k(TEST, 5, verbose=0)
    order = np.argsort(-scores, axis=1)
    np.testing.assert_array_equal(top.proponents.ids, order[:, :5])


def test_self_influence_goes_on_from_a_directory(tmp_path):
    method = Dot(build(), TRAIN)
    own = method.self_influence(verbose=0)
    for _ in range(2):
        kept = method.self_influence(directory=tmp_path, verbose=0)
        np.testing.assert_array_equal(kept.scores, own.scores)


def test_a_method_without_self_influence_says_what_to_use(scores, tmp_path):
    method = Given(build(), scores)
    for call in (
        lambda: method.self_influence(directory=tmp_path, verbose=0),
        method.plan,
    ):
        with pytest.raises(NoSelfInfluence, match="Use TracIn"):
            call()
    assert issubclass(NoSelfInfluence, NotImplementedError)
    assert not any(tmp_path.iterdir())


def test_other_weights_than_at_the_beginning_are_refused():
    model = build()
    method = Dot(model, TRAIN)
    weights = model.get_weights()
    model.set_weights([2 * w for w in weights])
    for call in (
        lambda: method.influence(TEST, verbose=0),
        lambda: method.top_k(TEST, 1, verbose=0),
        lambda: method.self_influence(verbose=0),
        lambda: method.plan(TEST),
    ):
        with pytest.raises(
            ValueError, match=row("other-weights", "Make another `Dot`")
        ):
            call()
    model.set_weights(weights)
    assert len(method.self_influence(verbose=0)) == NUM_TRAIN


def test_a_plan_says_how_much_there_is_to_do():
    method = Dot(build(), TRAIN)
    plan = method.plan(TEST)
    assert isinstance(plan, Plan)
    assert (plan.num_train, plan.num_queries) == (NUM_TRAIN, NUM_TEST)
    assert plan.seconds is not None
    assert method.plan().num_queries == 0


def test_a_method_describes_itself(tmp_path):
    model = build()
    text = repr(Dot(model, TRAIN))
    assert text == f"Dot(model='{model.name}', train=20, scale=1.0)"
    described = Dot(model, TRAIN).describe()
    assert described["method"] == "Dot"
    assert described["weights"] == weights_digest(model)
    model.fit(*TRAIN, verbose=0, callbacks=[kt.TracInCheckpoint(tmp_path)])
    tracin = kt.TracIn(model, TRAIN, tmp_path, projection=kt.TensorSketch(8))
    assert "checkpoints=1" in repr(tracin)
    assert "projection=TensorSketch(dim=8" in repr(tracin)
    assert "optimizer" not in repr(tracin)
    assert tracin.describe()["checkpoints"][0][1] == pytest.approx(0.01)


def test_limits_change_and_what_is_compiled_does_not():
    method = Dot(build(), TRAIN)
    small = method.within(batch_sizes=(4, 4), memory_limit=1)
    assert small.plan().batch_size == 4
    assert method.plan().batch_size > 4
    assert small.engine.train_steps is method.engine.train_steps
    with pytest.raises(TypeError, match=r"depend on.*jit_compile"):
        method.within(jit_compile=True)


def test_a_pass_is_a_value():
    method = Dot(build(), TRAIN)
    work = method.self_pass()
    with pytest.raises(dataclasses.FrozenInstanceError):
        work.title = "another"
    assert dataclasses.replace(work, title="another").step is work.step
