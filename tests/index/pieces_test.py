"""The build of an index in pieces, and by Apache Beam, is that of one process.

Beam's own tests need it installed: see docs/scaling.md.
"""

import importlib
import sys

import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.index.pieces import BuildPieces
from keras_tracin.index.store import Store
from tests import records, source_tree
from tests.engine import scoring_worker
from tests.error_rows import row
from tests.index import index_worker


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A run and training examples in files, where factories find them."""
    with records.written(tmp_path_factory.mktemp("inputs")) as run:
        yield run


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """The files of the index that one process builds."""
    directory = tmp_path_factory.mktemp("whole")
    index_worker.build(index_worker.tracin(inputs), directory)
    return index_worker.contents(directory)


def pieces_in(directory, **options):
    return BuildPieces(
        **{
            "factory": "tests.records:make_tracin",
            "directory": str(directory),
            "projection": index_worker.PROJECTION,
            **options,
        }
    )


@pytest.mark.parametrize(
    "options", [{}, records.OF_RECORDS], ids=["arrays", "files of records"]
)
def test_pieces_in_any_order_make_the_same_index(whole, tmp_path, options):
    pieces = pieces_in(tmp_path, **options)
    shards = pieces.begin()
    assert shards == list(range(6))
    digests = {shard: pieces.write(shard) for shard in shards[::-1]}
    pieces.finish(digests)
    assert index_worker.contents(tmp_path) == whole
    assert pieces.begin() == []
    pieces.finish({})
    assert index_worker.contents(tmp_path) == whole


def test_pieces_that_were_written_are_not_made_again(
    whole, tmp_path, monkeypatch
):
    pieces = pieces_in(tmp_path, **records.OF_RECORDS)
    pieces.begin()
    pieces.write(2)
    written = []
    put = Store.put

    def spy(self, shard, *arguments):
        written.append(shard)
        put(self, shard, *arguments)

    monkeypatch.setattr(Store, "put", spy)
    digests = {shard: pieces.write(shard) for shard in pieces.begin()}
    assert written == [0, 1, 3, 4, 5]
    pieces.finish(digests)
    assert index_worker.contents(tmp_path) == whole


def test_a_build_of_one_process_goes_on_from_pieces(inputs, whole, tmp_path):
    pieces = pieces_in(tmp_path)
    pieces.begin()
    for shard in (0, 1, 4):
        pieces.write(shard)
    index_worker.build(index_worker.tracin(inputs), tmp_path)
    assert index_worker.contents(tmp_path) == whole


def test_a_missing_shard_is_named(inputs, tmp_path):
    pieces = pieces_in(tmp_path)
    pieces.begin()
    digests = {shard: pieces.write(shard) for shard in (0, 2)}
    with pytest.raises(ValueError, match=r"Received 2, without \[1\]"):
        pieces.finish(digests)
    with pytest.raises(ValueError, match="from all of its shards"):
        pieces.finish({})


def test_what_pieces_cannot_use_is_refused(inputs, tmp_path):
    def refused(match, **options):
        pieces = pieces_in(
            tmp_path / "index", **{**records.OF_RECORDS, **options}
        )
        with pytest.raises(ValueError, match=match):
            _ = [pieces.write(shard) for shard in pieces.begin()]

    refused("Received: None; the data says: None", num_examples=None)
    refused("asked for. Received 255", read="tests.records:read_too_few")
    refused(row("pieces-form"), read="tests.records:read_another_form")
    refused("package.module:function", read="tests.records:nothing")
    refused("package.module:function", factory="tests.records")
    array = {"factory": "tests.records:make_tracin", "read": None}
    refused("Received: 7; the data says: 1500", **array, num_examples=7)
    pieces_in(tmp_path / "index", **records.OF_RECORDS).write(3)
    refused(row("index-examples"), read="tests.records:read_others")


def test_ids_of_the_data_are_kept(inputs, tmp_path, monkeypatch):
    names = np.arange(records.COUNT) * 10

    def with_names(start, stop):
        rows = slice(start, stop)
        part = tuple(array[rows] for array in index_worker.TRAIN)
        return kt.with_ids(part, names[rows]).batch(50)

    monkeypatch.setattr(
        records,
        "make_tracin",
        lambda: index_worker.tracin(inputs, train=with_names(0, records.COUNT)),
    )
    monkeypatch.setattr(records, "read", with_names)
    options = {"num_examples": records.COUNT, "read": "tests.records:read"}
    pieces = pieces_in(tmp_path, **options)
    pieces.finish({shard: pieces.write(shard) for shard in pieces.begin()})
    index = kt.InfluenceIndex(tmp_path, scoring_worker.build(), run=inputs)
    np.testing.assert_array_equal(index.ids, names)
    plain = "tests.records:read_another_form"
    other = pieces_in(
        tmp_path / "other", num_examples=records.COUNT, read=plain
    )
    monkeypatch.setattr(
        records, "read_another_form", lambda *_: index_worker.TRAIN
    )
    other.begin()
    with pytest.raises(ValueError, match="with ids attached"):
        other.write(1)


@pytest.mark.parametrize(
    "runner", records.RUNNERS, ids=["by bundles", "by stages"]
)
def test_a_beam_pipeline_makes_the_same_index(whole, tmp_path, runner):
    beam = pytest.importorskip(
        "apache_beam", reason="Apache Beam has an environment of its own."
    )
    from keras_tracin.beam import BuildIndex

    options = {"projection": index_worker.PROJECTION, **records.OF_RECORDS}
    for _ in range(2):  # the second finds all done
        with beam.Pipeline(runner=runner) as pipeline:
            _ = pipeline | BuildIndex(directory=tmp_path, **options)
        assert index_worker.contents(tmp_path) == whole


def test_without_beam_its_module_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "keras_tracin.beam", raising=False)
    with pytest.raises(ImportError, match=r"pip install keras_tracin\[beam\]"):
        importlib.import_module("keras_tracin.beam")


def test_nothing_else_needs_beam():
    known = source_tree.modules()
    for module, path in known.items():
        if module.startswith("keras_tracin.") and module != "keras_tracin.beam":
            imported = source_tree.first_party_imports(module, known)
            assert "keras_tracin.beam" not in imported
            assert "apache_beam" not in path.read_text(encoding="utf-8")
