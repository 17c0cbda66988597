"""Curves of models that were trained on growing parts of the data.

Public as `keras_tracin.plots`.

Synopsis:

    curves = RetrainingCurves.concat(parts)
    plots.retraining_curves(curves).savefig("removed.png")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from keras_tracin.evaluation import RetrainingCurves
from keras_tracin.plots.figures import REFERENCE, figure_of, new_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def retraining_curves(curves: RetrainingCurves) -> Figure:
    """Draws what models are worth without, or with only, the first examples.

    Bands are 95% intervals of the means over seeds, where there are several.
    The curve of random subsets is grey, and the dotted line is that of all
    examples.

    Example:
    ```python
    curves = kt.evaluation.removal_curve(fit, train, test, scores, "retrained")
    plots.retraining_curves(curves).savefig("removed.png")
    ```

    Args:
        curves: result of `evaluation.removal_curve` or `selection_curve`.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    axes = new_axes()
    for name in curves.values:
        colour = REFERENCE if name == "random" else None
        mean, half = curves.mean(name), curves.interval(name)
        (line,) = axes.plot(
            curves.shares, mean, marker="o", ms=4, label=name, color=colour
        )
        if np.isfinite(half).all():
            axes.fill_between(
                curves.shares,
                mean - half,
                mean + half,
                color=line.get_color(),
                alpha=0.15,
                linewidth=0,
            )
    axes.axhline(
        curves.everything.mean(),
        color=REFERENCE,
        linestyle=":",
        label="all examples",
    )
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set(xlabel=f"Share of the examples that was {curves.kind}")
    axes.set(ylabel=curves.metric.replace("_", " ").capitalize())
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=9)
    return figure_of(axes)
