"""The LDS of scores from an index, against the method's own scores.

The trainings and retrainings are those of `benchmarks.quality`.
"""

import pathlib
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np

import keras_tracin as kt
from benchmarks import _quality_methods as _methods
from benchmarks import _quality_outcomes as _outcomes
from benchmarks._quality_settings import QUERIES, SETTINGS, Arrays
from keras_tracin.index.store import Store

_SUBSETS = 50
_RESAMPLES = 1000

Show = Callable[[str, str], None]


def compare(
    name: str,
    dims: list[int],
    cache_dir: str,
    data_dir: str,
    count: int,
    show: Show,
) -> None:
    """Prints the LDS of a setting's methods, and what an index loses of it.

    Args:
        name: name of the setting.
        dims: numbers of a row at a checkpoint; those of int8 and float16 have
            the first of them.
        cache_dir: directory of recorded trainings.
        data_dir: directory of the data.
        count: number of checkpoints.
        show: prints a name and a value.
    """
    warnings.simplefilter("ignore")
    folder = pathlib.Path(cache_dir, name)
    setting = SETTINGS[name].prepared(data_dir, folder)
    train, everyone = setting.load(data_dir)
    test = tuple(part[:QUERIES] for part in everyone)
    retrained = _retrained(name, setting.describe(), train, everyone)
    problem = _methods.Problem(setting, train, test, folder)
    trained = problem.trained()
    run = _methods.evenly(trained.run, min(count, len(trained.run)))
    known: dict = {}
    for method, projection, dtype in _indexed(trained.model, train, run, dims):
        title = method.title
        if title not in known:
            scores = method.influence(test, verbose=0)
            whole = kt.evaluation.lds(scores, retrained)
            known[title] = scores, whole
            show(f"{name}, {title}: LDS of the method", f"{whole.mean:.4f}")
        scores, whole = known[title]
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as directory:
            index = kt.InfluenceIndex.build(
                method, directory, projection=projection, dtype=dtype
            )
            top = index.query(test, k=len(index))
            took = time.perf_counter() - started
            shards = Store(pathlib.Path(directory)).shards
            row = sum(
                shards.array(kind, 0)[:1].nbytes
                for kind in ("rows", "scales")
                if shards.has(kind)
            )
        own = kt.evaluation.lds(_all_scores(top, scores), retrained)
        show(
            f"{name}, {title}, {shards.width} numbers, {dtype}",
            f"{own.mean - whole.mean:+.4f} {_interval(own, whole)}; "
            f"{row:,} bytes a row; {took:.0f} s; {index.recall}",
        )


def _indexed(model, train: Arrays, run, dims: list[int]) -> Iterator[tuple]:
    """Methods, projections and dtypes of what is indexed."""
    ekfac = kt.InfluenceFunctions(model, train, run=run, damping="auto")
    trak = kt.TRAK(model, train, run)
    for dim in dims:
        yield ekfac, kt.TensorSketch(dim), "float32"
    yield trak, None, "float32"
    for method, projection in ((ekfac, kt.TensorSketch(dims[0])), (trak, None)):
        for dtype in ("int8", "float16"):
            yield method, projection, dtype


def _retrained(name, config, train, everyone) -> kt.evaluation.Retrained:
    """The outcomes of retraining that are kept in the repository."""
    path = pathlib.Path(__file__).with_name("quality_results") / f"{name}.npz"
    outcomes = _outcomes.load(
        path,
        _outcomes.describe(config, train, everyone),
        len(train[0]),
        _SUBSETS,
    )
    if outcomes is None:
        raise ValueError(f"No outcomes of {name} in {path}: see quality.py.")
    return kt.evaluation.Retrained(
        outcomes.masks,
        outcomes.each[:, :, :QUERIES],
        outcomes.train_ids,
        np.arange(QUERIES),
    )


def _all_scores(top: kt.TopK, like: kt.Attribution) -> kt.Attribution:
    """All scores of a result that ranks every training example."""
    order = np.argsort(top.proponents.ids, axis=1)
    scores = np.take_along_axis(top.proponents.scores, order, axis=1)
    return kt.Attribution(scores, like.query_ids, like.train_ids)


def _interval(own, whole) -> str:
    """The 95% interval of a mean difference, paired by query."""
    gaps = own.per_query - whole.per_query
    rng = np.random.default_rng(0)
    picks = rng.integers(len(gaps), size=[_RESAMPLES, len(gaps)])
    low, high = np.percentile(gaps[picks].mean(axis=1), [2.5, 97.5])
    return f"({low:+.4f} to {high:+.4f})"
