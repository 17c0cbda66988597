"""What a run noted of its training, held against what is scored.

Synopsis:

    check_training(run, scorer)  # ValueError, or warnings
"""

from __future__ import annotations

import warnings

from keras_tracin.engine.scoring import Scorer
from keras_tracin.losses.per_example import NOT_SPLIT
from keras_tracin.runs import TrainingRun
from keras_tracin.runs.beside import digest_of, variables_beside


def check_training(run: TrainingRun, scorer: Scorer) -> None:
    """Compares what a run noted of its training with what is scored.

    Args:
        run: the training run.
        scorer: made for its model and training data.

    Raises:
        ValueError: if layers added losses in training, unless the scorer was
            given a loss; or if a variable that the losses depend on changed in
            training and is not among the model's weights, of which alone a run
            holds the values. One that is another now is warned of, and so are
            weights of examples that are missing or too many.
    """
    _warn_of_weights(run, scorer)
    if run.added_losses and not scorer.has_own_loss:
        raise ValueError(
            f"In training, layers {list(run.added_losses)} added losses "
            f"{NOT_SPLIT}"
        )
    beside = variables_beside(scorer.model)
    changed = [
        variable
        for (_, variable), (_, digests) in zip(beside, run.beside, strict=False)
        if len(digests) > 1
    ]
    read = dict(zip(map(id, changed), scorer.depends_on(changed), strict=True))
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


def _warn_of_weights(run: TrainingRun, scorer: Scorer) -> None:
    """Warns where training had weights of examples and these data have not.

    Or the other way round.

    Args:
        run: the training run.
        scorer: made for the training data.
    """
    if run.weighted is None or run.weighted == scorer.weighted:
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
