"""Compares first-order estimates with real changes of the loss (figure 7).

    python -m examples.training_trace --output_dir=out/training_trace

Trains a network on MNIST by plain SGD, and measures the loss of a hundred test
digits before and after every step. Prints the correlation of real changes with
TracIn's first-order estimates, the decomposition of the whole decrease of the
loss, and the training digits that lowered the loss of one test digit most; and
draws in the output directory:

- loss_changes.png: real changes over their estimates, as in figure 7 of Pruthi
  et al. (2020).
"""

import pathlib

import keras
import numpy as np
from absl import app, flags

import keras_tracin as kt
from examples import _common, _networks
from keras_tracin import plots

_OUTPUT_DIR = _common.output_dir("out/training_trace")
_DATA_DIR = _common.data_dir()
_SEED = _common.seed()
_NUM_TRAIN = _common.num_train(6_400)
_NUM_QUERIES = _common.num_queries(100)
_EPOCHS = _common.epochs(2)
_LEARNING_RATE = flags.DEFINE_float(
    "learning_rate", 0.01, "Learning rate of SGD."
)


def main(_):
    output = pathlib.Path(_OUTPUT_DIR.value)
    keras.utils.set_random_seed(_SEED.value)
    train, queries = (
        _common.load_images("mnist", split, _DATA_DIR.value)
        for split in (
            f"train[:{_NUM_TRAIN.value}]",
            f"test[:{_NUM_QUERIES.value}]",
        )
    )
    model = _common.compile_classifier(
        _networks.digits_mlp(256, 128),
        keras.optimizers.SGD(_LEARNING_RATE.value),
    )
    trace = kt.trace_training(
        model,
        train,
        queries,
        epochs=_EPOCHS.value,
        seed=_SEED.value,
        directory=output / "trace",
        resume=False,
    )
    print(f"{len(trace.steps)} steps, {len(trace.query_ids)} test digits.")
    print(
        "Pearson's correlation of real and first-order change: "
        f"{trace.correlation():.4f}\n"
    )
    print_balance(trace)
    print_strongest(trace, train[1], queries[1])
    plots.loss_changes(trace).savefig(output / "loss_changes.png")
    print(f"\nThe figure and the trace are in {output}.")


def print_balance(trace):
    """Prints the decomposition of the mean loss of the test digits."""
    attributed = trace.scores.sum(axis=1).mean()
    first_order = trace.steps.first_order.sum(axis=0).mean()
    print("Mean loss of the test digits")
    print(f"  went down by                    {trace.loss_drop.mean():+.4f}")
    print(f"  attributed to training digits   {attributed:+.4f}")
    print(f"    of it first-order             {first_order:+.4f}")
    print(f"  that no digit accounts for      {trace.unattributed.mean():+.4f}")


def print_strongest(trace, train_labels, query_labels, k=5):
    """Prints the training digits that changed the loss of a test digit most."""
    row = int(np.argmax(trace.loss_drop))
    top = trace.attribution().top_k(k)
    print(
        f"\nTest digit {query_labels[row]}, whose loss went down most "
        f"({trace.loss_drop[row]:+.3f})"
    )
    _common.print_top(top, row, train_labels)


if __name__ == "__main__":
    app.run(main)
