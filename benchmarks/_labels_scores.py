"""Scores of how suspicious labels are, ours and others'."""

import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np

import keras_tracin as kt
from benchmarks._quality_settings import Arrays
from benchmarks._quality_training import Trained
from keras_tracin.labels.fold_dynamics import FoldDynamics
from keras_tracin.labels.suspicion import suspicion
from keras_tracin.runs import run_weights

_NEIGHBORS = 100
_BLOCK = 1000  # examples
_CHECKPOINTS = 5  # of self-influence, as in examples/find_mislabeled.py

LOSS = "loss, last epoch"
CLEANLAB = "cleanlab"
RUN = "auto"
RUN_AND_FOLDS = "auto, run and folds"


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What scores are made from.

    Attributes:
        trained: the model and its run.
        train: the training examples with the labels given.
        dynamics: the dynamics of the run.
        folds: the dynamics of copies; None without folds.
    """

    trained: Trained
    train: Arrays
    dynamics: kt.TrainingDynamics
    folds: FoldDynamics | None

    @functools.cached_property
    def number(self) -> int:
        """The number of wrong labels by the run alone."""
        return kt.LabelIssues.from_dynamics(self.dynamics).num_issues or 0

    @functools.cached_property
    def number_by_folds(self) -> int:
        """The number of wrong labels out of fold."""
        issues = kt.LabelIssues.from_dynamics(None, folds=self.folds)
        return issues.num_issues or 0

    @property
    def best_epochs(self) -> np.ndarray:
        """Places of the checkpoints, the least held-out loss first."""
        return np.argsort(self.trained.run.history["val_loss"], kind="stable")


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Scores `[n]`, and which `[n]` labels are said to be wrong."""

    scores: np.ndarray
    flagged: np.ndarray


def _of_issues(issues: kt.LabelIssues) -> Ranking:
    """The ranking by `find_label_issues`, in reading order."""
    scores = np.empty(len(issues))
    scores[issues.ids] = issues.scores
    flagged = np.zeros(len(issues), bool)
    flagged[issues.issue_ids] = True
    return Ranking(scores, flagged)


def _flag(scores: np.ndarray, count: int) -> Ranking:
    """A ranking that flags so many."""
    flagged = np.zeros(len(scores), bool)
    flagged[np.argsort(-scores, kind="stable")[:count]] = True
    return Ranking(scores, flagged)


def _of_scores(scores: np.ndarray, evidence: Evidence) -> Ranking:
    """A ranking that flags as many as the run is estimated to have."""
    return _flag(scores, evidence.number)


Score = Callable[[Evidence], Ranking]


def _in_run(method: str | list[str]) -> Score:
    return lambda evidence: _of_issues(
        kt.LabelIssues.from_dynamics(evidence.dynamics, method)
    )


def _loss_of_best_epoch(evidence: Evidence) -> Ranking:
    losses = evidence.dynamics.loss[evidence.best_epochs[0]]
    return _of_scores(losses, evidence)


def _aum_by_definition(evidence: Evidence) -> Ranking:
    """The `aum` package's margins, from the logits that the model predicts.

    It takes the logits of training batches; these are in inference mode, at the
    end of each epoch.
    """
    model, run = evidence.trained.model, evidence.trained.run
    x, labels = evidence.train
    rows, margins = np.arange(len(labels)), []
    with run_weights(model) as load:
        for checkpoint in run:
            load(checkpoint)
            logits = model.predict(x, batch_size=512, verbose=0)
            given = logits[rows, labels]
            logits[rows, labels] = -np.inf
            margins.append(given - logits.max(axis=1))
    return _of_scores(-np.mean(margins, axis=0), evidence)


def _self_influence(last_layer: bool, evidence: Evidence) -> Ranking:
    """Self-influence at the checkpoints of the least held-out losses."""
    trained = evidence.trained
    name = trained.model.layers[-1].name
    places = np.sort(evidence.best_epochs[:_CHECKPOINTS])
    tracin = kt.TracIn(
        trained.model,
        evidence.train,
        trained.run.select(places),
        layers=name if last_layer else None,
    )
    return _of_scores(tracin.self_influence(verbose=0).scores, evidence)


def _neighbors(evidence: Evidence) -> Ranking:
    """The share of the nearest examples that have another label.

    They are nearest by the angle between what the last layer gets, at the last
    checkpoint (Zhu et al. 2022, without their weights).
    """
    model, (x, labels) = evidence.trained.model, evidence.train
    inputs = keras.Model(model.inputs, model.layers[-1].input)
    features = inputs.predict(x, batch_size=512, verbose=0)
    features /= np.linalg.norm(features, axis=1, keepdims=True) + 1e-9
    others = []
    for start in range(0, len(features), _BLOCK):
        similar = features[start : start + _BLOCK] @ features.T
        rows = np.arange(len(similar))
        similar[rows, start + rows] = -np.inf  # itself
        near = np.argpartition(-similar, _NEIGHBORS, axis=1)[:, :_NEIGHBORS]
        given = labels[start : start + _BLOCK, np.newaxis]
        others.append((labels[near] != given).mean(axis=1))
    return _of_scores(np.concatenate(others), evidence)


def _by_folds(with_run: bool, evidence: Evidence) -> Ranking:
    dynamics = evidence.dynamics if with_run else None
    return _of_issues(
        kt.LabelIssues.from_dynamics(dynamics, folds=evidence.folds)
    )


def _out_of_fold(method: str, evidence: Evidence) -> Ranking:
    """A score by the copy that an example is new to, and nothing else."""
    assert evidence.folds is not None
    scores = [suspicion(copy, method) for copy in evidence.folds.copies]
    outside, _ = evidence.folds.split(scores)
    return _flag(outside, evidence.number_by_folds)


def _cleanlab(evidence: Evidence) -> Ranking:
    """cleanlab, with its defaults, on our probabilities out of fold."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    assert evidence.folds is not None
    given, p = evidence.train[1], evidence.folds.out_of_fold.mean_probabilities
    flagged = find_label_issues(given, p, n_jobs=1)
    return Ranking(-get_label_quality_scores(given, p), flagged)


def _cleanlab_last(evidence: Evidence) -> Ranking:
    """The probability of the label at the last epoch, as cleanlab ranks."""
    assert evidence.folds is not None
    scores = [1 - c.known("probability")[-1] for c in evidence.folds.copies]
    return _flag(evidence.folds.split(scores)[0], evidence.number_by_folds)


IN_RUN: dict[str, Score] = {
    LOSS: _in_run("loss"),
    "loss, best validation epoch": _loss_of_best_epoch,
    "mean_loss": _in_run("mean_loss"),
    "aum": _in_run("aum"),
    "aum, by its definition": _aum_by_definition,
    "probability": _in_run("probability"),
    "el2n": _in_run("el2n"),
    "best_loss": _in_run("best_loss"),
    "ranks of mean_loss, aum, el2n": _in_run(["mean_loss", "aum", "el2n"]),
    RUN: _in_run("auto"),
    "neighbors": _neighbors,
    "self-influence": functools.partial(_self_influence, False),
    "self-influence, last layer": functools.partial(_self_influence, True),
}
# These need folds.
OUT_OF_FOLD: dict[str, Score] = {
    "best_loss, out of fold": functools.partial(_out_of_fold, "best_loss"),
    "auto, folds alone": functools.partial(_by_folds, False),
    RUN_AND_FOLDS: functools.partial(_by_folds, True),
    "cleanlab's score, last epoch": _cleanlab_last,
}
PEERS: dict[str, Score] = {CLEANLAB: _cleanlab}
