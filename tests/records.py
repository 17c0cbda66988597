"""Examples in several TFRecord files, and the functions that pieces name."""

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from tests.engine import scoring_worker
from tests.index import index_worker

RUN, RECORDS = "KERAS_TRACIN_TEST_RUN", "KERAS_TRACIN_TEST_RECORDS"
COUNT = len(index_worker.TRAIN[0])
PER_FILE = 350  # so that shards begin and end within files
# Options of pieces whose examples are read from the files.
OF_RECORDS = {
    "factory": "tests.records:make_tracin_of_records",
    "num_examples": COUNT,
    "read": "tests.records:read",
}
# The two that Beam's DirectRunner chooses from, without what it downloads.
RUNNERS = (
    "BundleBasedDirectRunner",
    "apache_beam.runners.portability.fn_api_runner.FnApiRunner",
)


@contextlib.contextmanager
def written(directory):
    """A run and its training examples in files, where the factories look."""
    run, files = Path(directory, "run"), Path(directory, "records")
    model = scoring_worker.build()
    callback = kt.TracInCheckpoint(run)
    model.fit(*scoring_worker.TRAIN, callbacks=[callback], epochs=2, verbose=0)
    files.mkdir()
    write(files, *index_worker.TRAIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RUN, str(run))
        patch.setenv(RECORDS, str(files))
        yield run


def write(directory, x, y, per_file=PER_FILE):
    """Writes examples to files that are named in their order."""
    for number, start in enumerate(range(0, len(x), per_file)):
        path = str(Path(directory) / f"part-{number:03}.tfrecord")
        with tf.io.TFRecordWriter(path) as writer:
            for row, label in zip(
                x[start : start + per_file],
                y[start : start + per_file],
                strict=True,
            ):
                content = {"x": row.tobytes(), "y": label.tobytes()}
                feature = {
                    name: tf.train.Feature(
                        bytes_list=tf.train.BytesList(value=[value])
                    )
                    for name, value in content.items()
                }
                example = tf.train.Example(
                    features=tf.train.Features(feature=feature)
                )
                writer.write(example.SerializeToString())


def files(directory):
    return sorted(map(str, Path(directory).glob("*.tfrecord")))


def parsed(names, width=4):
    """The examples in some files, one by one."""

    def parse(record):
        text = tf.io.FixedLenFeature([], tf.string)
        found = tf.io.parse_single_example(record, {"x": text, "y": text})
        x = tf.io.decode_raw(found["x"], tf.float32)
        (y,) = tf.unstack(tf.io.decode_raw(found["y"], tf.int64), 1)
        return tf.ensure_shape(x, [width]), y

    return tf.data.TFRecordDataset(names).map(parse)


def make_tracin():
    """A factory: TracIn of arrays."""
    return index_worker.tracin(os.environ[RUN])


def make_tracin_of_records():
    """A factory: TracIn of what is in the files."""
    train = parsed(files(os.environ[RECORDS])).batch(100)
    return index_worker.tracin(os.environ[RUN], train=train)


def queries():
    """A factory: the queries of the workers."""
    return scoring_worker.TEST


def read(start, stop):
    """Training examples from `start` to `stop`, out of a few files."""
    names = files(os.environ[RECORDS])
    first, last = start // PER_FILE, (stop - 1) // PER_FILE
    within = parsed(names[first : last + 1]).skip(start - first * PER_FILE)
    return within.take(stop - start).batch(64)


def read_too_few(start, stop):
    return read(start, stop - 1)


def read_others(start, stop):
    return read(start, stop).map(lambda x, y: (x + 1, y))


def read_another_form(start, stop):
    return np.zeros([stop - start, 5], "float32"), np.zeros(stop - start, int)
