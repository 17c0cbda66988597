"""Explains test digits by three methods, and finds wrong labels by class.

    python -m examples.mnist --output_dir=out/mnist

Trains a small convolutional network on MNIST. For a few test digits that it
classifies right with low confidence, it prints and draws the proponents and
opponents by TracIn, influence functions and representer points, as in figure 9
of Pruthi et al. (2020).

Then it changes a tenth of the labels to the likeliest wrong class, trains
again, and draws the number of wrong labels of each class that three checkpoints
find, as in figure 8.
"""

import warnings

import keras
import numpy as np
from absl import app

import keras_tracin as kt
from examples import _common, _methods, _networks
from keras_tracin import evaluation, plots

_OUTPUT_DIR = _common.output_dir("out/mnist")
_DATA_DIR = _common.data_dir()
_SEED = _common.seed()
_STRATEGY = _common.strategy()
_NUM_TRAIN = _common.num_train(20_000)
_EPOCHS = _common.epochs(8)
_NUM_QUERIES = _common.num_queries(3)
_K = _common.k(5)
_FLIP_SHARE = _common.flip_share()
_METHODS = _methods.define_flags(checkpoints=5)

CONFIDENT = 0.9  # probability of the label


def main(_):
    strategy = _common.create_strategy(_STRATEGY.value)
    keras.utils.set_random_seed(_SEED.value)
    train = _common.load_images(
        "mnist", f"train[:{_NUM_TRAIN.value}]", _DATA_DIR.value
    )
    test = _common.load_images("mnist", "test[:1000]", _DATA_DIR.value)

    model, run = fit(train, "run", strategy)
    print(f"{_common.accuracy(model, test):.1%} of the test digits are right.")
    queries = right_with_low_confidence(model, test, _NUM_QUERIES.value)
    explain(model, train, run, queries, strategy)

    x, labels = train
    likely = model.predict(x, batch_size=512, verbose=0)
    corrupted = evaluation.flip_labels(
        labels, _FLIP_SHARE.value, seed=_SEED.value, scores=likely
    )
    model, run = fit((x, corrupted), "run_mislabeled", strategy)
    find_by_class(model, (x, corrupted), run, corrupted != labels, strategy)


def fit(train, name, strategy):
    """Trains a network on these digits; returns it and its run."""
    model = _networks.compile_with_decay(
        _networks.digits_cnn, 0.02, len(train[0]), _EPOCHS.value, strategy
    )
    directory = f"{_OUTPUT_DIR.value}/{name}"
    return model, _common.fit(model, train, directory, _EPOCHS.value)


def right_with_low_confidence(model, test, count):
    """Right test digits of low confidence, at most one of each class.

    Where the network is confident, gradients vanish and no training digit has
    influence. Confident digits are used if there are no others.
    """
    x, y = test
    right = np.flatnonzero(_common.predictions(model, x) == y)
    is_confident = _common.losses(model, x, y)[right] < -np.log(CONFIDENT)
    right = right[np.argsort(is_confident, kind="stable")]
    _, first = np.unique(y[right], return_index=True)
    rows = right[np.sort(first)][:count]
    return x[rows], y[rows]


def explain(model, train, run, queries, strategy):
    """Prints and draws the same digits by each method (figure 9)."""
    methods = _METHODS.make(model, train, run, strategy)
    tops = {
        name: method.top_k(queries, k=_K.value, verbose=0)
        for name, method in methods.items()
    }
    for row, label in enumerate(queries[1]):
        print(f"\nTest digit {label}")
        for name, top in tops.items():
            print(f" {name}")
            _common.print_top(top, row, train[1])
    print()
    names = [f"{y} ({y})\n{name}" for y in queries[1] for name in methods]
    _common.save(
        plots.proponents_and_opponents(
            _methods.interleave(tops.values()),
            np.repeat(queries[0], len(methods), axis=0),
            train[0],
            query_labels=names,
            train_labels=train[1],
        ),
        _OUTPUT_DIR.value,
        "figure9.png",
    )


def find_by_class(model, train, run, is_wrong, strategy):
    """Draws wrong labels in the top tenth of three checkpoints (figure 8)."""
    selected = kt.select_checkpoints(run, min(3, len(run)), verbose=0)
    scores = {}
    print(f"\n{is_wrong.sum():,} of {len(is_wrong):,} labels are wrong.")
    for checkpoint in selected:
        single = run.select([run.epochs.index(checkpoint.epoch)])
        with warnings.catch_warnings():
            # Single checkpoints are intended here, also the final one.
            warnings.simplefilter("ignore")
            tracin = kt.TracIn(model, train, single, strategy=strategy)
        self_influence = tracin.self_influence(verbose=0)
        scores[f"epoch {checkpoint.epoch}"] = self_influence.scores
        detection = evaluation.mislabel_detection(self_influence, is_wrong)
        print(
            f"  epoch {checkpoint.epoch:2} finds "
            f"{detection.recall_at(0.1):.1%} in the top 10%, "
            f"AUC {detection.auc:.3f}"
        )
    _common.save(
        plots.mislabeled_by_class(scores, train[1], is_wrong),
        _OUTPUT_DIR.value,
        "figure8.png",
    )


if __name__ == "__main__":
    app.run(main)
