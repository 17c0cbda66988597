"""One process of a call: scores, keeps parts, and is killed where it is told.

Usage: python -m tests.engine.scoring_worker RUN DIRECTORY CALL RESULT
    KILL_AFTER [STRATEGY]
"""

import contextlib
import os
import signal
import sys

import keras
import numpy as np
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.engine.parts import Parts


def examples(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 4)).astype("float32")
    return x, rng.integers(0, 3, count)


TRAIN, TEST = examples(600, 0), examples(3, 1)


def build():
    """A small network, the same in every process."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, activation="tanh"),
            keras.layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    return model


def tracin(run, strategy=None, train=TRAIN):
    """One that has so little memory that it cuts its work into parts."""
    with contextlib.nullcontext() if strategy is None else strategy.scope():
        model = build()
    return kt.TracIn(model, train, run, strategy=strategy, memory_limit=20_000)


def answer(method, call, directory=None):
    """The result of one of the three calls, kept in parts if wanted."""
    options = {"directory": directory, "verbose": 0}
    if call == "self_influence":
        return method.self_influence(**options)
    if call == "top_k":
        return method.top_k(TEST, 4, **options)
    return method.influence(TEST, **options)


def arrays_of(result):
    """The arrays of any result, by name."""
    if isinstance(result, kt.TopK):
        return {
            f"{side}_{name}": getattr(getattr(result, side), name)
            for side in ("proponents", "opponents")
            for name in ("ids", "scores")
        }
    return {"scores": np.asarray(result.scores)}


def kill_after(count, index_file):
    """Notes each part that is written; kills this process after some."""
    written = []
    put = Parts.put

    def put_and_die(self, block, chunk, *args, **kwargs):
        put(self, block, chunk, *args, **kwargs)
        written.append(chunk)
        np.save(index_file, written)
        if len(written) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    Parts.put = put_and_die


def main(run, directory, call, result, count, strategy=None):
    index = os.path.basename(result).removesuffix(".npz")
    kill_after(int(count), os.path.join(directory, f"wrote-{index}.npy"))
    os.makedirs(directory, exist_ok=True)
    if strategy is not None:
        strategy = getattr(tf.distribute, strategy)()
    found = answer(tracin(run, strategy), call, directory)
    np.savez(result, **arrays_of(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
