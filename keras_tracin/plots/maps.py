"""Maps of training examples, coloured by their scores.

Public as `keras_tracin.plots`.

Synopsis:

    scores = tracin.influence((x_test, y_test))
    plots.score_map(longitude, latitude, scores, most=100)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_tracin.plots.figures import figure_of, new_axes
from keras_tracin.plots.scores import check_finite, example_scores
from keras_tracin.results import Attribution

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BACKGROUND = "#f3dc8c"  # examples that are not among the strongest
_QUERY = "#101010"
_HEIGHT = 5.4  # inches
_DEGREE = 111.2  # kilometres per degree of latitude
_MANY = 1_000  # above this number, points are small and have no edge


def score_map(
    longitude: Any,
    latitude: Any,
    scores: Any,
    *,
    queries: tuple[Any, Any] | None = None,
    most: int | None = None,
    extent: tuple[float, float, float, float] | None = None,
    name: str = "Score",
    log: bool = False,
) -> Figure:
    """Draws examples on a map, coloured and sized by their scores.

    The strongest are drawn on top. If scores have both signs, proponents are
    blue, opponents red, and zero is white.

    Example:
    ```python
    scores = tracin.influence(test)
    plots.score_map(
        longitude, latitude, scores, queries=(test_lon, test_lat), most=100
    )
    ```

    Args:
        longitude: longitudes `[n]` in degrees, in reading order, or a dict of
            them by id.
        latitude: latitudes `[n]`, likewise.
        scores: a `SelfInfluence`, an array `[n]`, or an `Attribution`, whose
            scores are summed over its queries.
        queries: longitudes and latitudes `[m]` of the queries, drawn as
            crosses.
        most: number of largest scores to colour, and of smallest ones if scores
            have both signs; all by default. The other examples are drawn in
            pale yellow.
        extent: western, eastern, southern and northern end of the map, in
            degrees; by default the extent of the data. Colours do not depend on
            it.
        name: name of the scores, beside the colour bar.
        log: If true, colours and sizes follow the logarithm of the scores,
            which must be positive.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if a result has not one score for each example.
        ValueError: if lengths differ, if there is no example, if a score is
            NaN or infinite, or if `log` is given with scores of zero or below.
    """
    own = example_scores(_summed(scores), "scores")
    values = own.values
    _check(values, log)
    coordinates = np.array(  # [2, n]
        [
            own.beside(longitude, "longitude"),
            own.beside(latitude, "latitude"),
        ],
        dtype=np.float64,
    )
    west, east, south, north = extent or _extent_of(*coordinates)
    # A degree of longitude is shorter the further from the equator.
    shrink = np.cos(np.deg2rad((south + north) / 2))
    aspect = 1 / max(shrink, 0.01)
    width = _HEIGHT * shrink * (east - west) / (north - south)
    axes = new_axes(width + 1.6, _HEIGHT)
    strongest = _strongest(values, most)
    _draw_background(axes, np.delete(coordinates, strongest, axis=1))
    _draw_scores(axes, coordinates[:, strongest], values[strongest], name, log)
    if queries is not None:
        count = len(queries[0])
        label = f"{count} quer{'y' if count == 1 else 'ies'}"
        axes.scatter(*queries, s=60, c=_QUERY, marker="x", label=label)
        axes.legend(loc="upper right", frameon=True, fontsize=8)
    axes.set(xlim=(west, east), ylim=(south, north), aspect=aspect)
    axes.set(xlabel="Longitude", ylabel="Latitude")
    axes.locator_params(nbins=6)
    _draw_scale(axes, shrink)
    return figure_of(axes)


def _summed(scores: Any) -> Any:
    """Scores for the queries together, of one that has several."""
    if not isinstance(scores, Attribution):
        return scores
    total = np.sum(scores.scores, axis=0, keepdims=True)
    return Attribution(total, np.arange(1), scores.train_ids)


def _check(values: np.ndarray, log: bool) -> None:
    check_finite(values, "scores")
    if log and values.min() <= 0:
        raise ValueError(
            "`log=True` needs scores above zero. Received: scores from "
            f"{values.min():.3g} on. Leave it out, or pass positive "
            "scores only."
        )


def _extent_of(longitude: np.ndarray, latitude: np.ndarray) -> tuple:
    """The extent of the data, with a margin."""
    ends = []
    for values in (longitude, latitude):
        low, high = float(values.min()), float(values.max())
        room = 0.03 * (high - low) or 0.01
        ends += [low - room, high + room]
    return tuple(ends)


def _strongest(values: np.ndarray, most: int | None) -> np.ndarray:
    """Indices of the examples to colour, the strongest last."""
    order = np.argsort(values, kind="stable")
    if most is None or most >= len(values):
        selected = order
    elif values.min() < 0 < values.max():
        selected = np.unique([*order[:most], *order[len(order) - most :]])
    else:
        selected = order[len(order) - most :]
    return selected[np.argsort(np.abs(values[selected]), kind="stable")]


def _draw_background(axes: Axes, coordinates: np.ndarray) -> None:
    axes.scatter(
        coordinates[0],
        coordinates[1],
        s=6,
        c=_BACKGROUND,
        linewidths=0,
        rasterized=True,
    )


def _draw_scores(
    axes: Axes,
    coordinates: np.ndarray,
    values: np.ndarray,
    name: str,
    log: bool,
) -> None:
    size = np.log(values / values.min()) if log else np.abs(values)
    size = size / (size.max() or 1)
    many = len(values) > _MANY
    colours: dict[str, Any]
    if values.min() < 0:
        limit = np.abs(values).max()
        colours = {"cmap": "RdBu", "vmin": -limit, "vmax": limit}
    else:
        colours = {"cmap": "viridis_r", "norm": "log" if log else "linear"}
    points = axes.scatter(
        coordinates[0],
        coordinates[1],
        s=3 + 15 * size if many else 6 + 54 * size,
        c=values,
        edgecolors="#404040",
        linewidths=0 if many else 0.25,
        rasterized=True,
        **colours,
    )
    figure_of(axes).colorbar(points, label=name, shrink=0.7)


def _draw_scale(axes: Axes, shrink: float) -> None:
    """Draws a scale of a round number of kilometres, in the lower left."""
    west, east = axes.get_xlim()
    south, north = axes.get_ylim()
    across = (east - west) * shrink * _DEGREE
    length = max(
        step * 10.0**power
        for power in range(-3, 5)
        for step in (1, 2, 5)
        if step * 10.0**power <= across / 3
    )
    left, low = west + 0.04 * (east - west), south + 0.04 * (north - south)
    right = left + length / (shrink * _DEGREE)
    axes.plot([left, right], [low, low], color=_QUERY, linewidth=2)
    axes.annotate(
        f"{length:g} km",
        ((left + right) / 2, low),
        (0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=8,
    )
