"""Figures of a training: its loss, and changes of losses by steps.

Public as `keras_tracin.plots`.

Synopsis:

    plots.loss_curve(run, chosen=kt.select_checkpoints(run, 5))
    plots.loss_changes(trace).savefig("figure7.png")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from keras_tracin.plots.figures import REFERENCE, WRONG, figure_of, new_axes
from keras_tracin.runs import TrainingRun
from keras_tracin.trace import TrainingTrace

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def loss_curve(
    run: TrainingRun, chosen: TrainingRun | None = None, metric: str = "loss"
) -> Figure:
    """Draws a metric over the epochs of a run, and selected checkpoints.

    Example:
    ```python
    run = kt.TrainingRun("runs/digits")
    figure = plots.loss_curve(run, kt.select_checkpoints(run, 5))
    ```

    Args:
        run: a run with the metric recorded at the end of every epoch.
        chosen: a selection of its checkpoints, drawn as dots; none by default.
        metric: name of the metric to draw.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the metric was not recorded in every epoch, or if
            `chosen` has a checkpoint of another epoch.
    """
    values = run.history.get(metric, [])
    if not values or len(values) != len(run.epochs):
        raise ValueError(
            f"`metric` should name one that was recorded in every epoch. "
            f"Received: {metric!r}, in a run that recorded "
            f"{sorted(run.history)}."
        )
    value_at = dict(zip(run.epochs, values, strict=True))
    epochs = (
        [] if chosen is None else [checkpoint.epoch for checkpoint in chosen]
    )
    unknown = [epoch for epoch in epochs if epoch not in value_at]
    if unknown:
        raise ValueError(
            "`chosen` should hold checkpoints of epochs of the run. Received "
            f"one of epoch {unknown[0]}, of a run with {len(value_at)} epochs."
        )
    axes = new_axes()
    axes.plot(run.epochs, values, color=REFERENCE, linewidth=1.5, label=metric)
    if epochs:
        axes.plot(
            epochs,
            [value_at[epoch] for epoch in epochs],
            "o",
            color=WRONG,
            label=f"{len(epochs)} chosen checkpoints",
        )
    axes.set(xlabel="Epoch", ylabel=metric)
    axes.set_ylim(bottom=min(0, min(values)))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure_of(axes)


def loss_changes(
    trace: TrainingTrace, estimate: str = "first_order", most: int = 20_000
) -> Figure:
    """Draws real changes of queries' losses at every step over estimates.

    As in figure 7 of Pruthi et al. (2020). Changes are positive if the loss
    fell. Points on the diagonal are steps whose estimate was right.

    Example:
    ```python
    trace = kt.trace_training(model, (x, y), (x_test, y_test), epochs=1)
    plots.loss_changes(trace).savefig("figure7.png")
    ```

    Args:
        trace: a trace of `t` steps and `m` queries.
        estimate: `"first_order"`, as in TracIn, or `"along_step"`, along the
            step that the optimizer took.
        most: number of the `t · m` points to draw, selected at random. The
            correlation in the title is over all points.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if `estimate` is neither.
    """
    correlation = trace.correlation(estimate)
    real = trace.steps.real.ravel()
    estimates = getattr(trace.steps, estimate).ravel()
    shown = np.arange(len(real))
    if len(real) > most:
        shown = np.random.default_rng(0).choice(shown, most, replace=False)
    axes = new_axes(4.8, 4.6)
    axes.axline((0, 0), slope=1, color=REFERENCE, linewidth=1, zorder=1)
    axes.plot(
        real[shown],
        estimates[shown],
        ".",
        markersize=2,
        alpha=0.3,
        rasterized=True,
    )
    # Without a limit, a few outliers would shrink all other points to a dot.
    limit = max(np.quantile(np.abs(part), 0.999) for part in (real, estimates))
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    names = {
        "first_order": "First-order estimate (TracIn)",
        "along_step": "Estimate along the optimizer's step",
    }
    axes.set(xlabel="Real decrease of the loss", ylabel=names[estimate])
    steps, queries = trace.steps.real.shape
    axes.set_title(
        f"{steps:,} steps × {queries:,} queries, Pearson {correlation:.3f}",
        fontsize=10,
    )
    axes.grid(alpha=0.25)
    return figure_of(axes)
