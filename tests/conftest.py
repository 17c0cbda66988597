"""Gives the tests several devices on one processor."""

import tensorflow as tf


def pytest_configure():
    """Splits the CPU; TensorFlow allows it only before it has begun to work."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    device = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(cpu, [device] * 4)
