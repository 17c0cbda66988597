"""Measures exact TracIn scores of all pairs, and reference costs.

    python -m benchmarks.pairwise --models=mlp,cnn --output=pairwise.md

For each network, in one process and in turns: an epoch of `model.fit`, the
floor (see `_floor.py`), the scores, self-influence, and `tape.jacobian` on a
slice. Peak memory is that of a new process per case. With `--peer=captum` the
scores are compared with captum's, on the same weights. Read the ratios: seconds
differ between machines, and between hours on one machine.
"""

import json
import os
import pathlib
import platform
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import keras_tracin as kt
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
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    os.environ.get("KERAS_TRACIN_DATA", "../shared/data"),
    "Folder that holds tfds/mnist. Without it the input is random.",
)
_OUTPUT = flags.DEFINE_string("output", None, "A .json or .md file to write.")


for _flag, _known in (("models", _models.WORKLOADS), ("sections", SECTIONS)):
    flags.register_validator(
        _flag,
        lambda names, known=frozenset(_known): known.issuperset(names),
        message=f"Expected some of {', '.join(_known)}.",
    )

# Names of what is timed; their medians are in seconds.
FIT = "fit epoch, s"
PASS = "one pass, s"
PRODUCTS = "matrix products alone, s"
SCORES = "scores, s"
SELF_INFLUENCE = "self-influence, s"
JACOBIAN = "tape.jacobian on its slice, s"
PEER = "captum, s"
FLOOR = "floor, s"
ALL_JACOBIANS = "tape.jacobian, extrapolated, s"
RATIOS = (
    (SCORES, FLOOR),
    (SCORES, FIT),
    (SELF_INFLUENCE, FIT),
    (ALL_JACOBIANS, FIT),
    (PEER, SCORES),
)
TOLERANCE = 1e-4
PEER_BATCH_SIZES = (128, 256, 512, 1024)

Calls = dict[str, Callable[[], object]]
Results = dict[str, float]


def measure(name: str) -> Results:
    """All measurements of one network, in the order of the table's rows."""
    workload = _models.WORKLOADS[name]
    train, test = _models.load_examples(workload, _NUM_TRAIN.value, _digits())
    model = workload.compiled()
    # At trained weights, where the gradients of examples are not all alike.
    model.fit(*train, verbose=0)
    results: Results = {"queries": len(test[0])}
    with _cases.tracin(model, train) as method:
        calls = _calls(workload, model, method, train, test, results)
        if _compares(workload):
            calls |= _peer_call(model, method, train, test, results)
        seconds = _measure.medians(calls, _REPEATS.value)
    results |= seconds
    results |= _derived(seconds, results)
    if "memory" in _SECTIONS.value:
        results |= _memory(name)
    return results


def _calls(
    workload: _models.Workload,
    model: keras.Model,
    method: kt.TracIn,
    train: _models.Arrays,
    test: _models.Arrays,
    results: Results,
) -> Calls:
    """The calls to time. Adds the selected sizes to `results`."""
    calls: Calls = {}
    sections = _SECTIONS.value
    if "fit" in sections:
        learner = workload.compiled()
        calls[FIT] = _cases.fit_epoch(learner, train, _FIT_BATCH_SIZE.value)
    if "floor" in sections:
        one_pass = _floor.one_pass(model, *train)
        results["batch size of the pass"] = one_pass.size
        calls[PASS] = one_pass.run
        calls[PRODUCTS] = _floor.products(model, len(train[0]), len(test[0]))
    if "scores" in sections:
        calls[SCORES] = lambda: method.influence(test, verbose=0)
    if "self_influence" in sections:
        calls[SELF_INFLUENCE] = lambda: method.self_influence(verbose=0)
    if "jacobian" in sections:
        size = min(workload.jacobian_examples, len(train[0]))
        results["examples in the slice"] = size
        calls[JACOBIAN] = _cases.jacobian(model, train, size)
    return calls


def _compares(workload: _models.Workload) -> bool:
    return _PEER.value == "captum" and workload.reads_digits


def _peer_call(
    model: keras.Model,
    method: kt.TracIn,
    train: _models.Arrays,
    test: _models.Arrays,
    results: Results,
) -> Calls:
    """Calls captum. Adds the difference from our scores to `results`."""
    from benchmarks import _captum  # Needs PyTorch, which only this does.

    small = train[0][: max(PEER_BATCH_SIZES)], train[1][: max(PEER_BATCH_SIZES)]
    sizes = [b for b in PEER_BATCH_SIZES if b <= len(train[0])]
    batch_size = _measure.fastest(
        {
            b: _captum.influence(model, small, test, b)
            for b in sizes or [len(train[0])]
        }
    )
    call = _captum.influence(model, train, test, batch_size)
    ours = method.influence(test, verbose=0).scores
    with _cases.tracin(model, test) as on_queries:
        of_queries = on_queries.self_influence(verbose=0).scores
    of_train = method.self_influence(verbose=0).scores
    scale = np.sqrt(np.outer(of_queries, of_train))
    # [m, n]. Where a ReLU or a maximum hangs on the last bits of float32, the
    # two choose differently for an example: a few rows differ, not all.
    differences = np.abs(ours - call()) / scale
    results["largest difference from captum, of √(s_ii s_jj)"] = float(
        differences.max()
    )
    results[f"training examples that differ by over {TOLERANCE:.0e}"] = int(
        np.sum(differences.max(axis=0) > TOLERANCE)
    )
    results["captum batch size"] = batch_size
    return {PEER: call}


def _derived(seconds: dict[str, float], sizes: Results) -> Results:
    """Sums, ratios and extrapolated times of the measurements."""
    derived: Results = {}
    values = dict(seconds)
    if PASS in values:
        derived[FLOOR] = values[PASS] + values[PRODUCTS]
    if JACOBIAN in values:
        scale = _NUM_TRAIN.value / sizes["examples in the slice"]
        derived[ALL_JACOBIANS] = values[JACOBIAN] * scale
    values |= derived
    for part, whole in RATIOS:
        if part in values and whole in values:
            ratio = f"{part} / {whole}".replace(", s", "")
            derived[ratio] = values[part] / values[whole]
    return derived


def _memory(name: str) -> Results:
    """Peak memory in MiB of new processes, without the input arrays."""
    results: Results = {}

    def weigh(case: str, num_train: int, label: str) -> float:
        memory = _measure.in_new_process(_cases.memory, case, name, num_train)
        results[f"{label}: peak, MiB"] = memory.peak / 2**20
        # The runtime alone takes most of a peak and hides what grows.
        results[f"{label}: peak above its start, MiB"] = (
            memory.peak - memory.before
        ) / 2**20
        return memory.peak

    for case in ("fit", "influence", "self_influence"):
        weigh(case, _NUM_TRAIN.value, case)
    if _models.WORKLOADS[name].reads_digits:
        small, large = (
            weigh("top_k", n, f"top_k {n:,} x {_cases.MEMORY_QUERIES}")
            for n in (_NUM_TRAIN.value, _LARGE.value)
        )
        results["ratio of the peaks of top_k"] = large / small
    return results


def table(results: dict[str, Results]) -> str:
    """The measurements as Markdown, with a column per network."""
    rows = list(
        dict.fromkeys(row for figures in results.values() for row in figures)
    )
    lines = [
        "| | " + " | ".join(results) + " |",
        "|---|" + "---:|" * len(results),
    ]
    for row in rows:
        cells = [_cell(figures.get(row)) for figures in results.values()]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, int) or value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _setting() -> dict[str, str | int]:
    return {
        "cores": os.cpu_count() or 1,
        "Python": platform.python_version(),
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "training examples": _NUM_TRAIN.value,
        "repeats": _REPEATS.value,
        "batch size of the epoch": _FIT_BATCH_SIZE.value,
        "input of mlp and cnn": "MNIST" if _digits() else "random",
    }


def _digits() -> str | None:
    return _models.mnist_in(_DATA_DIR.value)


def _write(path: pathlib.Path, results: dict[str, Results], text: str) -> None:
    if path.suffix == ".json":
        text = json.dumps({"setting": _setting(), "results": results}, indent=2)
    path.write_text(text + "\n", encoding="utf-8")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}")
    output = _OUTPUT.value and pathlib.Path(_OUTPUT.value)
    if output and output.suffix not in (".json", ".md"):
        raise app.UsageError(
            f"Expected --output to end in .json or .md. Received: {output}"
        )
    setting = ", ".join(f"{key}: {value}" for key, value in _setting().items())
    results: dict[str, Results] = {}
    for name in _MODELS.value:
        results[name] = measure(name)
        text = f"{setting}\n\n{table(results)}"
        print(text, flush=True)
        # After each network, so that an interrupted run keeps what it has.
        if output:
            _write(output, results, text)


if __name__ == "__main__":
    app.run(main)
