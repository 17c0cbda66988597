"""Explains test digits by three methods, and finds wrong labels by class.

    python -m examples.mnist --output_dir=out/mnist

Trains a small convolutional network on MNIST, and for a few test digits that it
gets right, but is not sure of, prints, and draws side by side, the proponents
and opponents by TracIn, influence functions and representer points: the paper's
figure 9.

Then makes a tenth of the labels wrong, each the wrong class that the network
found likeliest, trains again, and draws for three checkpoints how many of the
wrong labels they find, class by class: figure 8.
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
_METHODS = _methods.flags_of_methods(checkpoints=5)

SURE = 0.9  # a label's probability


def main(_):
    strategy = _common.under(_STRATEGY.value)
    keras.utils.set_random_seed(_SEED.value)
    train = _common.load_images(
        "mnist", f"train[:{_NUM_TRAIN.value}]", _DATA_DIR.value
    )
    test = _common.load_images("mnist", "test[:1000]", _DATA_DIR.value)

    model, run = fit(train, "run", strategy)
    print(f"{_common.accuracy(model, test):.1%} of the test digits are right.")
    queries = right_but_unsure(model, test, _NUM_QUERIES.value)
    explain(model, train, run, queries, strategy)

    x, labels = train
    likely = model.predict(x, batch_size=512, verbose=0)
    wrong_too = evaluation.flip_labels(
        labels, _FLIP_SHARE.value, seed=_SEED.value, scores=likely
    )
    model, run = fit((x, wrong_too), "run_mislabeled", strategy)
    find_by_class(model, (x, wrong_too), run, wrong_too != labels, strategy)


def fit(train, name, strategy):
    """A network trained on these digits, and its run."""
    model = _networks.with_falling_rate(
        _networks.digits_cnn, 0.02, len(train[0]), _EPOCHS.value, strategy
    )
    directory = f"{_OUTPUT_DIR.value}/{name}"
    return model, _common.fit(model, train, directory, _EPOCHS.value)


def right_but_unsure(model, test, count):
    """The first test digits that are right but not sure, one of each class.

    Where the network is sure of its answer, no training digit moves it. Sure
    ones come where there are no others.
    """
    x, y = test
    right = np.flatnonzero(_common.predictions(model, x) == y)
    is_sure = _common.losses(model, x, y)[right] < -np.log(SURE)
    right = right[np.argsort(is_sure, kind="stable")]
    _, first = np.unique(y[right], return_index=True)
    chosen = right[np.sort(first)][:count]
    return x[chosen], y[chosen]


def explain(model, train, run, queries, strategy):
    """Figure 9: the same digits by each method."""
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
            _methods.side_by_side(tops.values()),
            np.repeat(queries[0], len(methods), axis=0),
            train[0],
            query_labels=names,
            train_labels=train[1],
        ),
        _OUTPUT_DIR.value,
        "figure9.png",
    )


def find_by_class(model, train, run, is_wrong, strategy):
    """Figure 8: what three checkpoints find among the top tenth."""
    chosen = kt.select_checkpoints(run, min(3, len(run)), verbose=0)
    scores = {}
    print(f"\n{is_wrong.sum():,} of {len(is_wrong):,} labels are wrong.")
    for checkpoint in chosen:
        at = run.select([run.epochs.index(checkpoint.epoch)])
        with warnings.catch_warnings():
            # One at a time is what this figure is about, also the final one.
            warnings.simplefilter("ignore")
            tracin = kt.TracIn(model, train, at, strategy=strategy)
        found = tracin.self_influence(verbose=0)
        scores[f"epoch {checkpoint.epoch}"] = found.scores
        detection = evaluation.mislabel_detection(found, is_wrong)
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
