"""One process of a shared call, pinned to a core; see `scale.workers`.

Usage: python -m benchmarks._worker NETWORK NUM_TRAIN WEIGHTS PARTS INDEX
"""

import os
import pathlib
import sys
import time

import keras_tracin as kt
from benchmarks import _models

NUM_QUERIES = 500


def main(name, num_train, weights, parts, index):
    index = int(index)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[index]})
    workload = _models.WORKLOADS[name]
    train = _models.random_examples(workload, int(num_train), seed=0)
    queries = _models.random_examples(workload, NUM_QUERIES, seed=1)
    run = kt.TrainingRun.from_weights([weights], learning_rates=1.0)
    tracin = kt.TracIn(workload.compiled(), train, run, memory_limit=2**28)
    # Traces the steps, so that this is not timed.
    tracin.top_k(tuple(part[:2] for part in queries), 5, verbose=0)
    parts = pathlib.Path(parts)
    _wait_for_all(parts, index)
    started = time.perf_counter()
    tracin.top_k(queries, 10, directory=parts / "call", verbose=0)
    print(time.perf_counter() - started)


def _wait_for_all(parts: pathlib.Path, index: int) -> None:
    """Returns once each worker of the cluster is ready."""
    from keras_tracin.engine.distribution import worker_of

    _, workers = worker_of(None)
    parts.mkdir(parents=True, exist_ok=True)
    (parts / f"ready-{index}").touch()
    while len(list(parts.glob("ready-*"))) < workers:
        time.sleep(0.01)


if __name__ == "__main__":
    main(*sys.argv[1:])
