"""Gives the tests several devices on one processor."""

import gc
from pathlib import Path

import pytest
import tensorflow as tf

REPETITIONS = Path(__file__).with_name("repetitions.txt")


def pytest_addoption(parser):
    parser.addoption(
        "--once",
        action="store_true",
        help="leave out the repetitions that tests/repetitions.txt lists",
    )


def pytest_configure():
    """Splits the CPU; TensorFlow allows it only before it has begun to work."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    device = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(cpu, [device] * 4)


def pytest_collection_modifyitems(config, items):
    """Leaves the listed repetitions out.

    All have to be there, and a test has to stay for each of them.
    """
    if not config.getoption("--once"):
        return
    lines = REPETITIONS.read_text().splitlines()
    listed = {line for line in lines if line and not line.startswith("#")}
    kept = [item for item in items if item.nodeid not in listed]
    left_out = [item for item in items if item.nodeid in listed]
    lost = listed - {item.nodeid for item in left_out}
    kept_names = {_name(item.nodeid) for item in kept}
    lost |= {name for name in listed if _name(name) not in kept_names}
    if lost:
        raise pytest.UsageError(
            f"{REPETITIONS.name} should list tests that are there, and repeat "
            f"one that is not listed. Received: {sorted(lost)}."
        )
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


def _name(nodeid):
    """A test without its parameters."""
    return nodeid.split("[")[0]


def pytest_collection_finish():
    """Spares the garbage collector what lives throughout: a tenth of time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
