"""Exact TracIn scores of all pairs, beside what they should cost.

    python -m benchmarks.pairwise --models=mlp,cnn --output=pairwise.md

For each network, in one process and in turns: an epoch of `model.fit`, the
floor (see `_floor.py`), the scores, self-influence, and `tape.jacobian` on a
slice. Peak memory is that of a new process per case. With `--peer=captum` the
scores are compared with captum's, on the same weights. Ratios are what
matters: seconds differ between machines, and between hours on one machine.
"""

import contextlib
import json
import os
import pathlib
import platform

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from benchmarks import _cases, _floor, _measure, _models

SECTIONS = ("fit", "floor", "scores", "self_influence", "jacobian", "memory")

_MODELS = flags.DEFINE_list(
    "models", list(_models.WORKLOADS), "Networks to measure."
)
_SECTIONS = flags.DEFINE_list("sections", list(SECTIONS), "What to measure.")
_NUM_TRAIN = flags.DEFINE_integer(
    "num_train", 10_000, "Number of training examples.", lower_bound=1
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 5, "Runs of which the median is taken.", lower_bound=1
)
_FIT_BATCH_SIZE = flags.DEFINE_integer(
    "fit_batch_size", 32, "Batch size of the epoch.", lower_bound=1
)
_LARGE = flags.DEFINE_integer(
    "large_num_train",
    60_000,
    "Number of training examples whose peak memory in `top_k` is compared "
    "with that at --num_train.",
)
_PEER = flags.DEFINE_enum(
    "peer", "none", ["none", "captum"], "Library to compare with (mlp, cnn)."
)
_PEER_EXAMPLES = flags.DEFINE_integer(
    "peer_examples",
    None,
    "Number of training examples that the peer scores; its time is scaled up "
    "to --num_train. All of them by default.",
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    os.environ.get("KERAS_TRACIN_DATA", "../shared/data"),
    "Folder that holds tfds/mnist. Without it the input is random.",
)
_OUTPUT = flags.DEFINE_string("output", None, "A .json or .md file to write.")

PEER_BATCH_SIZES = (128, 256, 512, 1024)
PEER_SLICE = 1024

Results = dict[str, float | str]


def measure(name: str) -> Results:
    """All the figures of one network, by what they are called in the table."""
    workload = _models.WORKLOADS[name]
    train, test = _models.load_examples(
        workload, _NUM_TRAIN.value, _mnist_dir()
    )
    results: Results = {"queries": workload.num_queries}
    calls = {}
    with contextlib.ExitStack() as stack:
        model = workload.compiled()
        # Scores are taken at trained weights, where gradients are not alike.
        model.fit(*train, verbose=0)
        learner = workload.compiled()
        learner.set_weights(model.get_weights())
        if "fit" in _SECTIONS.value:
            calls["fit epoch, s"] = _cases.fit_epoch(
                learner, train, _FIT_BATCH_SIZE.value
            )
        if "floor" in _SECTIONS.value:
            one_pass = _floor.one_pass(model, *train)
            results["batch size of the pass"] = one_pass.size
            calls["one pass, s"] = one_pass.run
            calls["products, s"] = _floor.products(
                model, len(train[0]), len(test[0])
            )
        
    return results
