"""Measures scores as examples, queries, checkpoints and models grow.

    python -m benchmarks.scale --sections=line --output_dir=out/scale

- line: exact scores of N training examples × M queries at one checkpoint, and
  the line T = c0 + c1·N + c2·M + c3·N·M through them;
- checkpoints: the same N × M at 1 to 10 checkpoints;
- parameters: the MLP and the CNN at widths from 10⁴ to 10⁷ parameters;
- length: the transformer on 64 to 512 tokens;
- shares: shares of a batch's time for reading, the forward pass, the backward
  pass, and the products of the scores;
- plans: memory and time estimated by `plan()`, and measured;
- memory: peaks at 20,000 and 60,000 training examples;
- workers: two processes, each pinned to a core, that share one call, compared
  with one process.

With `--output_dir`, measured points and the line are drawn there.
"""

import itertools
import pathlib
import time

import numpy as np
from absl import app, flags

from benchmarks import _cases, _measure, _plans, _scale

SECTIONS = (
    "line",
    "checkpoints",
    "parameters",
    "length",
    "shares",
    "plans",
    "memory",
    "workers",
)

_SECTIONS = flags.DEFINE_list("sections", list(SECTIONS), "What to measure.")
_MODELS = flags.DEFINE_list("models", ["mlp", "cnn"], "Networks of the line.")
_NUM_TRAIN = flags.DEFINE_list(
    "num_train",
    ["1000", "4000", "16000", "60000"],
    "Training examples of the line.",
)
_NUM_QUERIES = flags.DEFINE_list(
    "num_queries", ["10", "100", "1000"], "Queries of the line."
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 3, "Runs of which the median is taken.", lower_bound=1
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Where pictures go.")

flags.register_validator(
    "sections",
    lambda names: frozenset(SECTIONS).issuperset(names),
    message=f"Expected some of {', '.join(SECTIONS)}.",
)
flags.register_validator(
    "models",
    lambda names: {"mlp", "cnn"}.issuperset(names),
    message="Expected some of mlp, cnn.",
)


def _draw(
    name: str, sizes: np.ndarray, seconds: np.ndarray, fit: _scale.Line
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.subplots()
    for m in np.unique(sizes[:, 1]):
        rows = sizes[:, 1] == m
        (points,) = axes.loglog(
            sizes[rows, 0], seconds[rows], "o", label=f"{m:,} queries"
        )
        n = np.geomspace(sizes[:, 0].min(), sizes[:, 0].max(), 50)
        curve = fit.at(np.stack([n, np.full_like(n, m)], axis=1))
        axes.loglog(n, curve, color=points.get_color(), linewidth=1)
    axes.set(xlabel="Training examples", ylabel="Seconds")
    axes.set_title(f"{name}: measured, and c0 + c1·N + c2·M + c3·N·M")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,g}")
        axis.set_minor_formatter("")
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    directory = pathlib.Path(_OUTPUT_DIR.value)
    directory.mkdir(parents=True, exist_ok=True)
    figure.savefig(directory / f"scale_{name}.png")


def _print_line(name: str) -> None:
    counts = map(int, _NUM_TRAIN.value), map(int, _NUM_QUERIES.value)
    sizes = np.array(list(itertools.product(*counts)))
    seconds, fit = _scale.line(name, sizes, _REPEATS.value)
    print(f"\n| {name}: N | M | s | line, s |\n|---:|---:|---:|---:|")
    for (n, m), took, drawn in zip(sizes, seconds, fit.at(sizes), strict=True):
        print(f"| {n:,} | {m:,} | {took:.3f} | {drawn:.3f} |")
    c = ", ".join(f"{value:.3g}" for value in fit.constants)
    print(f"c0, c1, c2, c3 = {c}; R² = {fit.r_squared:.5f}", flush=True)
    if _OUTPUT_DIR.value:
        _draw(name, sizes, seconds, fit)


def _print_checkpoints(name: str) -> None:
    seconds = _scale.checkpoints(name, _REPEATS.value)
    cells = [
        f"{k}: {s:.3f} ({s / k / seconds[1]:.2f})" for k, s in seconds.items()
    ]
    print(f"{name}, s by checkpoints (each over one): {', '.join(cells)}")


def _print_plans() -> None:
    print("\n| | work | limit | MB said | peak | ratio | s said | s | ratio |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|")
    for case in _plans.CASES:
        results = _measure.in_new_process(_plans.outcome, case)
        print(_plans.row(case, results), flush=True)


def _print_memory() -> None:
    """Prints peaks of new processes, without the input arrays."""
    sizes = 20_000, 60_000
    calls = {
        "top_k": lambda n: (_cases.memory, "top_k", "cnn", n),
        "self_influence": lambda n: (_cases.memory, "self_influence", "cnn", n),
        "index": lambda n: (_cases.index_memory, n, 1024),
    }
    print("\n| CNN, MiB | 20,000 | 60,000 | ratio |\n|---|---:|---:|---:|")
    for name, call in calls.items():
        small, large = (
            _measure.in_new_process(*call(n)).peak / 2**20 for n in sizes
        )
        ratio = large / small
        print(
            f"| {name} | {small:,.0f} | {large:,.0f} | {ratio:.2f} |",
            flush=True,
        )


def main(_):
    started = time.perf_counter()
    for name in _MODELS.value:
        if "line" in _SECTIONS.value:
            _print_line(name)
        if "checkpoints" in _SECTIONS.value:
            _print_checkpoints(name)
        if "shares" in _SECTIONS.value:
            results = _scale.shares(name, _REPEATS.value)
            whole = sum(results.values())
            cells = [f"{k} {v / whole:.0%}" for k, v in results.items()]
            print(f"{name}, shares of a batch: {', '.join(cells)}")
        if "workers" in _SECTIONS.value:
            results = _scale.workers(name, _REPEATS.value)
            print(
                f"{name}, one process {results[1]:.2f} s, two {results[2]:.2f} "
                f"s: {results[1] / results[2]:.2f} times as fast"
            )
    if "parameters" in _SECTIONS.value:
        print("\n| width | parameters | fit, s | scores, s | scores / fit |")
        print("|---:|---:|---:|---:|---:|")
        for build, widths in (
            (_scale.mlp_of, (12, 110, 680, 2_800)),
            (_scale.cnn_of, (6, 20, 64, 200)),
        ):
            for width in widths:
                row = _scale.grown(build, width, 2_000, _REPEATS.value)
                print(f"| {width} | {row} |", flush=True)
    if "length" in _SECTIONS.value:
        print("\n| length | parameters | fit, s | scores, s | scores / fit |")
        print("|---:|---:|---:|---:|---:|")
        for length in (64, 128, 256, 512):
            row = _scale.grown(
                _scale.transformer_on, length, 512, _REPEATS.value
            )
            print(f"| {length} | {row} |", flush=True)
    if "plans" in _SECTIONS.value:
        _print_plans()
    if "memory" in _SECTIONS.value:
        _print_memory()
    print(f"\nIn all {time.perf_counter() - started:.0f} s.")


if __name__ == "__main__":
    app.run(main)
