"""Finds wrong labels by five rankings, corrects them, and trains again.

    python -m examples.find_mislabeled --dataset=mnist

Makes a tenth of the training labels wrong, trains a network on them, and ranks
the training images by how suspicious their labels are: by self-influence with
TracIn (of all layers, and of the last), with influence functions, with
representer points, and by the loss at the end of training, which costs nothing.
Then corrects the wrong labels in the first tenth of a ranking, as a person who
inspected them would, trains again, and compares accuracies.

`--corruption=uniform` draws a wrong label from all other classes alike;
`likely` uses the likeliest wrong class by a network that was trained on right
labels, which is harder to find.

TracIn uses the checkpoints with the lowest loss on held-out images, whose
labels are wrong as often: wrong labels stand out after the right ones have been
learnt, and before the wrong ones are memorized. `--by_checkpoint` shows this,
epoch by epoch.

Draws in the output directory, for each corruption:

- recall_….png: the share of wrong labels found, over the share inspected;
- scores_….png: the distribution of TracIn's self-influence.
"""

import dataclasses
import time
import warnings
from collections.abc import Callable

import keras
import numpy as np
from absl import app, flags

import keras_tracin as kt
from examples import _common, _methods, _networks
from keras_tracin import evaluation, plots

_DATASET = flags.DEFINE_enum(
    "dataset", "mnist", ["mnist", "cifar10"], "Data set to corrupt."
)
_CORRUPTION = flags.DEFINE_list(
    "corruption",
    ["uniform", "likely"],
    "Kinds of wrong labels: uniform, likely or both.",
)
_REFIT = flags.DEFINE_list(
    "refit",
    ["TracIn", "Loss"],
    "Rankings whose wrong labels are corrected before training again; may "
    "be empty.",
)
_BY_CHECKPOINT = flags.DEFINE_bool(
    "by_checkpoint", False, "Print how well each checkpoint finds wrong labels."
)
_OUTPUT_DIR = _common.output_dir("out/find_mislabeled")
_DATA_DIR = _common.data_dir()
_SEED = _common.seed()
_STRATEGY = _common.strategy()
_NUM_TRAIN = _common.num_train(None)
_EPOCHS = _common.epochs(None)
_FLIP_SHARE = _common.flip_share()
_METHODS = _methods.define_flags(checkpoints=5)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Settings of training on a data set.

    Attributes:
        network: function that builds the network.
        rate: initial learning rate.
        epochs: number of training epochs.
        num_train: number of training images, including held-out ones.
        is_deep: True if influence functions of the layers below the last are
            too expensive.
    """

    network: Callable
    rate: float
    epochs: int
    num_train: int
    is_deep: bool


SETTINGS = {
    "mnist": Setting(_networks.digits_cnn, 0.02, 8, 60_000, is_deep=False),
    "cifar10": Setting(_networks.small_resnet, 0.1, 12, 10_000, is_deep=True),
}


def main(_):
    strategy = _common.create_strategy(_STRATEGY.value)
    train, held_out, test = load()
    model = None
    if _REFIT.value or "likely" in _CORRUPTION.value:
        print(f"Training on {len(train[0]):,} images with right labels.")
        model, _ = fit(train, held_out, "right", strategy)
        best = _common.accuracy(model, test)
        print(f"Accuracy with right labels: {best:.1%}")
    for corruption in _CORRUPTION.value:
        corrupted = [
            (x, corrupt(model, x, y, corruption)) for x, y in (train, held_out)
        ]
        examine(corruption, train[1], *corrupted, test, strategy)


def load():
    """Loads training images, a tenth of them held out, and test images."""
    count = _NUM_TRAIN.value or SETTINGS[_DATASET.value].num_train
    x, y = _common.load_images(
        _DATASET.value, f"train[:{count}]", _DATA_DIR.value
    )
    test = _common.load_images(_DATASET.value, "test", _DATA_DIR.value)
    cut = len(x) - len(x) // 10
    return (x[:cut], y[:cut]), (x[cut:], y[cut:]), test


def corrupt(model, x, labels, corruption):
    """Makes a share of the labels wrong."""
    likely = corruption == "likely"
    scores = model.predict(x, batch_size=512, verbose=0) if likely else None
    return evaluation.flip_labels(
        labels, _FLIP_SHARE.value, seed=_SEED.value, scores=scores
    )


def fit(train, held_out, name, strategy):
    """Trains a network from fixed initial weights; returns it and its run."""
    keras.utils.set_random_seed(_SEED.value)
    setting = SETTINGS[_DATASET.value]
    epochs = _EPOCHS.value or setting.epochs
    model = _networks.compile_with_decay(
        setting.network, setting.rate, len(train[0]), epochs, strategy
    )
    directory = f"{_OUTPUT_DIR.value}/{name}"
    return model, _common.fit(model, train, directory, epochs, held_out)


def examine(corruption, truth, train, held_out, test, strategy):
    """Trains on wrong labels, and searches for them."""
    labels = train[1]
    is_wrong = labels != truth
    print(
        f"\n== {corruption}: {is_wrong.sum():,} of {len(labels):,} labels are "
        "wrong"
    )
    model, run = fit(train, held_out, corruption, strategy)
    print(f"Accuracy as labelled: {_common.accuracy(model, test):.1%}")
    if _BY_CHECKPOINT.value:
        print_by_checkpoint(model, train, run, is_wrong, strategy)
    rankings = suspicion(model, train, select_best(run), strategy)
    print_table(rankings, is_wrong)
    _common.save(
        plots.recall_curve(rankings, is_wrong),
        _OUTPUT_DIR.value,
        f"recall_{corruption}.png",
    )
    name = next(iter(rankings))
    _common.save(
        plots.score_distribution(rankings[name], is_wrong, name=name),
        _OUTPUT_DIR.value,
        f"scores_{corruption}.png",
    )
    for name in _REFIT.value:
        refit(name, rankings[name], truth, train, held_out, test, strategy)


def select_best(run):
    """The checkpoints with the lowest loss on held-out images, in order."""
    order = np.argsort(run.history["val_loss"], kind="stable")
    return run.select(np.sort(order[: _METHODS.checkpoints.value]))


def suspicion(model, train, run, strategy):
    """Scores of the training images by each ranking; prints timings."""
    epochs = ", ".join(str(checkpoint.epoch) for checkpoint in run)
    print(f"TracIn uses the checkpoints of epochs {epochs}.")
    deep = SETTINGS[_DATASET.value].is_deep
    methods = _METHODS.make(model, train, run, strategy, head_only=deep)
    if "TracIn" in methods:
        methods["TracIn, last layer"] = _METHODS.tracin(
            model, train, run, strategy, layers=_networks.LAST_LAYER
        )
    scores = {}
    for name, method in methods.items():
        start = time.perf_counter()
        scores[name] = method.self_influence(verbose=0).scores
        print(f"{name} took {time.perf_counter() - start:.0f} s.", flush=True)
    scores["Loss"] = _common.losses(model, *train)
    return scores


def print_table(rankings, is_wrong):
    """Prints the recall and AUC of each ranking."""
    print("\nWrong labels found in the top     5%    10%    20%     AUC")
    for name, scores in rankings.items():
        detection = evaluation.mislabel_detection(scores, is_wrong)
        recalls = "  ".join(
            f"{detection.recall_at(share):5.1%}" for share in (0.05, 0.1, 0.2)
        )
        print(f"  {name:<27}{recalls}   {detection.auc:.3f}")
    print()


def print_by_checkpoint(model, train, run, is_wrong, strategy):
    """Prints how well single checkpoints find wrong labels."""
    print("\nepoch    loss  held out  AUC of TracIn there")
    losses = zip(run.history["loss"], run.history["val_loss"], strict=True)
    for place, (loss, held_out) in enumerate(losses):
        with warnings.catch_warnings():
            # Single checkpoints are intended here, also the final one.
            warnings.simplefilter("ignore")
            tracin = kt.TracIn(
                model, train, run.select([place]), strategy=strategy
            )
        detection = evaluation.mislabel_detection(
            tracin.self_influence(verbose=0), is_wrong
        )
        print(
            f"{run.epochs[place]:5}{loss:8.3f}{held_out:10.3f}{detection.auc:12.3f}",
            flush=True,
        )
    print()


def refit(name, scores, truth, train, held_out, test, strategy):
    """Prints the accuracy after correcting wrong labels in the top tenth."""
    x, labels = train
    inspected = np.argsort(-scores, kind="stable")[: len(labels) // 10]
    fixed = labels.copy()
    fixed[inspected] = truth[inspected]
    count = np.count_nonzero(fixed != labels)
    model, _ = fit((x, fixed), held_out, "fixed", strategy)
    print(
        f"Accuracy with {count:,} wrong labels corrected that {name} found in "
        f"the top 10%: {_common.accuracy(model, test):.1%}",
        flush=True,
    )


if __name__ == "__main__":
    app.run(main)
