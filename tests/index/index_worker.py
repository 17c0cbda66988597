"""One process of the build of an index; is killed where it is told.

Usage: python -m tests.index.index_worker RUN DIRECTORY NOTES [KILL_IN]
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

import keras_tracin as kt
from keras_tracin.index.store import Store
from keras_tracin.storage import files
from tests.engine import scoring_worker

TRAIN = scoring_worker.examples(1500, 0)  # six shards
PROJECTION = kt.GaussianProjection(16, seed=2)
FINGERPRINT = "fingerprint.npz"  # numbers that are alike up to rounding


def tracin(run, strategy=None, train=TRAIN):
    """The same in every process."""
    return in_small_shards(scoring_worker.tracin(run, strategy, train))


def in_small_shards(method):
    """A method whose index has a batch of 256 examples in each shard."""
    return method.within(shard=1)


def build(method, directory):
    """An index of small shards: one batch of 256 each."""
    method = in_small_shards(method)
    return kt.InfluenceIndex.build(method, directory, projection=PROJECTION)


def contents(directory):
    """All files of an index, by their names."""
    return {
        path.relative_to(directory): path.read_bytes()
        for path in Path(directory).rglob("*")
        if path.is_file() and path.name != FINGERPRINT
    }


def note_shards(notes):
    """Appends the number of each shard that this process puts to a file."""
    put = Store.put

    def put_and_note(self, shard, *arguments):
        put(self, shard, *arguments)
        Path(notes).write_text(json.dumps([*noted(notes), shard]))

    Store.put = put_and_note


def noted(notes):
    """The numbers noted so far."""
    path = Path(notes)
    return json.loads(path.read_text()) if path.is_file() else []


def kill_in(shard):
    """Kills this process in the middle of writing a shard."""
    describe = files.describe

    def describe_or_die(path):
        if path.parent.name == "rows" and int(path.stem) == shard:
            os.kill(os.getpid(), signal.SIGKILL)
        return describe(path)

    files.describe = describe_or_die


def main(run, directory, notes, shard=None):
    note_shards(notes)
    if shard is not None:
        kill_in(int(shard))
    index = build(tracin(run), directory)
    found = index.query(scoring_worker.TEST, 4).proponents.ids
    np.save(f"{notes}.npy", found)


if __name__ == "__main__":
    main(*sys.argv[1:])
