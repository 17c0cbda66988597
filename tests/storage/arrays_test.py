"""Arrays on disk are written whole, and read without pickle."""

import contextlib
import errno
import resource

import numpy as np
import pytest

from keras_tracin.storage import arrays, files

REMEDY = "Make it anew."


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "held.npz"
    arrays.save_arrays(path, {"a b": np.arange(3), "path": np.eye(2)})
    return path


def test_arrays_of_any_names_come_back(path):
    held = arrays.load_arrays(path, REMEDY, names=["path", "a b"])
    np.testing.assert_array_equal(held["a b"], np.arange(3))
    np.testing.assert_array_equal(held["path"], np.eye(2))


def test_any_damage_is_an_error_that_says_what_to_do(path):
    whole = path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"held.npz is damaged.*anew\.$"):
            arrays.load_arrays(path, REMEDY)
    expected = {"a b": np.arange(3), "path": np.eye(2)}
    for at in range(len(whole)):
        path.write_bytes(
            whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :]
        )
        # A date, or another field that nothing is read by, may be altered.
        with contextlib.suppress(ValueError):
            held = arrays.load_arrays(path, REMEDY, names=list(expected))
            for name, value in expected.items():
                np.testing.assert_array_equal(held[name], value)


def test_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "held.npz", a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        arrays.load_arrays(tmp_path / "held.npz", REMEDY)
    np.save(tmp_path / "held.npy", np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        arrays.load_array(tmp_path / "held.npy", REMEDY)


def test_other_arrays_and_other_files_are_refused(path):
    with pytest.raises(ValueError, match=r"received.*'a b'.*expected \['a'\]"):
        arrays.load_arrays(path, REMEDY, names=["a"])
    path.write_text("text")
    with pytest.raises(ValueError, match="or no table"):
        arrays.load_arrays(path, REMEDY, what="table")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="lost"):
        arrays.load_arrays(tmp_path / "lost.npz", REMEDY)
    with pytest.raises(FileNotFoundError, match="lost"):
        arrays.load_array(tmp_path / "lost.npy", REMEDY)


@pytest.mark.parametrize("mapped", [False, True])
def test_one_array_is_read_or_mapped(tmp_path, mapped):
    path = tmp_path / "rows"
    arrays.write_array(path, np.arange(64.0))
    rows = arrays.load_array(path, REMEDY, mapped)
    assert isinstance(rows, np.memmap) == mapped
    np.testing.assert_array_equal(rows, np.arange(64.0))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"rows is damaged.*Make it anew\.$"):
        arrays.load_array(path, REMEDY, mapped)


@pytest.mark.parametrize("size", [100, 300, 100_000])
def test_what_the_disk_refuses_is_an_error(tmp_path, size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "array.npy"
    resource.setrlimit(resource.RLIMIT_FSIZE, (size * 8, hard))
    try:
        # The header does not fit as well.
        with pytest.raises(OSError, match="too large"):
            arrays.write_array(path, np.arange(size, dtype=float))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_says_what_is_kept(tmp_path):
    def write(code):
        with files.explain_full_disk(tmp_path, "a part", lambda: "3 parts"):
            raise OSError(code, "reason")

    for code in files.DISK_IS_FULL:
        with pytest.raises(OSError, match=r"is full: a part.*3 parts are kept"):
            write(code)
    with pytest.raises(PermissionError, match="reason"):
        write(errno.EACCES)
