"""Gives the tests several devices on one processor."""

import gc

import tensorflow as tf


def pytest_configure():
    """Splits the CPU; TensorFlow allows it only before it has begun to work."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    device = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(cpu, [device] * 4)


def pytest_collection_finish():
    """Spares the garbage collector what lives throughout: a tenth of time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
