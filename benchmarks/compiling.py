"""Whether XLA pays: the same scores with `jit_compile` on and off.

    python -m benchmarks.compiling --models=mlp,cnn

For each network, in one process and in turns: scores of all pairs and
self-influence, at one checkpoint, each with steps compiled by XLA and without.
The first call, which compiles, is not timed but shown.
"""

import os
import pathlib
import time

from absl import app, flags

from benchmarks import _cases, _measure, _models

_MODELS = flags.DEFINE_list(
    "models", list(_models.WORKLOADS), "Networks to measure."
)
_NUM_TRAIN = flags.DEFINE_integer(
    "num_train", 2_000, "Number of training examples.", lower_bound=1
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 3, "Runs of which the median is taken.", lower_bound=1
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    os.environ.get("KERAS_TRACIN_DATA", "../shared/data"),
    "Folder that holds tfds/mnist. Without it the input is random.",
)

flags.register_validator(
    "models",
    lambda names: frozenset(_models.WORKLOADS).issuperset(names),
    message=f"Expected some of {', '.join(_models.WORKLOADS)}.",
)


def measure(name: str) -> None:
    """Prints one network's rows."""
    workload = _models.WORKLOADS[name]
    digits = _models.mnist_in(str(pathlib.Path(_DATA_DIR.value)))
    train, test = _models.load_examples(workload, _NUM_TRAIN.value, digits)
    model = workload.compiled()
    model.fit(*train, verbose=0)
    first, calls = {}, {}
    with (
        _cases.tracin(model, train, jit_compile=False) as plain,
        _cases.tracin(model, train, jit_compile=True) as compiled,
    ):
        for key, method in (("plain", plain), ("XLA", compiled)):
            calls["scores", key] = lambda method=method: method.influence(
                test, verbose=0
            )
            calls["self-influence", key] = lambda method=method: (
                method.self_influence(verbose=0)
            )
        for key, call in calls.items():
            started = time.perf_counter()
            call()
            first[key] = time.perf_counter() - started
        seconds = _measure.medians(calls, _REPEATS.value)
    for what in ("scores", "self-influence"):
        without, by_xla = seconds[what, "plain"], seconds[what, "XLA"]
        print(
            f"| {name}, {what} | {without:.2f} | {by_xla:.2f} | "
            f"{by_xla / without:.2f} | {first[what, 'XLA']:.1f} |",
            flush=True,
        )


def main(_):
    print("| | without, s | XLA, s | XLA / without | its first call, s |")
    print("|---|---:|---:|---:|---:|")
    for name in _MODELS.value:
        measure(name)


if __name__ == "__main__":
    app.run(main)
