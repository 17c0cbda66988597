"""What is held of weights: counted by plans, and no more than they say."""

import os
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.runs import TrainingRun, recorded_state, run_weights
from tests.error_rows import row

WIDTH = 64
DENSE = 4 * (WIDTH * WIDTH + WIDTH + WIDTH * 2 + 2)  # bytes of all weights


def build(optimizer="adam"):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((WIDTH,)),
            keras.layers.Dense(WIDTH),
            keras.layers.Dense(2),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss)
    return model


def examples(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, WIDTH)).astype("float32")
    return x, rng.integers(0, 2, count)


TRAIN, TEST = examples(32, 0), examples(2, 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    model = build()
    callback = kt.TracInCheckpoint(directory)
    model.fit(*TRAIN, epochs=2, callbacks=[callback], verbose=0)
    return model, TrainingRun(directory)


def test_a_plan_counts_the_copy_and_what_is_read(trained):
    model, run = trained
    plan = kt.TracIn(model, TRAIN, run).plan()
    largest = 4 * WIDTH * WIDTH
    assert DENSE <= plan.weights <= DENSE + 2 * largest
    aware = kt.TracIn(model, TRAIN, run, optimizer_aware=True).plan()
    # One number for each weight.
    assert 2 * DENSE <= aware.weights <= 2 * DENSE + 2 * largest
    queries = kt.TracIn(model, TRAIN, run, optimizer_aware=True).plan(TEST)
    plain = kt.TracIn(model, TRAIN, run).plan(TEST)
    # Two whole gradients, each of them twice for a moment.
    assert queries.memory - plain.memory >= 3 * DENSE


def test_a_limit_that_weights_exceed_is_a_warning_with_numbers(trained):
    model, run = trained
    tracin = kt.TracIn(model, TRAIN, run, memory_limit=DENSE // 2)
    with pytest.warns(
        UserWarning, match=row("memory-limit", f"={DENSE // 2:,} bytes")
    ):
        scores = tracin.self_influence(verbose=0).scores
    with pytest.warns(
        UserWarning, match=row("memory-limit")
    ):  # each call says so
        again = tracin.self_influence(verbose=0).scores
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ample = kt.TracIn(model, TRAIN, run, memory_limit=2**30)
        np.testing.assert_array_equal(again, scores)
        others = ample.self_influence(verbose=0).scores
    np.testing.assert_allclose(others, scores, rtol=0, atol=1e-5 * max(scores))


def test_weights_that_are_kept_are_not_those_that_are_lent(trained):
    model, run = trained
    before = [v.numpy() for v in model.variables]
    variable = model.trainable_variables[0]
    with run_weights(model) as load:
        for checkpoint in run:
            load(checkpoint)
            # What a step in place would do to memory that is shared.
            variable.value.assign_add(np.ones(variable.shape, "float32"))
            variable.value[:3].assign(np.zeros([3, WIDTH], "float32"))
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.Adam(0.01, amsgrad=True, use_ema=True),
        keras.optimizers.RMSprop(0.01, momentum=0.5, centered=True),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
    ],
    ids=["amsgrad", "rmsprop", "scaled"],
)
def test_slots_are_read_as_they_were_recorded(optimizer, tmp_path):
    model = build(optimizer)
    callback = kt.TracInCheckpoint(tmp_path)
    model.fit(*TRAIN, epochs=1, callbacks=[callback], verbose=0)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    names = [
        name
        for name in ("_velocities", "_velocity_hats", "_average_gradients")
        if getattr(inner, name, None)
    ]
    with recorded_state(model, TrainingRun(tmp_path)[-1]) as state:
        assert int(state.optimizer.iterations.value) == 1
        for name in names:
            for at, variable in enumerate(model.trainable_variables):
                np.testing.assert_array_equal(
                    state.slot(name, variable), getattr(inner, name)[at]
                )


PEAK = """
import pathlib, sys
import keras
from keras_tracin.runs import run_weights

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(l.split()[1]) for l in lines if l.startswith(key))

width, path = int(sys.argv[1]), pathlib.Path(sys.argv[2])
model = keras.Sequential([keras.Input((width,))])
for _ in range(20):
    model.add(keras.layers.Dense(width))
model.save_weights(path)
before = status("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins anew
with run_weights(model) as load:
    load(path)
    load(path)
print((status("VmHWM") - before) * 1024 / (20 * 4 * width**2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of Linux")
def test_weights_are_held_once_more_while_others_are_lent(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", PEAK, "1500", tmp_path / "a.weights.h5"],
        # Whatever is freed goes back at once, whoever else runs meanwhile.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        check=True,
        capture_output=True,
        text=True,
    )
    copies = float(process.stdout)
    # One, and a few of the twenty layers' while they are read.
    assert 0.9 < copies < 1.4
