"""The index against TracIn, and against kills, damage and wrong company."""

import errno
import json
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.gradients import flat
from keras_tracin.index import search as searches
from keras_tracin.index.store import Store
from keras_tracin.storage import files
from tests.error_rows import row
from tests.index.network import contents, same

NUM_TRAIN, NUM_TEST, DIM = 700, 4, 16
PROJECTION = kt.GaussianProjection(DIM, seed=2)


def build():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    return model


def examples(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 6)).astype("float32")
    return x, rng.integers(0, 3, count)


TRAIN, TEST = examples(NUM_TRAIN, 0), examples(NUM_TEST, 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    model = build()
    callback = kt.TracInCheckpoint(directory)
    model.fit(*TRAIN, epochs=2, callbacks=[callback], verbose=0)
    return model, directory


def make_tracin(model, run, train=TRAIN, **options):
    """TracIn whose index has a batch of 256 examples in each shard."""
    return kt.TracIn(model, train, run, **options).within(shard=1)


@pytest.fixture(scope="module")
def tracin(trained):
    return make_tracin(*trained)


@pytest.fixture(scope="module")
def whole(tracin, tmp_path_factory):
    """A finished index of three shards; tests copy it to do it harm."""
    directory = tmp_path_factory.mktemp("whole")
    kt.InfluenceIndex.build(tracin, directory, projection=PROJECTION)
    return directory


@pytest.fixture(scope="module")
def opened(whole, trained):
    """That index by its files, with a step that was traced for queries."""
    return kt.InfluenceIndex(whole, trained[0])


@pytest.fixture
def copied(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def test_a_query_gives_what_projected_tracin_gives(trained, opened):
    model, run = trained
    projected = kt.TracIn(model, TRAIN, run, projection=PROJECTION)
    before = [np.array(weight) for weight in model.get_weights()]
    assert len(opened) == NUM_TRAIN
    same(opened.query(TEST, k=7), projected.top_k(TEST, 7, verbose=0))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_reranked_candidates_have_exact_scores(trained, tracin, whole):
    index = kt.InfluenceIndex(whole, trained[0], method=tracin)
    exact = tracin.top_k(TEST, 5, verbose=0)
    same(index.query(TEST, k=5, rerank=NUM_TRAIN), exact)
    found = index.query(TEST, k=5, rerank=100)
    scores = tracin.influence(TEST, verbose=0).scores
    for query, ids in enumerate(found.proponents.ids):
        np.testing.assert_allclose(
            found.proponents.scores[query], scores[query, ids], rtol=1e-4
        )


class Rotation:
    """A test double: an orthonormal square matrix, which loses nothing."""

    def __init__(self, size):
        self.dim = size
        normal = np.random.default_rng(0).normal(size=(size, size))
        self.matrix = np.linalg.qr(normal)[0]

    def sketch(self, factors, position=0):
        rows = flat.rows(factors)
        return rows @ tf.constant(self.matrix, rows.dtype)


def test_with_an_orthonormal_projection_the_index_is_exact(tracin, tmp_path):
    rotation = Rotation(tracin.engine.model.count_params())
    index = kt.InfluenceIndex.build(tracin, tmp_path, projection=rotation)
    same(index.query(TEST, 6), tracin.top_k(TEST, 6, verbose=0), rtol=1e-3)
    with pytest.raises(ValueError, match="`projection=`"):
        kt.InfluenceIndex(tmp_path, tracin.engine.model)


def test_half_precision_rows_are_half_the_size(tracin, whole, opened, tmp_path):
    index = kt.InfluenceIndex.build(
        tracin, tmp_path, projection=PROJECTION, dtype="float16"
    )
    full = opened.query(TEST, 5)
    half = index.query(TEST, 5)
    np.testing.assert_allclose(
        half.proponents.scores, full.proponents.scores, rtol=0.02
    )
    small, large = (
        (path / "rows" / "00000000.npy").stat().st_size
        for path in (tmp_path, whole)
    )
    assert small < 0.51 * large


CHILD = """
import os, signal, sys
import keras_tracin as kt
from keras_tracin.storage import files
from tests.index import index_test

tracin = index_test.make_tracin(index_test.build(), sys.argv[1])
describe, calls = files.describe, []

def killed(path):
    calls.append(path)
    if len(calls) == 4:  # the second shard's rows are there, not yet listed
        os.kill(os.getpid(), signal.SIGKILL)
    return describe(path)

files.describe = killed
kt.InfluenceIndex.build(
    tracin, sys.argv[2], projection=index_test.PROJECTION
)
"""


def test_a_killed_build_is_resumed_with_the_same_bits(
    trained, tracin, whole, tmp_path
):
    child = [sys.executable, "-c", CHILD, str(trained[1]), str(tmp_path)]
    assert subprocess.run(child).returncode == -signal.SIGKILL
    listed = json.loads((tmp_path / "index.json").read_text())
    assert len(listed["shards"]) == 1
    with pytest.raises(ValueError, match=row("interrupted-build", "256 rows")):
        kt.InfluenceIndex(tmp_path, trained[0])
    kt.InfluenceIndex.build(tracin, tmp_path, projection=PROJECTION)
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize(
    ("file", "kept"), [("00000001", 256), ("00000003.basis", NUM_TRAIN)]
)
def test_a_full_disk_keeps_what_was_written(
    tracin, whole, tmp_path, monkeypatch, file, kept
):
    flush = files._flush_to_disk

    def again():
        kt.InfluenceIndex.build(
            tracin, tmp_path, projection=PROJECTION, search="flat"
        )

    def full(path):
        if path.name.startswith(f"unfinished-{file}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "_flush_to_disk", full)
        with pytest.raises(
            OSError, match=row("index-disk-full", f"{kept} rows are kept")
        ):
            again()
    again()
    for path, content in contents(whole).items():
        if path.parent.name in ("rows", "ids", "exact"):
            assert content == (tmp_path / path).read_bytes()


def test_what_does_not_match_is_refused(trained, tracin, copied):
    def again(method=tracin, projection=PROJECTION, **options):
        kt.InfluenceIndex.build(
            method, copied, projection=projection, **options
        )

    with pytest.raises(
        ValueError, match=row("index-settings", "another projection")
    ):
        again(projection=kt.GaussianProjection(DIM, seed=3))
    with pytest.raises(
        ValueError, match=row("index-settings", "another dtype")
    ):
        again(dtype="float16")
    run = kt.TrainingRun(trained[1])[1:]
    with pytest.raises(
        ValueError, match=row("index-settings", "another checkpoints")
    ):
        again(make_tracin(trained[0], run))
    with pytest.raises(ValueError, match="holds an index already"):
        again(resume=False)
    manifest = json.loads((copied / "index.json").read_text())
    (copied / "index.json").write_text(json.dumps({**manifest, "finished": 0}))
    other = examples(NUM_TRAIN, 9)
    with pytest.raises(ValueError, match=row("other-examples")):
        again(make_tracin(*trained, other))
    weighted = make_tracin(*trained, class_weight={0: 2})
    with pytest.raises(
        ValueError, match=row("index-settings", "another class_weight")
    ):
        again(weighted)


def test_index_and_run_are_moved_together(trained, whole, opened, tmp_path):
    model, run = trained
    index = shutil.copytree(whole, tmp_path / "there" / whole.name)
    with pytest.raises(ValueError, match=row("moved-run", "`run=`")):
        kt.InfluenceIndex(index, model)
    expected = opened.query(TEST, 5)
    same(kt.InfluenceIndex(index, model, run=run).query(TEST, 5), expected)
    shutil.copytree(run, tmp_path / "there" / run.name)
    same(kt.InfluenceIndex(index, model).query(TEST, 5), expected)
    with pytest.raises(ValueError, match=row("index-run", "epochs [2]")):
        kt.InfluenceIndex(index, model, run=kt.TrainingRun(run)[:1])


def test_later_queries_read_no_checkpoint_and_trace_nothing(
    trained, whole, tmp_path
):
    model, run = trained
    there = shutil.copytree(run, tmp_path / run.name)
    index = kt.InfluenceIndex(whole, model, run=there)
    first = index.query(TEST, 5)
    shutil.rmtree(there)
    ((_, step),) = index._resident._steps.values()
    traces = step.experimental_get_tracing_count()
    one = tuple(part[1:2] for part in TEST)
    np.testing.assert_array_equal(
        index.query(one, 5).proponents.ids[0], first.proponents.ids[1]
    )
    assert len(index._resident._steps) == 1
    assert step.experimental_get_tracing_count() == traces


def test_bad_options_are_refused(tracin, trained, tmp_path):
    with pytest.raises(ValueError, match="'float16' or 'int8'"):
        kt.InfluenceIndex.build(tracin, tmp_path, dtype="int4")
    apart = kt.FactoredProjection(DIM, joint=False)
    with pytest.raises(ValueError, match="joint=False"):
        kt.InfluenceIndex.build(tracin, tmp_path, projection=apart)
    projected = kt.TracIn(*(trained[0], TRAIN, trained[1]), projection=apart)
    with pytest.raises(ValueError, match="give it to `build`"):
        kt.InfluenceIndex.build(projected, tmp_path)
    with pytest.raises(ValueError, match=row("no-index", "does not exist")):
        kt.InfluenceIndex(tmp_path, trained[0])


def test_a_nan_is_named_by_id(trained, opened, tmp_path):
    x = TRAIN[0].copy()
    x[300] = np.nan
    broken = make_tracin(*trained, (x, TRAIN[1]))
    with pytest.raises(ValueError, match=r"\[300\]"):
        kt.InfluenceIndex.build(broken, tmp_path, projection=PROJECTION)
    bad = TEST[0].copy()
    bad[2] = np.inf
    with pytest.raises(ValueError, match=r"\[2\]"):
        opened.query((bad, TEST[1]), 3)


def of(ids, scores, k):
    """The slow twin of a ranking: the first k of all scores."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return ids[order], np.take_along_axis(scores, order, axis=1)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A store of 3,000 rows near a space of 20 dimensions, and queries.

    Lengths of rows differ a hundredfold, as those of gradients do.
    """
    rng = np.random.default_rng(0)
    store = Store.open_or_create(tmp_path_factory.mktemp("long"), {}, True)
    plane = rng.normal(size=(20, 300)).astype("float32")
    for size in (1000, 1700, 300):
        rows = rng.normal(size=(size, 20)).astype("float32") @ plane
        rows *= 10 ** rng.uniform(-2, 0, size=(size, 1)).astype("float32")
        rows += 0.01 * rng.normal(size=rows.shape).astype("float32")
        ids = store.shards.size + np.arange(size)
        store.put(store.manifest.num_shards, {"rows": rows, "ids": ids}, "")
        store.take(store.manifest.num_shards, "")
    return store, rng.normal(size=(6, 20)).astype("float32") @ plane


def check_best_rows(found, store, vectors):
    """Checks both sides against all scores; returns the proponents."""
    sides = found.both(vectors, 10)
    scores = vectors @ store.shards.read(np.arange(store.shards.size)).T
    for sign, (positions, values) in zip((1, -1), sides, strict=True):
        ids, expected = of(np.arange(store.shards.size), sign * scores, 10)
        hits = [
            np.isin(a, b).mean() for a, b in zip(ids, positions, strict=True)
        ]
        assert np.mean(hits) >= (0.9 if found.kind in ("hnsw", "ivf") else 1)
        exact = np.take_along_axis(scores, positions, axis=1)
        np.testing.assert_allclose(values, exact, rtol=1e-4)
        if found.kind in ("exact", "flat"):
            np.testing.assert_allclose(sign * values, expected, rtol=1e-4)
    return sides[0][0]


@pytest.mark.parametrize("kind", ["exact", "flat", "hnsw", "ivf"])
def test_each_search_finds_the_best_rows(long, kind, monkeypatch):
    store, vectors = long
    made, noted = searches.make(store, vectors, kind)
    store.finish(noted)
    found = check_best_rows(searches.load(store), store, vectors)
    np.testing.assert_array_equal(made.best(vectors, 10)[0], found)
    monkeypatch.setitem(sys.modules, "faiss", None)
    loaded = searches.load(store)  # those by faiss were made elsewhere
    assert loaded.kind == ("exact" if kind == "exact" else "flat")
    check_best_rows(loaded, store, vectors)


def test_short_rows_are_searched_without_faiss(long, monkeypatch):
    store, vectors = long
    monkeypatch.setitem(sys.modules, "faiss", None)
    made, noted = searches.make(store, vectors, "flat")
    store.finish(noted)
    found = check_best_rows(searches.load(store), store, vectors)
    np.testing.assert_array_equal(made.best(vectors, 10)[0], found)


def test_short_rows_grow_until_the_best_are_among_the_candidates(tmp_path):
    rng = np.random.default_rng(0)
    store = Store.open_or_create(tmp_path, {}, True)
    rows = rng.normal(size=(1200, 520)).astype("float32")  # no plane at all
    store.put(0, {"rows": rows, "ids": np.arange(1200)}, "")
    store.take(0, "")
    queries = rng.normal(size=(5, 520)).astype("float32")
    made, _ = searches.make(store, queries, "flat")
    assert made.basis.shape == (520, 256)


def test_recall_is_that_of_the_search_against_exact_scores(tracin, opened):
    recall = opened.recall
    chosen = np.linspace(0, 255, recall["queries"]).astype(int)
    queries = tuple(part[chosen] for part in TRAIN)
    exact = tracin.influence(queries, verbose=0).scores
    found = opened.query(queries, NUM_TRAIN)
    for side, sign in (("proponents", 1), ("opponents", -1)):
        shares = []
        for query, own in enumerate(chosen):
            truth = np.argsort(-sign * exact[query])
            truth = truth[truth != own][:10]
            got = getattr(found, side).ids[query]
            shares.append(np.isin(truth, got[got != own][:10]).mean())
        assert 0 < np.mean(shares) < 1
        assert recall[side] == pytest.approx(np.mean(shares))
    text = f"recall@10 of exact scores on {recall['queries']} training"
    assert text in repr(opened)
    assert f"{recall['opponents']:.2f} opponents" in repr(opened)


MORE = examples(300, 5)


def test_appended_examples_are_as_if_built_together(
    trained, tracin, copied, tmp_path
):
    model, run = trained
    index = kt.InfluenceIndex(copied, model, method=tracin)
    index.append(MORE)
    everything = tuple(
        np.concatenate(parts) for parts in zip(TRAIN, MORE, strict=True)
    )
    together = make_tracin(model, run, everything)
    expected = kt.InfluenceIndex.build(
        together, tmp_path / "together", projection=PROJECTION
    )
    assert len(index) == NUM_TRAIN + len(MORE[0])
    same(index.query(TEST, 9), expected.query(TEST, 9))
    assert index.recall == expected.recall
    again = kt.InfluenceIndex(copied, model, method=together)
    same(again.query(TEST, 9), expected.query(TEST, 9))
    same(
        again.query(TEST, 9, rerank=len(again)),
        together.top_k(TEST, 9, verbose=0),
    )
    with pytest.raises(ValueError, match="they were appended"):
        index.query(TEST, 9, rerank=len(index))


def test_appended_ids_are_kept_or_go_on(trained, tracin, copied):
    index = kt.InfluenceIndex(copied, trained[0], method=tracin)
    index.append(kt.with_ids(MORE, np.arange(5000, 5300)).batch(64))
    assert index.ids[NUM_TRAIN:].tolist() == list(range(5000, 5300))
    few = tuple(part[:4] for part in MORE)
    index.append(few)
    assert index.ids[-4:].tolist() == [5300, 5301, 5302, 5303]
    with pytest.raises(ValueError, match=row("taken-ids", "[5001")):
        index.append(kt.with_ids(few, [5001, 6000, 6001, 6002]).batch(2))
    assert len(index) == NUM_TRAIN + 304


def test_an_interrupted_append_adds_nothing_and_is_resumed(
    trained, tracin, opened, copied, tmp_path, monkeypatch
):
    model = trained[0]
    expected = shutil.copytree(copied, tmp_path / "expected")
    run = {"run": trained[1]}
    kt.InfluenceIndex(expected, model, method=tracin, **run).append(MORE)
    before = opened.query(TEST, 5)
    index = kt.InfluenceIndex(copied, model, method=tracin)
    put, calls = Store.put, []

    def interrupted(store, *arguments):
        if calls:
            raise KeyboardInterrupt
        calls.append(put(store, *arguments))

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put", interrupted)
        with pytest.raises(KeyboardInterrupt):
            index.append(MORE)
    same(index.query(TEST, 5), before)
    opened = kt.InfluenceIndex(copied, model, method=tracin)
    assert len(opened) == NUM_TRAIN
    same(opened.query(TEST, 5), before)
    with pytest.raises(
        ValueError, match=row("index-examples", "`resume=False`")
    ):
        opened.append(examples(300, 6))
    opened.append(MORE)
    assert contents(copied) == contents(expected)


def test_an_append_can_be_given_up(trained, tracin, copied, monkeypatch):
    index = kt.InfluenceIndex(copied, trained[0], method=tracin)

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            index.append(MORE)
    few = tuple(part[:4] for part in MORE)
    index.append(few, resume=False)
    assert len(index) == NUM_TRAIN + 4


def test_bad_appends_are_refused(trained, tracin, copied):
    run = {"run": trained[1]}
    with pytest.raises(ValueError, match="method=tracin"):
        kt.InfluenceIndex(copied, trained[0], **run).append(MORE)
    index = kt.InfluenceIndex(copied, trained[0], method=tracin)
    with pytest.raises(ValueError, match=row("other-form")):
        index.append((MORE[0][:, :4], MORE[1]))
    x = MORE[0].copy()
    x[7] = np.nan
    with pytest.raises(ValueError, match=r"\[7\]"):
        index.append((x, MORE[1]))
    few = tuple(part[:100] for part in TRAIN)
    other = make_tracin(*trained, few)
    with pytest.raises(ValueError, match=row("compared-examples")):
        kt.InfluenceIndex(copied, trained[0], method=other).append(MORE)
    assert len(kt.InfluenceIndex(copied, trained[0], **run)) == NUM_TRAIN


# --- Influence functions


@pytest.fixture(scope="module")
def sketched(trained):
    solver = kt.RandomizedSketch(24, seed=1, method="cg")
    method = kt.InfluenceFunctions(
        trained[0], TRAIN, damping=1.0, solver=solver
    )
    return method.within(shard=1)


@pytest.mark.filterwarnings("ignore:The model has not converged")
def test_an_index_answers_as_the_sketched_inverse_does(
    sketched, trained, tmp_path
):
    built = kt.InfluenceIndex.build(sketched, tmp_path)
    expected = sketched.top_k(TEST, 6, verbose=0)
    same(built.query(TEST, 6), expected, rtol=1e-3)
    opened = kt.InfluenceIndex(tmp_path, trained[0])
    same(opened.query(TEST, 6), expected, rtol=1e-3)
    assert opened.recall["proponents"] == 1
    assert "1 × 24" in repr(opened)
    built.append(MORE)
    everything = tuple(map(np.concatenate, zip(TRAIN, MORE, strict=True)))
    together = kt.InfluenceFunctions(
        trained[0], everything, damping=1.0, solver=sketched.inverse
    )
    same(built.query(TEST, 6), together.top_k(TEST, 6, verbose=0), rtol=1e-3)


@pytest.mark.filterwarnings("ignore:The model has not converged")
def test_an_index_of_influence_functions_is_of_one_set_of_weights(
    sketched, trained, tmp_path
):
    model = trained[0]
    kt.InfluenceIndex.build(sketched, tmp_path)
    own = model.get_weights()
    try:
        model.set_weights([weight + 0.01 for weight in own])
        with pytest.raises(ValueError, match="are not those that the index"):
            kt.InfluenceIndex(tmp_path, model)
    finally:
        model.set_weights(own)
    other = kt.InfluenceFunctions(
        model, TRAIN, damping=2.0, solver=sketched.solver
    )
    with pytest.raises(
        ValueError, match=row("index-settings", "another damping")
    ):
        kt.InfluenceIndex.build(other, tmp_path)
    path = tmp_path / "inverse.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=row("damaged-index")):
        kt.InfluenceIndex(tmp_path, model)


def test_what_cannot_be_rows_is_refused(sketched, trained, tracin, tmp_path):
    def refused(method, message, error=ValueError, **options):
        with pytest.raises(error, match=message):
            kt.InfluenceIndex.build(method, tmp_path, **options)

    exact = kt.InfluenceFunctions(trained[0], TRAIN, solver=kt.CG())
    refused(exact, r"solver=CG.*kt\.RandomizedSketch")
    refused(sketched, "Leave these out", projection=PROJECTION)
    refused("tracin", "Received: str", TypeError)
    refused(tracin, "`search` should be one of", search="annoy")


def test_an_index_does_not_depend_on_the_number_of_replicas(
    trained, opened, tmp_path
):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = build()
    method = make_tracin(model, trained[1], strategy=strategy)
    index = kt.InfluenceIndex.build(method, tmp_path, projection=PROJECTION)
    same(index.query(TEST, 5), opened.query(TEST, 5), rtol=1e-3)
    assert index.recall == opened.recall
