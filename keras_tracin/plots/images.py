"""Grids of images: queries with their proponents and opponents.

Public as `keras_tracin.plots`.

Synopsis:

    top = tracin.top_k((x_test, y_test), k=5)
    figure = plots.proponents_and_opponents(top, x_test, x_train)
    figure.savefig("proponents.png")
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_tracin.plots.columns import column, find_positions
from keras_tracin.plots.figures import WRONG, new_figure
from keras_tracin.results import TopK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In inches, except for spaces, which are in widths of an image.
_IMAGE = 0.9
_ROW = 1.35  # an image and its caption
_HEAD, _FOOT = 0.55, 0.2
_SPACE, _GROUP_SPACE = 0.15, 0.35


def proponents_and_opponents(
    top: TopK,
    query_images: Any,
    train_images: Any,
    *,
    query_labels: Sequence[Any] | None = None,
    train_labels: Sequence[Any] | None = None,
    train_ids: Any = None,
    is_mislabeled: Any = None,
) -> Figure:
    """Draws each query in a row with its proponents and opponents.

    The query comes first, then its proponents (positive scores: training on
    them lowered the query's loss), then its opponents. The strongest come
    first, with label and score below.

    Example:
    ```python
    top = tracin.top_k((x_test[:4], y_test[:4]), k=5)
    figure = plots.proponents_and_opponents(
        top, x_test[:4], x_train, train_labels=y_train
    )
    figure.savefig("proponents.png")
    ```

    Args:
        top: result of `top_k` for m queries.
        query_images: images `[m, height, width]` or `[m, height, width,
            channels]`, in the order of `top`. A single channel is drawn from
            black, its lowest value in the figure, to white; three or four are
            colours, integers from 0 to 255 or floats from 0 to 1.
        train_images: images `[n, height, width]` or `[n, height, width,
            channels]`.
        query_labels: labels `[m]`, shown as `str`.
        train_labels: labels `[n]`, likewise.
        train_ids: ids `[n]` of `train_images`, if `with_ids` attached them; by
            default ids are positions.
        is_mislabeled: booleans `[n]`; wrong labels are drawn in red.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if `top` has no queries, if lengths or shapes do not match,
            if colours are out of range, or if `top` names an id that
            `train_images` does not have.
    """
    figure = new_figure()
    m, n = len(top), len(train_images)
    if not m:
        raise ValueError("`top` should hold at least one query. Received none.")
    names = column("query_labels", query_labels, m)
    labels = column("train_labels", train_labels, n)
    wrong = column("is_mislabeled", is_mislabeled, n)
    column("query_images", query_images, m)

    ids = np.hstack([top.proponents.ids, top.opponents.ids])  # [m, 2k]
    scores = np.hstack([top.proponents.scores, top.opponents.scores])
    all_ids = column("train_ids", train_ids, n)
    positions = find_positions(ids, all_ids, n, "train_images")
    queries = _prepare_images(query_images, "query_images")
    shown = _prepare_images(train_images, "train_images", positions)
    limits = min(queries.min(), shown.min()), max(queries.max(), shown.max())

    axes: Any = _image_grid(figure, m, ids.shape[1] // 2)
    for row in range(m):
        name = top.query_ids[row] if names is None else names[row]
        _draw_image(axes[row, 0], queries[row], limits, f"{name}")
    for cell, position in np.ndenumerate(positions):
        caption = f"{scores[cell]:+.3g}"
        if labels is not None:
            caption = f"{labels[position]}\n{caption}"
        is_wrong = wrong is not None and bool(wrong[position])
        _draw_image(axes[:, 1:][cell], shown[cell], limits, caption, is_wrong)
    if wrong is not None:
        _add_note(figure)
    return figure


def _prepare_images(
    images: Any, name: str, index: Any = slice(None)
) -> np.ndarray:
    """Images at `index`, `[..., h, w]` in grey or `[..., h, w, 3 or 4]`."""
    images = np.asarray(images)
    if images.ndim == 3:
        return images[index]
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"`{name}` should have shape [n, height, width] or [n, height, "
            f"width, channels] with 1, 3 or 4 channels. Received: shape "
            f"{images.shape}."
        )
    images = images[index]
    if images.shape[-1] == 1:
        return images[..., 0]
    highest = 255 if np.issubdtype(images.dtype, np.integer) else 1
    if images.min() < 0 or images.max() > highest:
        raise ValueError(
            f"The colours of `{name}` should be integers from 0 to 255 or "
            f"floats from 0 to 1. Received: {images.dtype} from "
            f"{images.min():.3g} to {images.max():.3g}. Undo the preprocessing "
            "of the images."
        )
    return images


def _image_grid(figure: Figure, m: int, k: int) -> np.ndarray:
    """Axes `[m, 1 + 2 k]` for queries, their k proponents and k opponents."""
    titles = {
        "Query": 1,
        "Proponents\nlowered its loss": k,
        "Opponents\nraised its loss": k,
    }
    # In widths of an image, with space for each image and each group.
    widths = [count * (1 + _SPACE) + _GROUP_SPACE for count in titles.values()]
    height = m * _ROW + _HEAD + _FOOT
    figure.set_size_inches(_IMAGE * sum(widths), height)
    groups: Any = figure.subfigures(1, len(titles), width_ratios=widths)
    axes = []
    for group, width, (title, count) in zip(
        groups, widths, titles.items(), strict=True
    ):
        group.suptitle(title, fontsize=9, y=1 - 0.1 / height, va="top")
        margin = (_SPACE + _GROUP_SPACE) / 2 / width
        group.subplots_adjust(
            left=margin,
            right=1 - margin,
            top=1 - _HEAD / height,
            bottom=(_FOOT + _ROW - _IMAGE) / height,
            wspace=_SPACE,
            hspace=(_ROW - _IMAGE) / _IMAGE,
        )
        axes.append(group.subplots(m, count, squeeze=False))
    return np.hstack(axes)


def _draw_image(
    axes: Axes,
    image: np.ndarray,
    limits: tuple[float, float],
    caption: str,
    wrong: bool = False,
) -> None:
    axes.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1])
    axes.set(xticks=[], yticks=[])
    colour = WRONG if wrong else "black"
    axes.set_xlabel(caption, fontsize=8, color=colour, labelpad=3)
    axes.spines[:].set(color=colour, linewidth=2 if wrong else 0.5)


def _add_note(figure: Figure) -> None:
    y = 0.06 / figure.get_figheight()
    note = "red: wrong label"
    figure.text(0.99, y, note, fontsize=8, color=WRONG, ha="right")
