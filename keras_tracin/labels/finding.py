"""Finds wrong labels by a recorded training.

Synopsis:

    issues = find_label_issues(model, train, "runs/digits")
    issues.issue_ids                         # estimated to be wrong
    issues.suggested_labels                  # in the order of `issues.ids`
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import keras

from keras_tracin.engine.distribution import Strategy
from keras_tracin.labels.estimates import check_number
from keras_tracin.labels.folds import Fit, Folds
from keras_tracin.labels.issues import LabelIssues
from keras_tracin.labels.measuring import training_dynamics
from keras_tracin.labels.suspicion import check_method
from keras_tracin.runs import TrainingRun


def find_label_issues(
    model: keras.Model,
    train: Any,
    run: TrainingRun | str | os.PathLike | None = None,
    *,
    method: str | Sequence[str] = "auto",
    number: str | int = "auto",
    folds: int = 0,
    fit: Fit | None = None,
    directory: str | os.PathLike | None = None,
    seed: int = 0,
    loss: Any = None,
    strategy: Strategy | None = None,
    jit_compile: bool | str = "auto",
    memory_limit: int | None = None,
    verbose: int = 1,
) -> LabelIssues:
    """Ranks training examples by how suspicious their labels are.

    A wrong label is learnt late, if at all. So the scores are of many epochs of
    a recorded run, in one forward pass for each checkpoint
    (`training_dynamics`): the weights of the last epoch may know wrong labels
    by heart, and those of the first know little. Where the loss on held-out
    examples is least, wrong labels stand out most, so pass `validation_data=`
    to `fit`; their labels may be wrong as often as the others.

    The estimated number is rough, see docs/mislabeled.md for how far it was
    off: several times too high for a model that is often wrong, too low where
    the model learnt labels by heart in its first epochs, and where labels are
    wrong because examples are ambiguous. Folds make it better.

    Example:
    ```python
    model.fit(x, y, epochs=10, callbacks=[kt.TracInCheckpoint("runs/a")])
    issues = kt.find_label_issues(model, (x, y), "runs/a")
    print(issues)
    issues.to_dataframe().head(issues.num_issues)
    ```

    Args:
        model: the trained model, compiled with its loss.
        train: the training examples as `model.fit` took them, in the same
            order each time or with ids.
        run: a `TrainingRun`, or its directory; without one, the weights that
            the model has are all that is looked at.
        method: the scores: "loss", that of the last checkpoint; over all
            checkpoints "mean_loss"; "aum", less the mean margin (Pleiss et al.
            2020); "probability", less that of the given label; "el2n", the mean
            of ‖p − y‖² (after Paul et al. 2021); "best_loss" and "best_aum",
            over the fourth of the checkpoints with the least held-out loss,
            which is `val_loss` of a run and that of the fold of a copy; of a
            regression "residual", in robust standard deviations. A list of
            these is the mean of their ranks. "auto" is ["best_loss",
            "best_aum"], or ["mean_loss", "aum"] where a held-out loss is not
            known, or "loss" of a single checkpoint.
        number: how the number of wrong labels is estimated from the
            probabilities at the first two checkpoints: "confident_learning"
            (Northcutt et al. 2021), which is right of models that are seldom
            wrong, and far too high for others; "confident_examples", by how
            often the most confident predictions disagree with the label; or
            "auto", the first or the second or a mean of both by how often the
            model is wrong, and the second out of fold. Or the number, where it
            is known. In a regression residuals above 3.5 robust standard
            deviations are counted.
        folds: number of folds, 0 for none. For each, a copy of the model is
            trained on all other examples and looks at all after each epoch.
            Ranks are then the mean of those in the run, if there is one, out
            of fold, and by the copies that were trained on an example; the
            number and suggestions are out of fold.
        fit: trains a fold, `fit(model, train, callbacks)`: an untrained copy of
            the model (or one that it builds itself) on `(x, y)` or `(x, y,
            sample_weight)`, as arrays, with `model.fit(..., callbacks=
            callbacks)`. By default with the epochs and the batch size of the
            run, without its callbacks and class weights.
        directory: where finished folds are kept, so that an interrupted call
            goes on from them. What `fit` does cannot be compared: choose
            another directory when it changes.
        seed: seed of the choice of folds.
        loss: used in place of the compiled loss, as in `training_dynamics`.
        strategy: a `tf.distribute.Strategy` under which the model was built.
        jit_compile: whether XLA compiles the steps, as in `TracIn`.
        memory_limit: bytes the computation may use, as in
            `training_dynamics`.
        verbose: 0 for silence.

    Raises:
        ValueError: if `method`, `number` or `folds` is none of these, if folds
            cannot be trained, and as `training_dynamics`.
    """
    if method != "auto":
        check_method(method)
    check_number(number)
    if run is not None and not isinstance(run, TrainingRun):
        run = TrainingRun(run)
    copies = dynamics = None
    if folds:
        trainings = Folds(folds, fit, run, directory, seed, loss)
        copies = trainings.measure(model, train, verbose)
    elif fit is not None or directory is not None:
        raise ValueError(
            "`fit` and `directory` are of trainings on folds. Received them "
            "without `folds=`, 3 for example."
        )
    if copies is None or run is not None:
        dynamics = training_dynamics(
            model,
            train,
            run,
            loss=loss,
            strategy=strategy,
            jit_compile=jit_compile,
            memory_limit=memory_limit,
            verbose=verbose,
        )
        if copies is not None:
            copies = copies.reordered(dynamics.ids)
    return LabelIssues.from_dynamics(dynamics, method, number, copies)
