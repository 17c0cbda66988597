"""Which checkpoints of a run count, and what each counts.

Synopsis:

    checkpoint_rates(run)  # {checkpoint: η_k}, those with a rate of 0 left out
"""

from __future__ import annotations

import warnings

from keras_tracin.runs import Checkpoint, TrainingRun
from keras_tracin.runs.beside import digests_beside, variables_beside
from keras_tracin.scoring import Rates, Scorer, name_of


def warn_of_final_only(run: TrainingRun) -> None:
    """Warns of a run of one checkpoint, the last (section D).

    Args:
        run: the training run.
    """
    if len(run) != 1 or run[0].epoch == 1:
        return
    if run.epochs and run[0].epoch < run.epochs[-1]:
        return
    warnings.warn(
        f"TracIn was given the final checkpoint only (epoch {run[0].epoch}). "
        "Once training has converged gradients are tiny, and scores from "
        "them are noisy. Save checkpoints while the loss falls, "
        "TracInCheckpoint(epochs=kt.WhenLossDrops(0.1)) for example, and "
        "choose among them with kt.select_checkpoints.",
        stacklevel=3,
    )


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
            "computed from their inputs (`add_loss` or "
            "`activity_regularizer`), which cannot be split into examples. "
            "Pass the rest of the objective as `loss=` to attribute that alone."
        )
    beside = digests_beside(scorer.model)
    changed, others = [], []
    for place, digests in run.beside.items():
        if place >= len(beside):
            continue
        where, digest = beside[place]
        if len(digests) > 1:
            changed.append(place)
        elif digest not in digests:
            others.append(where)
    read = scorer.depends_on(
        [variables_beside(scorer.model)[place][1] for place in changed]
    )
    moved = [
        beside[p][0]
        for p, is_read in zip(changed, read, strict=True)
        if is_read
    ]
    if moved:
        raise ValueError(
            "The losses depend on variables that changed in training and are "
            "not among the model's weights, so the run does not hold the "
            f"values that they had. Received: {moved}; expected weights that "
            "Keras tracks. Make them by `self.add_weight(..., "
            "trainable=False)` in a layer and record the run again; or pass "
            "a part of the objective that does not depend on them as `loss=`."
        )
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


def checkpoint_rates(run: TrainingRun, weights: str = "mean") -> Rates:
    """The checkpoints that count, and what each counts.

    Args:
        run: the training run.
        weights: "mean" or "sum", as for `TracIn`.

    Raises:
        ValueError: if no checkpoint has a learning rate above zero, or if
            sums are asked for that are not known.
    """
    if weights not in ("mean", "sum"):
        raise ValueError(
            "`weights` should be 'mean' or 'sum' of the learning rates. "
            f"Received: {weights!r}."
        )
    rates: dict[Checkpoint | None, float] = {}
    for checkpoint in run:
        rate = checkpoint.learning_rate
        if weights == "sum":
            if checkpoint.learning_rate_sum is None:
                raise ValueError(
                    "`weights='sum'` needs the learning rate of every step. "
                    "Received a run adopted from weight files, which knows "
                    "one rate for each; use `weights='mean'`."
                )
            rate = checkpoint.learning_rate_sum
        if rate == 0:
            warnings.warn(
                f"Skipping {name_of(checkpoint)}: its learning rate is 0, as "
                "in a warm-up, so it moved nothing.",
                stacklevel=3,
            )
            continue
        rates[checkpoint] = rate
    if not rates:
        raise ValueError(
            "No checkpoint of the run has a learning rate above zero. "
            f"Received: {run!r}. Train for at least one epoch with "
            "`TracInCheckpoint` among the callbacks."
        )
    return rates


def moving(scorer: Scorer, rates: Rates) -> Rates:
    """Those of the checkpoints whose steps moved what gradients are taken by.

    Args:
        scorer: made for these checkpoints.
        rates: what each counts.
    """
    kept: dict[Checkpoint | None, float] = {}
    for checkpoint, rate in rates.items():
        if scorer.moved(checkpoint):
            kept[checkpoint] = rate
            continue
        warnings.warn(
            f"Skipping {name_of(checkpoint)}: its steps updated none of the "
            "layers that gradients are taken of.",
            stacklevel=3,
        )
    return kept
