"""One process of a training under MultiWorkerMirroredStrategy, and its index.

Keras itself cannot `fit` under this strategy, so the loop is a custom one that
drives the callback's hooks as `fit` does.

Usage: python -m tests.runs.training_worker INDEX DIRECTORY
"""

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import keras_tracin as kt
from tests.engine import scoring_worker
from tests.index import index_worker

EPOCHS, BATCHES, BATCH, WORKERS = 2, 4, 16, 2
RATE = keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5)
SAVE_FREQ = 3


def batches(index):
    """The share of one worker of each batch of an epoch."""
    x, y = scoring_worker.TRAIN
    for start in range(0, BATCHES * BATCH, BATCH):
        rows = slice(start + index, start + BATCH, WORKERS)
        yield tf.constant(x[rows]), tf.constant(y[rows])


def train_function_of(model, strategy):
    """`iterator -> logs`, one step of all workers."""

    def replica_step(x, y):
        with tf.GradientTape() as tape:
            losses = keras.losses.sparse_categorical_crossentropy(
                y, model(x, training=True), from_logits=True
            )
            loss = tf.nn.compute_average_loss(losses, global_batch_size=BATCH)
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply(gradients, model.trainable_variables)

    @tf.function
    def step(x, y):
        strategy.run(replica_step, args=(x, y))

    def train_function(iterator):
        step(*next(iterator))
        return {"loss": 0.5}

    return train_function


def train(model, strategy, callbacks, index):
    """Trains; returns the weights after each epoch."""
    found = []
    model.train_function = train_function_of(model, strategy)
    for callback in callbacks:
        callback.set_model(model)
        callback.on_train_begin()
    for epoch in range(EPOCHS):
        for callback in callbacks:
            callback.on_epoch_begin(epoch)
        iterator = iter(batches(index))
        for batch in range(BATCHES):
            logs = model.train_function(iterator)
            for callback in callbacks:
                callback.on_train_batch_end(batch, logs)
        for callback in callbacks:
            callback.on_epoch_end(epoch, logs)
        found.append(model.get_weights())
    for callback in callbacks:
        callback.on_train_end()
    return found


def meet(strategy):
    """Returns once all workers have called it."""

    @tf.function
    def together():
        return strategy.run(
            lambda: tf.distribute.get_replica_context().all_reduce("SUM", 1.0)
        )

    assert float(strategy.experimental_local_results(together())[0]) == WORKERS


def main(index, directory):
    index, directory = int(index), Path(directory)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    with strategy.scope():
        model = scoring_worker.build()
        model.compile(keras.optimizers.SGD(RATE, momentum=0.5), model.loss)
    callbacks = [
        kt.TracInCheckpoint(directory / f"epochs-{index}"),
        kt.TracInCheckpoint(directory / f"steps-{index}", save_freq=SAVE_FREQ),
    ]
    weights = train(model, strategy, callbacks, index)
    flat = [np.concatenate([w.ravel() for w in after]) for after in weights]
    np.save(directory / f"weights-{index}.npy", np.stack(flat))
    meet(strategy)  # the first has written its run now
    index_worker.note_shards(directory / f"notes-{index}")
    method = index_worker.tracin(directory / "epochs-0", strategy)
    found = index_worker.build(method, directory / "index")
    ids = found.query(scoring_worker.TEST, 4).proponents.ids
    np.save(directory / f"ids-{index}.npy", ids)
    meet(strategy)


if __name__ == "__main__":
    main(*sys.argv[1:])
