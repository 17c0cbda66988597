"""Which checkpoints of a run count, and what each counts.

Synopsis:

    checkpoint_rates(run)  # {checkpoint: η_k}, those with a rate of 0 left out
"""

from __future__ import annotations

import warnings

from keras_tracin.engine.scoring import Rates, Scorer, name_of
from keras_tracin.runs import Checkpoint, TrainingRun


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
