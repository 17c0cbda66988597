"""An index of training sketches: what it costs, how fast and good it answers.

    python -m benchmarks.index --sections=build,query,memory,large

`build`: five epochs of `model.fit` on MNIST, then the index of their five
checkpoints. `query`: from one image to the ids of ten proponents and ten
opponents, and the search in it alone; the share of the exact ten that is
found, without and with re-ranking. `memory`: the peak of `build` at two
sizes, each in a new process. `large`: the search alone, on synthetic rows.
`quality`: the LDS of EK-FAC and of TRAK by themselves and from an index, on the
trainings of `benchmarks.quality` in `--cache_dir`; it is not among the default.
With `--peer=captum` the same examples, queries and weights are given to
captum's `TracInCPFastRandProj`.
"""

import os
import pathlib
import tempfile
import time
from collections.abc import Callable

import keras
import numpy as np
from absl import app, flags

import keras_tracin as kt
from benchmarks import _cases, _index_quality, _measure, _models
from keras_tracin.index import search as searches
from keras_tracin.index.store import Store

SECTIONS = ("build", "query", "memory", "large", "quality")

_SECTIONS = flags.DEFINE_list(
    "sections", list(SECTIONS[:-1]), "What to measure."
)
_NUM_TRAIN = flags.DEFINE_integer(
    "num_train", 60_000, "Number of training examples.", lower_bound=100
)
_SMALL = flags.DEFINE_integer(
    "small_num_train",
    10_000,
    "Number of training examples whose peak memory is compared with that at "
    "--num_train.",
    lower_bound=100,
)
_EPOCHS = flags.DEFINE_integer(
    "epochs", 5, "Epochs, each of which leaves a checkpoint.", lower_bound=1
)
_DIM = flags.DEFINE_integer(
    "dim", 1024, "Length of a sketch at one checkpoint.", lower_bound=1
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "float16", "int8"], "Type of the rows."
)
_QUERIES = flags.DEFINE_integer(
    "queries", 200, "Number of test examples that are asked for.", lower_bound=1
)
_RERANK = flags.DEFINE_integer(
    "rerank", 200, "Candidates that are scored exactly.", lower_bound=10
)
_LARGE_ROWS = flags.DEFINE_integer(
    "large_rows", 1_000_000, "Number of synthetic rows.", lower_bound=1000
)
_LARGE_WIDTH = flags.DEFINE_integer(
    "large_width", 1024, "Length of a synthetic row.", lower_bound=1
)
_SEARCH = flags.DEFINE_enum(
    "search",
    None,
    list(searches.KINDS),
    "Kind of search; by size if not given.",
)
_DIRECTORY = flags.DEFINE_string(
    "directory",
    None,
    "Where run and index are kept, and used again; a temporary one by default.",
)
_PEER = flags.DEFINE_enum(
    "peer", "none", ["none", "captum"], "Library to compare with."
)
_SETTINGS = flags.DEFINE_list(
    "settings",
    ["housing_mlp", "dbpedia_words", "mnist_mlp"],
    "Settings of `benchmarks.quality` for the section `quality`.",
)
_DIMS = flags.DEFINE_list(
    "dims",
    ["1024", "512", "2048"],
    "Lengths of rows for the section `quality`.",
)
_CHECKPOINTS = flags.DEFINE_integer(
    "checkpoints", 1, "Checkpoints for the section `quality`.", lower_bound=1
)
_CACHE_DIR = flags.DEFINE_string(
    "cache_dir", "quality", "Directory of the results of `benchmarks.quality`."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    os.environ.get("KERAS_TRACIN_DATA", "../shared/data"),
    "Folder that holds tfds/mnist. Without it the input is random.",
)

K = 10
_WARM_UP = 5  # calls before latencies count


def _show(name: str, value: object) -> None:
    print(f"{name:<50} {value}", flush=True)


def _digits(count: int) -> tuple[_models.Arrays, _models.Arrays]:
    known = _models.mnist_in(_DATA_DIR.value)
    return _models.load_examples(_models.WORKLOADS["cnn"], count, known)


def trained(
    directory: pathlib.Path, train: _models.Arrays
) -> tuple[keras.Model, kt.TrainingRun]:
    """A trained network, and its run with a checkpoint after each epoch."""
    model = _models.WORKLOADS["cnn"].compiled()
    if (directory / "run").is_dir():
        run = kt.TrainingRun(directory / "run")
        model.load_weights(run[-1].path)
        return model, run
    model.fit(
        *train,
        epochs=_EPOCHS.value,
        verbose=0,
        callbacks=[kt.TracInCheckpoint(directory / "run")],
    )
    return model, kt.TrainingRun(directory / "run")


def build(
    directory: pathlib.Path, method: kt.TracIn, train: _models.Arrays
) -> None:
    """Builds the index, and prints its time and that of the epochs."""
    fit = 0.0
    if "build" in _SECTIONS.value:
        learner = _models.WORKLOADS["cnn"].compiled()
        fit = _seconds(
            lambda: learner.fit(*train, epochs=_EPOCHS.value, verbose=0)
        )
        _show(f"{_EPOCHS.value} epochs of fit, s", f"{fit:.1f}")
    took = _seconds(lambda: _built(method, directory))
    if "build" in _SECTIONS.value:
        _show("build, s", f"{took:.1f}")
        _show("build / epochs", f"{took / fit:.2f}")


def _built(method: kt.TracIn, directory: pathlib.Path) -> kt.InfluenceIndex:
    return kt.InfluenceIndex.build(
        method,
        directory / "index",
        projection=kt.TensorSketch(_DIM.value),
        dtype=_DTYPE.value,
        search=_SEARCH.value,
    )


def query(
    directory: pathlib.Path, method: kt.TracIn, test: _models.Arrays
) -> None:
    """Prints latencies and recall."""
    model = method.engine.model
    index = kt.InfluenceIndex(directory / "index", model, method=method)
    print(index, flush=True)
    size = sum(
        path.stat().st_size
        for path in (directory / "index").rglob("*")
        if path.is_file()
    )
    _show("size on disk, MB", f"{size / 2**20:,.0f}")
    ones = [
        tuple(part[at : at + 1] for part in test) for at in range(len(test[0]))
    ]
    _show_latency("from an image to ids", lambda one: index.query(one, K), ones)
    search = searches.load(Store(directory / "index"))
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(len(index), len(ones), replace=False))
    vectors = search.shards.read(rows)[:, np.newaxis]
    _show_latency("search alone", lambda v: search.both(v, K), vectors)
    _show_latency(
        f"with re-ranking of {_RERANK.value}",
        lambda one: index.query(one, K, rerank=_RERANK.value),
        ones[:20],
    )
    exact = method.top_k(test, K, verbose=0)
    for name, rerank in (("from sketches", 0), ("re-ranked", _RERANK.value)):
        results = index.query(test, K, rerank=rerank)
        _show(f"recall@{K}, {name}", _recalls(results, exact))


def _recalls(results: kt.TopK, exact: kt.TopK) -> str:
    return ", ".join(
        f"{_recall(getattr(results, side).ids, getattr(exact, side).ids):.3f} "
        f"{side}"
        for side in ("proponents", "opponents")
    )


def _recall(results: np.ndarray, exact: np.ndarray) -> float:
    shares = [
        np.isin(truth, row).mean()
        for truth, row in zip(exact, results, strict=True)
    ]
    return float(np.mean(shares))


def _show_latency(name: str, call: Callable, arguments) -> None:
    """Prints the median and the 99th percentile of latencies."""
    for argument in arguments[:_WARM_UP]:
        call(argument)
    times = [_seconds(lambda one=one: call(one)) * 1e3 for one in arguments]
    p50, p99 = np.percentile(times, [50, 99])
    _show(f"{name}: p50, p99, ms", f"{p50:.2f}, {p99:.2f}")


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def memory() -> None:
    """Prints the peak memory of `build` in new processes, without the input."""
    peaks = {}
    for size in (_SMALL.value, _NUM_TRAIN.value):
        weighed = _measure.in_new_process(_cases.index_memory, size, _DIM.value)
        peaks[size] = weighed.peak
        added = (weighed.peak - weighed.before) / 2**20
        _show(
            f"peak of build at {size:,}, MiB (added)",
            f"{weighed.peak / 2**20:,.0f} ({added:,.0f})",
        )
    ratio = peaks[_NUM_TRAIN.value] / peaks[_SMALL.value]
    _show("ratio of the peaks", f"{ratio:.2f}")


def large(directory: pathlib.Path) -> None:
    """Prints latency and recall of the search alone, on synthetic rows.

    As for gradients, directions have decreasing weights (1/j for the j-th), and
    lengths differ by a factor of a thousand.
    """
    count, width = _LARGE_ROWS.value, _LARGE_WIDTH.value
    rng = np.random.default_rng(0)
    scales = 1 / np.arange(1, width + 1, dtype=np.float32)
    store = Store.open_or_create(directory / "large", {}, True)
    for start in range(0, count, 32_768):
        size = min(32_768, count - start)
        rows = _synthetic(rng, size, scales).astype(np.float16)
        ids = np.arange(start, start + size)
        store.put(store.manifest.num_shards, {"rows": rows, "ids": ids}, "")
        store.take(store.manifest.num_shards, "")
    queries = _synthetic(rng, _QUERIES.value, scales)
    sample = _synthetic(rng, 20, scales)
    made: list = []
    took = _seconds(
        lambda: made.extend(searches.make(store, sample, _SEARCH.value))
    )
    search = made[0]
    _show(
        f"search of {count:,} × {width:,} float16",
        f"{search.kind} of {search.basis.shape[1]} numbers, "
        f"made in {took:.0f} s",
    )
    search.both(queries, K)  # brings the rows into memory
    _show_latency(
        "its latency", lambda v: search.both(v, K), queries[:, np.newaxis]
    )
    truth = searches.scan(store.shards, queries, K).proponents.ids
    share = _recall(search.best(queries, K)[0], truth)
    _show(f"its recall@{K} of the products with all rows", f"{share:.3f}")


def _synthetic(rng, count: int, scales: np.ndarray) -> np.ndarray:
    rows = rng.standard_normal((count, len(scales)), np.float32) * scales
    return rows * 10 ** rng.uniform(-3, 0, (count, 1)).astype(np.float32)


def peer(
    model: keras.Model,
    run: kt.TrainingRun,
    train: _models.Arrays,
    test: _models.Arrays,
) -> None:
    """Prints the same measurements for captum's class, on the same weights."""
    from benchmarks import _captum  # Needs PyTorch, which only this does.

    made: list = []
    took = _seconds(
        lambda: made.append(_captum.fast_random_projection(model, run, train))
    )
    nearest = made[0]
    _show("captum: build, s", f"{took:.1f}")
    ones = [
        tuple(part[at : at + 1] for part in test) for at in range(len(test[0]))
    ]
    _show_latency(
        "captum: from an image to proponents", lambda one: nearest(one, K), ones
    )
    exact = kt.TracIn(model, train, run).top_k(test, K, verbose=0)
    last_layer = kt.TracIn(model, train, run, layers=[model.layers[-1]])
    last = last_layer.top_k(test, K, verbose=0)
    results = nearest(test, K)
    for name, truth in (("all layers", exact), ("the last layer", last)):
        share = _recall(results, truth.proponents.ids)
        _show(f"captum: recall@{K} of exact TracIn, {name}", f"{share:.3f}")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}")
    sections = set(_SECTIONS.value)
    with tempfile.TemporaryDirectory() as folder:
        directory = pathlib.Path(_DIRECTORY.value or folder)
        if sections & {"build", "query"} or _PEER.value != "none":
            train, test = _digits(_NUM_TRAIN.value)
            test = tuple(part[: _QUERIES.value] for part in test)
            model, run = trained(directory, train)
            method = kt.TracIn(model, train, run)
            if sections & {"build", "query"}:
                build(directory, method, train)
            if "query" in sections:
                query(directory, method, test)
            if _PEER.value == "captum":
                peer(model, run, train, test)
        if "memory" in sections:
            memory()
        if "large" in sections:
            large(directory)
        if "quality" in sections:
            for name in _SETTINGS.value:
                _index_quality.compare(
                    name,
                    list(map(int, _DIMS.value)),
                    _CACHE_DIR.value,
                    _DATA_DIR.value,
                    _CHECKPOINTS.value,
                    _show,
                )


flags.register_validator(
    "sections",
    lambda names: {*SECTIONS, ""}.issuperset(names),
    message=f"Expected some of {', '.join(SECTIONS)}.",
)

if __name__ == "__main__":
    app.run(main)
