"""Compares checkpoints that are selected, evenly spaced, or the last ones.

    python -m examples.checkpoint_selection --output_dir=out/checkpoints

Trains a network on MNIST with a tenth of the training labels wrong. It records
a checkpoint at the end of each epoch and, at every step, the change of the loss
of some test digits. Then, for checkpoints of `kt.select_checkpoints`, for as
many at even distances, and for the last ones, it prints

- how well self-influence finds the wrong labels (area under the ROC curve);
- the rank correlation of TracIn's scores with TracInIdeal, as the median over
  the test digits;

and draws in the output directory:

- loss_curve.png: the loss of each epoch, with the selected checkpoints;
- mislabeled_by_class.png: the number of wrong labels of each class that three
  checkpoints find, as in figure 8 of Pruthi et al. (2020).
"""

import pathlib
import warnings

import keras
import numpy as np
from absl import app, flags
from scipy.stats import spearmanr

import keras_tracin as kt
from examples import _common, _networks
from keras_tracin import evaluation, plots

_OUTPUT_DIR = _common.output_dir("out/checkpoints")
_DATA_DIR = _common.data_dir()
_SEED = _common.seed()
_NUM_TRAIN = _common.num_train(4_000)
_NUM_QUERIES = _common.num_queries(60)
_EPOCHS = _common.epochs(24, lower_bound=3)
_FLIP_SHARE = _common.flip_share()
_COUNT = flags.DEFINE_integer(
    "count", 5, "Number of checkpoints to select.", lower_bound=1
)
_LEARNING_RATE = flags.DEFINE_float(
    "learning_rate", 0.1, "Learning rate of SGD."
)


def main(_):
    output = pathlib.Path(_OUTPUT_DIR.value)
    keras.utils.set_random_seed(_SEED.value)
    (x, true_labels), queries = (
        _common.load_images("mnist", split, _DATA_DIR.value)
        for split in (
            f"train[:{_NUM_TRAIN.value}]",
            f"test[:{_NUM_QUERIES.value}]",
        )
    )
    y = evaluation.flip_labels(true_labels, _FLIP_SHARE.value, seed=_SEED.value)
    is_flipped = y != true_labels

    model = _common.compile_classifier(
        _networks.digits_mlp(128),
        keras.optimizers.SGD(_LEARNING_RATE.value),
    )
    trace = kt.trace_training(
        model,
        (x, y),
        queries,
        epochs=_EPOCHS.value,
        seed=_SEED.value,
        directory=output / "run",
        resume=False,
    )
    run = kt.TrainingRun(output / "run")
    print(f"{is_flipped.sum()} of {len(y)} training labels are wrong.\n")
    selected = kt.select_checkpoints(run, _COUNT.value)
    choices = {
        "selected": selected,
        "evenly spaced": evenly_spaced(run, _COUNT.value),
        "the last": run[-_COUNT.value :],
    }
    print(f"\n{'checkpoints':<16}{'AUC':>6}{'rank correlation':>18}   epochs")
    for name, checkpoints in choices.items():
        tracin = kt.TracIn(model, (x, y), checkpoints)
        auc = evaluation.mislabel_detection(
            tracin.self_influence(), is_flipped
        ).auc
        scores = tracin.influence(queries).scores
        epochs = [checkpoint.epoch for checkpoint in checkpoints]
        agreement = rank_correlation(scores, trace.scores)
        print(f"{name:<16}{auc:>6.3f}{agreement:>18.3f}   {epochs}")

    draw(output, model, (x, y), is_flipped, run, selected)
    print(f"\nThe figures and the recorded run are in {output}.")


def evenly_spaced(run, count):
    """Every `len(run) / count`-th checkpoint, including the last."""
    places = np.arange(1, count + 1) * len(run) / count
    return run.select(np.round(places).astype(int) - 1)


def rank_correlation(scores, ideal):
    """Spearman correlation of rows, as the median over rows."""
    pairs = zip(scores, ideal, strict=True)
    return np.median([spearmanr(*pair).statistic for pair in pairs])


def draw(output, model, train, is_flipped, run, selected):
    """Draws the loss curve, and figure 8 for three selected checkpoints."""
    plots.loss_curve(run, selected).savefig(output / "loss_curve.png")
    places = np.unique([0, len(selected) // 2, len(selected) - 1])
    scores = {}
    for checkpoint in selected.select(places):
        at = run.select([run.epochs.index(checkpoint.epoch)])
        with warnings.catch_warnings():
            # Single checkpoints are intended here, also the final one.
            warnings.simplefilter("ignore")
            tracin = kt.TracIn(model, train, at)
        scores[f"epoch {checkpoint.epoch}"] = tracin.self_influence().scores
    plots.mislabeled_by_class(scores, train[1], is_flipped).savefig(
        output / "mislabeled_by_class.png"
    )


if __name__ == "__main__":
    app.run(main)
