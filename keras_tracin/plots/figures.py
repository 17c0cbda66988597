"""Creates figures; colours that figures share."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from keras_tracin.plots.fonts import use_fonts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150
WRONG = "#c8102e"  # the colour of wrong labels
PROPONENT, OPPONENT = "#2166ac", "#b2182b"  # as at the ends of "RdBu"
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


def new_page() -> Figure:
    """Creates a figure for text alone, without axes.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    figure = new_figure()
    from matplotlib.lines import Line2D

    # Notebooks show no figure that has neither axes nor lines.
    figure.lines.append(Line2D([], []))
    return figure


def new_axes(width: float = 5.6, height: float = 4.2) -> Axes:
    """Creates axes that fill a new figure of this size in inches."""
    figure = new_figure()
    figure.set_size_inches(width, height)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def figure_of(axes: Axes) -> Figure:
    """The finished figure of axes from `new_axes`."""
    figure = cast("Figure", axes.figure)
    use_fonts(figure)
    return figure


def add_note(
    figure: Figure, note: str, side: str, colour: str = REFERENCE
) -> None:
    """Writes a note at the foot of a figure, on the left or on the right."""
    if note:
        x = 0.1 / figure.get_figwidth()
        y = 0.06 / figure.get_figheight()
        figure.text(
            x if side == "left" else 1 - x,
            y,
            note,
            fontsize=8,
            color=colour,
            ha=side,
        )
