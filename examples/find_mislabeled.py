"""Finds wrong labels by a recorded training, and trains again without them.

    python -m examples.find_mislabeled --dataset=mnist

Makes a tenth of the labels wrong and trains a network on them, with
`kt.TracInCheckpoint` as a callback and a tenth of the images held out, whose
labels are wrong as often: where their loss is least, wrong labels stand out
most. `kt.find_label_issues` then ranks the images by how suspicious their
labels are, and estimates how many are wrong. The labels of these are put right,
as by a person who looks at them, and the network is trained again.
`--fix=removed` leaves these images out instead.

Since the wrong labels are known here, the ranking is compared with others: the
loss after the last epoch, and TracIn's self-influence, of all layers and of the
last. `--folds=3` adds a ranking by networks that were not trained on the images
that they judge.

`--corruption=uniform` draws a wrong label from all other classes alike;
`likely` takes the likeliest wrong class by a network that was trained on right
labels, which is harder to find.

Writes to the output directory, for each corruption:

- recall_….png: the share of wrong labels found, over the share inspected;
- map_….png: how each image was learnt, with the wrong labels marked;
- review_….html: a page on which a person decides, suspect by suspect.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
from absl import app, flags

import keras_tracin as kt
from examples import _common, _networks

_DATASET = flags.DEFINE_enum(
    "dataset", "mnist", ["mnist", "cifar10"], "Data set to corrupt."
)
_CORRUPTION = flags.DEFINE_list(
    "corruption",
    ["uniform", "likely"],
    "Kinds of wrong labels: uniform, likely or both.",
)
_FOLDS = flags.DEFINE_integer(
    "folds", 0, "Number of folds; 0 for the training alone.", lower_bound=0
)
_FIX = flags.DEFINE_list(
    "fix",
    ["right"],
    "What happens to the flagged labels before training again: right, removed, "
    "both, or nothing if empty.",
)
_CHECKPOINTS = flags.DEFINE_integer(
    "checkpoints",
    5,
    "Number of the last checkpoints that TracIn uses.",
    lower_bound=1,
)
_OUTPUT_DIR = _common.output_dir("out/find_mislabeled")
_DATA_DIR = _common.data_dir()
_SEED = _common.seed()
_STRATEGY = _common.strategy()
_NUM_TRAIN = _common.num_train(None)
_EPOCHS = _common.epochs(None)
_FLIP_SHARE = _common.flip_share()

EXPLAINED = 5


@dataclasses.dataclass(frozen=True)
class Setting:
    """Settings of training on a data set.

    Attributes:
        network: function that builds the network.
        rate: initial learning rate.
        epochs: number of training epochs.
        num_train: number of images, a tenth of which is held out.
    """

    network: Callable
    rate: float
    epochs: int
    num_train: int


SETTINGS = {
    "mnist": Setting(_networks.digits_cnn, 0.02, 8, 60_000),
    "cifar10": Setting(_networks.small_resnet, 0.1, 12, 10_000),
}


def main(_):
    strategy = _common.create_strategy(_STRATEGY.value)
    count = _NUM_TRAIN.value or SETTINGS[_DATASET.value].num_train
    x, truth = _common.load_images(
        _DATASET.value, f"train[:{count}]", _DATA_DIR.value
    )
    test = _common.load_images(_DATASET.value, "test", _DATA_DIR.value)
    train, held_out = split(x, truth)
    print(f"Training on {len(train[0]):,} images with right labels.")
    model, _ = fit(train, held_out, "right", strategy)
    print(f"Accuracy with right labels: {_common.accuracy(model, test):.1%}")
    logits = model.predict(x, batch_size=512, verbose=0)
    for corruption in _CORRUPTION.value:
        labels = kt.evaluation.flip_labels(
            truth,
            _FLIP_SHARE.value,
            seed=_SEED.value,
            scores=logits if corruption == "likely" else None,
        )
        train, held_out = split(x, labels)
        right = truth[: len(train[0])]
        wrong = np.count_nonzero(train[1] != right)
        print(
            f"\n== {corruption}: {wrong:,} of {len(right):,} labels are wrong"
        )
        examine(corruption, train, held_out, right, test, strategy)


def split(x, labels):
    """All images but a tenth, and that tenth, which is held out."""
    cut = len(x) - len(x) // 10
    return (x[:cut], labels[:cut]), (x[cut:], labels[cut:])


def fit(train, held_out, name, strategy):
    """Trains a network from fixed initial weights; returns it and its run."""
    keras.utils.set_random_seed(_SEED.value)
    setting = SETTINGS[_DATASET.value]
    epochs = _EPOCHS.value or setting.epochs
    model = _networks.compile_with_decay(
        setting.network, setting.rate, len(train[0]), epochs, strategy
    )
    directory = f"{_OUTPUT_DIR.value}/{name}"
    model.fit(
        *train,
        epochs=epochs,
        batch_size=64,
        validation_data=held_out,
        callbacks=[kt.TracInCheckpoint(directory, overwrite=True)],
        verbose=0,
    )
    return model, kt.TrainingRun(directory)


def examine(corruption, train, held_out, truth, test, strategy):
    """Trains on wrong labels, finds them, and trains again."""
    model, run = fit(train, held_out, corruption, strategy)
    print(f"Accuracy as labelled: {_common.accuracy(model, test):.1%}\n")

    is_wrong = train[1] != truth
    rankings = find(model, train, run, is_wrong, strategy)
    issues = list(rankings.values())[-1]
    dynamics = kt.training_dynamics(
        model, train, run, strategy=strategy, verbose=0
    )
    rankings["Loss, last epoch"] = dynamics.loss[-1]
    rankings |= self_influence(model, train, run, strategy)
    print_table(rankings, dict(enumerate(is_wrong)))
    draw(corruption, rankings, dynamics, is_wrong)
    write_review(corruption, issues, model, train, truth, dynamics, strategy)
    for way in _FIX.value:
        fixed = fix(train, truth, issues.issue_ids, way)
        model, _ = fit(fixed, held_out, f"{corruption}_{way}", strategy)
        accuracy = _common.accuracy(model, test)
        print(f"Accuracy with flagged labels {way}: {accuracy:.1%}", flush=True)


def find(model, train, run, is_wrong, strategy):
    """Label issues by the run and, with `--folds`, out of fold as well."""
    options = {"strategy": strategy, "verbose": 0}
    issues = kt.find_label_issues(model, train, run, **options)
    print_flagged(issues, is_wrong)
    rankings = {"find_label_issues": issues}
    if _FOLDS.value:
        issues = kt.find_label_issues(
            model,
            train,
            run,
            folds=_FOLDS.value,
            directory=f"{_OUTPUT_DIR.value}/folds",
            **options,
        )
        print_flagged(issues, is_wrong)
        rankings["find_label_issues, folds"] = issues
    return rankings


def self_influence(model, train, run, strategy):
    """TracIn's self-influence at the last checkpoints, for comparison."""
    run = run.select(range(len(run))[-_CHECKPOINTS.value :])
    parts = {"TracIn": None, "TracIn, last layer": _networks.LAST_LAYER}
    scores = {}
    for name, layers in parts.items():
        tracin = kt.TracIn(model, train, run, layers=layers, strategy=strategy)
        scores[name] = tracin.self_influence(verbose=0)
    return scores


def print_flagged(issues, is_wrong):
    """Prints what the issues rest on, and how many of them are wrong labels."""
    print(f"{issues.num_issues:,} of {len(issues):,} labels are flagged:")
    for reason in issues.reasons:
        print(f"- {reason}")
    flagged = is_wrong[issues.issue_ids]
    print(
        f"{flagged.sum():,} of them are wrong: precision "
        f"{flagged.mean():.1%}, recall {flagged.sum() / is_wrong.sum():.1%}\n",
        flush=True,
    )


def print_table(rankings, is_wrong):
    """Prints the recall and AUC of each ranking."""
    print("Wrong labels found in the top     5%    10%    20%     AUC")
    for name, scores in rankings.items():
        detection = kt.evaluation.mislabel_detection(scores, is_wrong)
        recalls = "  ".join(
            f"{detection.recall_at(share):5.1%}" for share in (0.05, 0.1, 0.2)
        )
        print(f"  {name:<27}{recalls}   {detection.auc:.3f}")
    print()


def draw(corruption, rankings, dynamics, is_wrong):
    """Draws the recall of the rankings, and a map of the training."""
    recall = kt.plots.recall_curve(rankings, dict(enumerate(is_wrong)))
    _common.save(recall, _OUTPUT_DIR.value, f"recall_{corruption}.png")
    learnt = kt.plots.data_map(dynamics, is_wrong)
    _common.save(learnt, _OUTPUT_DIR.value, f"map_{corruption}.png")


def write_review(corruption, issues, model, train, truth, dynamics, strategy):
    """Explains the worst, and writes a page for a person to decide."""
    explainer = kt.InfluenceFunctions(
        model,
        train,
        damping=0.1,
        solver=kt.EKFAC(),
        relative="loss",  # else large gradients lead every ranking
        layers=_networks.LAST_LAYER,
        strategy=strategy,
    )
    top = issues.explain(explainer, train, k=5, count=EXPLAINED, verbose=0)
    labels = train[1]
    print("The most suspicious contradict")
    for row, image in enumerate(top.query_ids):
        others = ", ".join(str(labels[i]) for i in top.opponents.ids[row])
        print(
            f"  image {image:>5}, labelled {labels[image]} (is "
            f"{truth[image]}): images labelled {others}"
        )
    page = kt.report.write_html(
        f"{_OUTPUT_DIR.value}/review_{corruption}.html",
        train=train,
        label_issues=issues,
        explanation=top,
        dynamics=dynamics,
        overwrite=True,
    )
    print(f"Wrote {page}", flush=True)


def fix(train, truth, flagged, way):
    """The training data with flagged labels put right, or removed."""
    x, labels = train
    if way == "removed":
        return np.delete(x, flagged, axis=0), np.delete(labels, flagged)
    labels = labels.copy()
    labels[flagged] = truth[flagged]
    return x, labels


if __name__ == "__main__":
    app.run(main)
