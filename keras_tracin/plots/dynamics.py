"""A map of training examples by their training dynamics.

Public as `keras_tracin.plots`.

Synopsis:

    dynamics = kt.training_dynamics(model, train, run, verbose=0)
    plots.data_map(dynamics, is_mislabeled).savefig("map.png")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from keras_tracin.labels import TrainingDynamics
from keras_tracin.plots.figures import WRONG, figure_of, new_axes
from keras_tracin.plots.scores import Scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MANY = 2_000  # above this number, points are small and pale


def data_map(dynamics: TrainingDynamics, is_mislabeled: Any = None) -> Figure:
    """Draws each example by the probability of its label during training.

    The height is the mean probability over the checkpoints, the x-axis its
    standard deviation, and the colour the share of checkpoints that predict
    the label (Swayamdipta et al. 2020): easy examples are at the top left,
    ambiguous ones on the right, and hard ones, with wrong labels among them,
    at the bottom left.

    Example:
    ```python
    dynamics = kt.training_dynamics(model, train, "runs/a")
    plots.data_map(dynamics).savefig("map.png")
    ```

    Args:
        dynamics: the dynamics of a classification.
        is_mislabeled: booleans `[n]` in reading order, or a dict of booleans
            by id: examples to put a red circle around. None by default.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the dynamics have no probabilities, or lengths differ.
    """
    confidence, spread = dynamics.confidence, dynamics.variability
    many = len(dynamics) > _MANY
    axes = new_axes(6.0, 4.6)
    points = axes.scatter(
        spread,
        confidence,
        c=dynamics.correctness,
        s=4 if many else 14,
        alpha=0.5 if many else 0.9,
        cmap="viridis",
        vmin=0,
        vmax=1,
        linewidths=0,
        rasterized=True,
    )
    if is_mislabeled is not None:
        scores = Scores(confidence, dynamics.ids)
        wrong = scores.flags(is_mislabeled, "is_mislabeled")
        axes.scatter(
            spread[wrong],
            confidence[wrong],
            s=10 if many else 40,
            facecolors="none",
            edgecolors=WRONG,
            linewidths=0.5 if many else 1,
            rasterized=True,
            label=f"wrong labels ({wrong.sum():,})",
        )
        axes.legend(loc="lower right", fontsize=8)
    bar = figure_of(axes).colorbar(points, shrink=0.8)
    bar.set_label("Share of checkpoints that predict the label")
    if bar.solids is not None:
        bar.solids.set_alpha(1)
    axes.set(xlabel="Variability: standard deviation of its probability")
    axes.set(ylabel="Confidence: mean probability of the label")
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(left=min(0.0, -0.02 * float(spread.max())))
    axes.grid(alpha=0.25)
    return figure_of(axes)
