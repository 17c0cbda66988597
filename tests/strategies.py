"""Distribution strategies on the devices of one processor."""

import tensorflow as tf


def mirrored(replicas):
    return tf.distribute.MirroredStrategy(
        [f"CPU:{index}" for index in range(replicas)]
    )
