"""Creates figures; colours that figures share."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
WRONG = "#c8102e"  # the colour of wrong labels
REFERENCE = "#767676"  # the colour of references for comparison


def new_figure() -> Figure:
    """Creates a figure, which needs no display and does not touch pyplot.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "keras_tracin.plots needs matplotlib, which is not installed. "
            "Install the `plots` extra: pip install 'keras_tracin[plots]'."
        ) from error
    return Figure(dpi=DPI)


def new_axes(width: float = 5.6, height: float = 4.2) -> Axes:
    """Creates axes that fill a new figure of this size in inches."""
    figure = new_figure()
    figure.set_size_inches(width, height)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def figure_of(axes: Axes) -> Figure:
    """The figure of axes from `new_axes`."""
    return cast("Figure", axes.figure)
