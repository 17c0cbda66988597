"""The checkpoints of a run that are summed over, and their learning rates.

Synopsis:

    checkpoint_rates(run)  # {checkpoint: η_k}, those with a rate of 0 left out
"""

from __future__ import annotations

import warnings

from keras_tracin.engine.engine import Engine
from keras_tracin.engine.visits import Weights, name_of
from keras_tracin.runs import Checkpoint, TrainingRun
from keras_tracin.runs.segments import no_rates


def warn_of_final_only(run: TrainingRun) -> None:
    """Warns of a run of one checkpoint, the last (Pruthi et al. 2020, sec. D).

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


def checkpoint_rates(run: TrainingRun, weights: str = "mean") -> Weights:
    """The checkpoints with a learning rate above zero, and that rate.

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
        raise no_rates(run)
    return rates


def moving(engine: Engine, rates: Weights) -> Weights:
    """The checkpoints whose steps moved variables that gradients are of.

    Args:
        engine: made for these checkpoints.
        rates: the checkpoints and their learning rates.
    """
    kept: dict[Checkpoint | None, float] = {}
    for checkpoint, rate in rates.items():
        if engine.updated.moved(checkpoint, engine.variables):
            kept[checkpoint] = rate
            continue
        warnings.warn(
            f"Skipping {name_of(checkpoint)}: its steps updated none of the "
            "layers that gradients are taken of.",
            stacklevel=3,
        )
    return kept
