"""Measures training dynamics: one forward pass for each checkpoint of a run.

Synopsis:

    dynamics = training_dynamics(model, train, "runs/digits")
    dynamics = training_dynamics(model, train, run[:5], probabilities="all")
    dynamics.mean_loss                       # [n]
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_tracin.data.batches import Batch
from keras_tracin.data.ids import Reading
from keras_tracin.engine.call import Call
from keras_tracin.engine.chunks import Sink
from keras_tracin.engine.collecting import warn_of_repeats
from keras_tracin.engine.distribution import Strategy, check_first
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.execution import Execution
from keras_tracin.engine.forward import ForwardEngine
from keras_tracin.engine.passes import norms_pass
from keras_tracin.engine.sweep import sweep
from keras_tracin.engine.visits import PRESENT_WEIGHTS, Weights
from keras_tracin.labels.columns import Columns, Keep
from keras_tracin.labels.dynamics import EARLY, TrainingDynamics
from keras_tracin.losses.output_statistics import (
    OutputStatistics,
    output_statistics,
)
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.models.kinds import check_is_model
from keras_tracin.runs import TrainingRun, check_checkpoint

_BY_CLASS = (
    "given_labels",
    "mean_probabilities",
    "early_probabilities",
    "probabilities",
)


@exclusive_access
def training_dynamics(
    model: keras.Model,
    train: Any,
    run: TrainingRun | str | os.PathLike | None = None,
    *,
    loss: Any = None,
    probabilities: str | None = "mean",
    gradients: bool = False,
    strategy: Strategy | None = None,
    jit_compile: bool | str = "auto",
    memory_limit: int | None = None,
    verbose: int = 1,
) -> TrainingDynamics:
    """Measures how the model saw each training example during its training.

    The model runs forward over the training examples once for each checkpoint
    of a recorded run, in inference mode. It has its own weights back
    afterwards. Wrong labels have large losses and small margins for longer
    than others, so means over all epochs find them where the last epoch, which
    may have memorized them, does not.

    Labels may be class indices or one-hot, of a single output, several for
    each example (as of a sigmoid for each), of sequences, or numbers to
    predict. Losses that layers add from their inputs are left out, and so are
    weights of examples.

    Example:
    ```python
    model.fit(x, y, epochs=10, callbacks=[kt.TracInCheckpoint("runs/a")])
    dynamics = kt.training_dynamics(model, (x, y), "runs/a")
    suspects = dynamics.ids[np.argsort(-dynamics.mean_loss)]
    ```

    Args:
        model: the trained model, compiled with its loss.
        train: the training examples as `model.fit` took them, in the same
            order each time or with ids.
        run: a `TrainingRun`, or its directory; by default the weights that
            the model has are the only ones.
        loss: used in place of the compiled loss, as where that is a function
            of your own that does not say what the outputs are.
        probabilities: "mean" keeps probabilities of all classes averaged over
            the checkpoints, `[n, classes]`; "all" also those of each,
            `[k, n, classes]`; None keeps none.
        gradients: also measure the lengths of gradients, which takes several
            times as long.
        strategy: a `tf.distribute.Strategy` under which the model was built.
        jit_compile: whether XLA compiles the steps, as in `TracIn`.
        memory_limit: bytes the computation may use, beside the data and what
            is returned; half of what is free by default.
        verbose: 0 for silence.

    Raises:
        ValueError: if the model has several outputs, or its loss does not say
            what they are; if labels are outside of the classes, or outputs or
            losses NaN or infinite, naming the ids; or if the run has no
            checkpoint.
    """
    check_is_model(model)
    check_first(strategy, "`training_dynamics`")
    if probabilities not in ("mean", "all", None):
        raise ValueError(
            "`probabilities` should be 'mean', 'all' or None. Received: "
            f"{probabilities!r}."
        )
    weights = _weights_of(model, run)
    execution = Execution.of(strategy, jit_compile, memory_limit)

    def make_measure(batch: Batch) -> OutputStatistics:
        return output_statistics(model, batch.x, batch.y, loss)

    engine = ForwardEngine(
        model, train, make_measure, loss=loss, execution=execution
    )
    statistics = engine.measure
    keep = _what_to_keep(statistics.names, probabilities, len(weights))
    columns = Columns(keep, len(weights))
    work = engine.forward_pass("Training dynamics", weights, columns.gather)
    sweep(engine, work, Sink(columns.add), Call(verbose=verbose))
    warn_of_repeats(columns.ids)
    fields: dict[str, Any] = {
        # Classes and labels follow the examples.
        name: np.moveaxis(array, -1, -2)
        if array.ndim > 1 and name in _BY_CLASS
        else array
        for name, array in columns.arrays().items()
    }
    if gradients:
        differentiating = Engine(
            model, train, loss=loss, checkpoints=weights, execution=execution
        )
        read, lengths = _lengths(differentiating, weights, verbose)
        rows = Reading(read, "train").places(columns.ids)
        fields["gradient_norm"] = lengths[:, rows]
    return TrainingDynamics(
        ids=columns.ids,
        epochs=np.array([0 if c is None else c.epoch for c in weights]),
        kind=statistics.kind,
        held_out_loss=_held_out_loss(weights),
        **fields,
    )


def _weights_of(
    model: keras.Model, run: TrainingRun | str | os.PathLike | None
) -> Weights:
    """The checkpoints of a run, which are looked at before any work."""
    if run is None:
        return PRESENT_WEIGHTS
    if not isinstance(run, TrainingRun):
        run = TrainingRun(run)
    if not len(run):
        raise ValueError(
            "Training dynamics are of the checkpoints of a run. Received: "
            f"{run!r}. Train for an epoch or more with `TracInCheckpoint` "
            "among the callbacks, or leave `run` out to measure the weights "
            "that the model has."
        )
    if len(run) == 1:
        warnings.warn(
            "The run has one checkpoint only, so there is no course of "
            "training to look at: means are its values, nothing varies and "
            "nothing is forgotten. Received: "
            f"{run!r}. Wrong labels are found best by all epochs: record them "
            "with `TracInCheckpoint`.",
            stacklevel=4,
        )
    if model.built:
        for checkpoint in run:
            check_checkpoint(model, checkpoint)
    return dict.fromkeys(run, 1.0)


def _held_out_loss(weights: Weights) -> np.ndarray | None:
    """`val_loss` at each checkpoint, `[k]`, if all have a finite one."""
    logs = [{} if c is None else c.logs for c in weights]
    losses = np.array([log.get("val_loss", np.nan) for log in logs])
    return losses if np.isfinite(losses).all() else None


def _what_to_keep(
    names: Sequence[str], probabilities: str | None, num_checkpoints: int
) -> Keep:
    """What is kept of each statistic, under the names of fields."""
    keep: dict[str, dict[str, int | None]] = {n: {n: None} for n in names}
    if "given" in keep:
        keep["given"] = {"given_labels": 1}
    if "probabilities" in keep:
        means: dict[str, int | None] = {
            "mean_probabilities": num_checkpoints,
            "early_probabilities": min(EARLY, num_checkpoints),
        }
        every: dict[str, int | None] = {"probabilities": None}
        keep["probabilities"] = ({} if probabilities is None else means) | (
            every if probabilities == "all" else {}
        )
    return keep


def _lengths(
    engine: Engine, weights: Weights, verbose: int
) -> tuple[np.ndarray, np.ndarray]:
    """Ids `[n]`, and the lengths of their gradients `[k, n]`."""
    columns = Columns({"lengths": {"lengths": None}}, len(weights))
    norms = norms_pass("Lengths of gradients", engine.train_steps, weights)
    norms = dataclasses.replace(norms, gather=columns.gather)
    sweep(engine, norms, Sink(columns.add), Call(verbose=verbose))
    return columns.ids, np.sqrt(columns.arrays()["lengths"])
