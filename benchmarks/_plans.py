"""Estimates of `plan()` and measurements; see `scale.py`."""

import dataclasses
import statistics
import time

from benchmarks import _cases, _measure, _models

MB = 2**20


@dataclasses.dataclass(frozen=True)
class Case:
    """One call, and its memory limit.

    Attributes:
        name: name of the workload.
        num_train: number of training examples.
        num_queries: number of queries of `top_k`; 0 for `self_influence`.
        memory_limit: limit in bytes; None for half of the free memory.
    """

    name: str
    num_train: int
    num_queries: int
    memory_limit: int | None = None


CASES = (
    Case("mlp", 10_000, 100),
    Case("mlp", 60_000, 1_000),
    Case("mlp", 60_000, 1_000, 256 * MB),
    Case("mlp", 60_000, 0),
    Case("cnn", 10_000, 100),
    Case("cnn", 10_000, 1_000),
    Case("cnn", 10_000, 1_000, 256 * MB),
    Case("cnn", 10_000, 0),
    Case("resnet20", 2_000, 100),
    Case("resnet20", 2_000, 0, 256 * MB),
    Case("transformer", 1_000, 100),
    Case("transformer", 1_000, 100, 256 * MB),
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Estimated and measured bytes and seconds, and the plan as text."""

    announced: tuple[float, float]
    measured: tuple[float, float]
    plan: str


def outcome(case: Case, repeats: int = 3) -> Outcome:
    """Plans and measures a call in this new process.

    The time is the median of several calls, the memory is that of the first.
    """
    workload = _models.WORKLOADS[case.name]
    model = workload.compiled()
    train = _models.random_examples(workload, case.num_train, seed=0)
    test = _models.random_examples(workload, case.num_queries or 1, seed=1)
    with _cases.tracin(model, train, memory_limit=case.memory_limit) as method:
        before = _measure.resident_bytes()
        _measure.reset_peak()
        plan = method.plan(test if case.num_queries else None)

        def call():
            if case.num_queries:
                return method.top_k(test, k=10, verbose=0)
            return method.self_influence(verbose=0)

        times: list[float] = []
        while len(times) < repeats and sum(times) < 30:
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
            if len(times) == 1:
                peak = _measure.resident_bytes(peak=True) - before
    assert plan.seconds is not None
    return Outcome(
        (plan.memory, plan.seconds), (peak, statistics.median(times)), str(plan)
    )


def row(case: Case, outcome: Outcome) -> str:
    """The outcome as a row of Markdown."""
    limit = f"{case.memory_limit // MB} MB" if case.memory_limit else ""
    (memory, seconds), (peak, took) = outcome.announced, outcome.measured
    work = f"{case.num_train:,} × {case.num_queries:,}"
    if not case.num_queries:
        work = f"{case.num_train:,}, self-influence"
    return (
        f"| {case.name} | {work} | {limit} | {memory / MB:.0f} | "
        f"{peak / MB:.0f} | {memory / peak:.2f} | {seconds:.2f} | {took:.2f} | "
        f"{seconds / took:.2f} |"
    )
