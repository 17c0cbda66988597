"""The list of an index's files says what its rows were made with."""

import json

import pytest

from keras_tracin.index.manifest import FILE_NAME, Manifest
from tests.error_rows import row

IDENTITY = {"method": "TracIn", "layers": [1, 2]}


def test_an_option_that_came_later_matters_where_it_is_used(tmp_path):
    manifest = Manifest.create(tmp_path, IDENTITY)
    manifest.check({**IDENTITY, "penalty": None})
    with pytest.raises(
        ValueError, match=row("index-settings", "penalty: it has nothing")
    ):
        manifest.check({**IDENTITY, "penalty": 0.5})
    with pytest.raises(
        ValueError, match=row("index-settings", "another layers")
    ):
        manifest.check({**IDENTITY, "layers": None})


def test_pending_shards_can_be_left_out_of_what_is_read(tmp_path):
    manifest = Manifest.create(tmp_path, IDENTITY)
    entries = [{"count": 3, "files": {}}, {"count": 2, "files": {}}]
    manifest.change(shards=entries, finished=1)
    reader = Manifest.read(tmp_path)
    assert (reader.num_shards, reader.count()) == (2, 5)
    reader.leave_out_pending()
    assert (reader.num_shards, reader.count()) == (1, 3)
    listed = json.loads((tmp_path / FILE_NAME).read_text())
    assert listed["shards"] == entries


@pytest.mark.parametrize("content", ["{", "[]", '{"format_version": 3}'])
def test_a_list_that_cannot_be_read_is_named(tmp_path, content):
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(
        ValueError, match=row("damaged-index", "index.json is...Copy the")
    ):
        Manifest.read(tmp_path)


def test_a_list_of_a_later_version_is_refused(tmp_path):
    Manifest.create(tmp_path, IDENTITY).change(format_version=6)
    with pytest.raises(ValueError, match=row("newer-run", "version 6")):
        Manifest.read(tmp_path)
