"""The finished matrix of a call: put together, damaged, of another call."""

import errno
import json
import os
import shutil

import numpy as np
import pytest

from keras_tracin.engine.parts import Parts
from tests.error_rows import row


@pytest.fixture
def two_parts(tmp_path):
    """The parts of one query, and what their matrix should be."""
    parts = Parts.open(tmp_path, {"call": "influence"})
    scores = np.arange(6, dtype=np.float32).reshape(1, 6)
    for chunk, columns in enumerate((slice(0, 4), slice(4, 6))):
        ids = np.arange(6)[columns]
        parts.put(0, chunk, "digest", ids=ids, scores=scores[:, columns])
    return parts, scores


def test_a_matrix_needs_room_before_it_is_written(two_parts, monkeypatch):
    parts, scores = two_parts
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(parts.directory)._replace(free=23)
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        message = row(
            "matrix-disk-full", " 24 bytes are...23 are free...parts are kept"
        )
        with pytest.raises(OSError, match=message):
            parts.matrix([np.arange(1)], 2)
    assert len(list(parts.directory.glob("part-*.npz"))) == 2
    matrix = parts.matrix([np.arange(1)], 2)
    np.testing.assert_array_equal(matrix["scores"], scores)
    np.testing.assert_array_equal(matrix["train_ids"], np.arange(6))


def test_a_matrix_that_the_disk_does_not_take_leaves_its_parts(
    two_parts, monkeypatch
):
    parts, scores = two_parts

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(
            OSError, match=row("parts-disk-full", "the matrix...2 finished")
        ):
            parts.matrix([np.arange(1)], 2)
    assert not (parts.directory / "scores.npy").exists()
    found = parts.matrix([np.arange(1)], 2)["scores"]
    np.testing.assert_array_equal(found, scores)


def test_a_matrix_of_more_than_was_asked_for_is_refused(two_parts):
    parts, _ = two_parts
    parts.matrix([np.arange(1)], 2)
    for count in (1, 3):
        with pytest.raises(ValueError, match=r"1 × 6, of 2 parts; received"):
            parts.matrix([np.arange(1)], count)


def test_a_changed_byte_of_a_matrix_is_an_error(two_parts):
    parts, _ = two_parts
    parts.matrix([np.arange(1)], 2)
    path = parts.directory / "scores.npy"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    again = Parts.open(parts.directory, {"call": "influence"})
    with pytest.raises(ValueError, match=row("damaged-matrix", str(path))):
        again.matrix([np.arange(1)], 2)


def test_a_matrix_of_an_earlier_version_is_read(two_parts):
    """It has no digest of the matrix."""
    parts, scores = two_parts
    parts.matrix([np.arange(1)], 2)
    path = parts.directory / "matrix.json"
    listed = json.loads(path.read_text())
    del listed["scores.npy"]
    path.write_text(json.dumps(listed))
    again = Parts.open(parts.directory, {"call": "influence"})
    found = again.matrix([np.arange(1)], 2)["scores"]
    np.testing.assert_array_equal(found, scores)
