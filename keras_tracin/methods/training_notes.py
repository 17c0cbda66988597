"""Compares what a run noted of its training with what is scored.

Synopsis:

    check_training(run, engine)  # ValueError, or warnings
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from keras_tracin.engine.engine import Engine
from keras_tracin.engine.steps import batch_spec
from keras_tracin.gradients.dry_run import Objective, run_with_loss
from keras_tracin.losses.per_example import NOT_SPLIT
from keras_tracin.models.state import value_of
from keras_tracin.runs import TrainingRun
from keras_tracin.runs.beside import digest_of, variables_beside


def check_training(run: TrainingRun, engine: Engine) -> None:
    """Compares what a run noted of its training with what is scored.

    Args:
        run: the training run.
        engine: made for its model and training data.

    Raises:
        ValueError: if layers added losses in training, unless the engine was
            given a loss; or if a variable that the losses depend on changed in
            training and is not among the model's weights, of which alone a run
            holds the values. One that is another now is warned of, and so are
            weights of examples that are missing or too many.
    """
    _warn_of_weights(run, engine)
    if run.added_losses and not engine.has_own_loss:
        raise ValueError(
            f"In training, layers {list(run.added_losses)} added losses "
            f"{NOT_SPLIT}"
        )
    beside = variables_beside(engine.model)
    changed = [
        variable
        for (_, variable), (_, digests) in zip(beside, run.beside, strict=False)
        if len(digests) > 1
    ]
    needed = _depends_on(engine, changed)
    read = dict(zip(map(id, changed), needed, strict=True))
    moved = [where for where, v in beside if read.get(id(v))]
    if moved:
        raise ValueError(
            "The losses depend on variables that changed in training and are "
            "not among the model's weights, so the run does not hold the "
            f"values that they had. Received: {moved}; expected weights that "
            "Keras tracks. Make them by `self.add_weight(..., "
            "trainable=False)` in a layer and record the run again; or pass "
            "a part of the objective that does not depend on them as `loss=`."
        )
    others = [
        where
        for (where, variable), (_, digests) in zip(
            beside, run.beside, strict=False
        )
        if len(digests) == 1 and digest_of(variable) not in digests
    ]
    # What is not there any more, as with another loss, may not be needed.
    others += [
        where
        for where, digests in run.beside[len(beside) :]
        if len(digests) > 1
    ]
    if others:
        warnings.warn(
            f"These have other values now than in training: {others}. They are "
            "not among the model's weights, and scores use the present ones. "
            "Give them the values that they had.",
            stacklevel=3,
        )


def _depends_on(engine: Engine, variables: Sequence[Any]) -> list[bool]:
    """Whether the training losses depend on each of these variables."""
    if not variables:
        return []
    x, y, *weight = batch_spec(engine.like.data)
    objective = Objective(x, y, weight[0] if weight else None, engine.loss)
    run = run_with_loss(engine.model, objective)
    return [
        not run.knows_loss or run.depends_on(value_of(variable))
        for variable in variables
    ]


def _warn_of_weights(run: TrainingRun, engine: Engine) -> None:
    """Warns where training had weights of examples and these data have not.

    Or the other way round.

    Args:
        run: the training run.
        engine: made for the training data.
    """
    if run.weighted is None or run.weighted == engine.weighted:
        return
    if run.weighted:
        message = (
            "In training, batches had weights of the examples: `class_weight` "
            "or `sample_weight` was given to fit. Received training data "
            "without weights and no `class_weight`, so that every example "
            "counts alike. Pass the `class_weight` given to fit, or data of "
            "`(x, y, sample_weight)`."
        )
    else:
        message = (
            "In training, batches had no weights of the examples. Received "
            "training data with weights, or `class_weight`, which scores "
            "count. Leave out what was not given to fit."
        )
    warnings.warn(message, stacklevel=3)
