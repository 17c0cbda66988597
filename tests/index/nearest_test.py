"""A search of faiss on disk is whole, or an error."""

import resource

import numpy as np
import pytest

from keras_tracin.index import nearest

faiss = pytest.importorskip("faiss")


@pytest.mark.parametrize("missing", [1, 10, 20_000])
def test_what_the_disk_refuses_is_an_error(tmp_path, missing):
    rows = np.random.default_rng(0).normal(size=(300, 16)).astype("float32")
    graph = nearest.make_graph(rows)
    whole = tmp_path / "whole"
    nearest.write_faiss(whole, graph)
    assert faiss.read_index(str(whole)).ntotal == 300
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = whole.stat().st_size - missing
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            nearest.write_faiss(tmp_path / "cut", graph)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
