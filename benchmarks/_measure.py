"""Median times of calls that take turns, and peak memory of a new process."""

import concurrent.futures
import multiprocessing
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def medians(
    calls: Mapping[Key, Callable[[], object]], repeats: int
) -> dict[Key, float]:
    """Median seconds of each call, after one warm-up of each.

    The calls take turns, so that a temporary slowdown of the machine affects
    all of them and ratios stay right.
    """
    for call in calls.values():
        call()
    seconds: dict[Key, list[float]] = {key: [] for key in calls}
    for _ in range(repeats):
        for key, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[key].append(time.perf_counter() - start)
    return {key: statistics.median(runs) for key, runs in seconds.items()}


def fastest(calls: Mapping[Key, Callable[[], object]]) -> Key:
    """The key of the call that takes the least time."""
    seconds = medians(calls, repeats=3)
    return min(seconds, key=lambda key: seconds[key])


def in_new_process(function: Callable, *args):
    """Calls `function` in a new process and returns its result."""
    # Spawned, not forked: TensorFlow's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as executor:
        return executor.submit(function, *args).result()


def reset_peak() -> None:
    """Resets the peak memory of this process to its present memory."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as marks:
        marks.write("5")


def resident_bytes(peak: bool = False) -> int:
    """Present or peak memory of this process.

    It is read from Linux's process table: `ru_maxrss` starts at the size of the
    *parent*, which has far more memory than the case to be measured.
    """
    field = "VmHWM:" if peak else "VmRSS:"
    with open("/proc/self/status", encoding="ascii") as lines:
        for line in lines:
            if line.startswith(field):
                return 1024 * int(line.split()[1])
    raise ValueError(f"Expected a line {field!r} in /proc/self/status.")
