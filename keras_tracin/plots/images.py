"""Grids of images: queries with their proponents and opponents.

Public as `keras_tracin.plots`.

Synopsis:

    top = tracin.top_k((x_test, y_test), k=5)
    figure = plots.proponents_and_opponents(
        top, (x_test, y_test), (x_train, y_train), queries=4
    )
    figure.savefig("proponents.png")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_tracin.data.kinds import (
    is_grey,
    is_image,
    kind_of,
    named_arrays,
    white_of,
)
from keras_tracin.plots.figures import WRONG, add_note, new_figure
from keras_tracin.plots.fonts import use_fonts
from keras_tracin.plots.selection import Selection, select
from keras_tracin.plots.shown import Shown
from keras_tracin.plots.wrapping import wrap_name
from keras_tracin.results import Attribution, TopK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In inches, except for spaces, which are in widths of an image.
_IMAGE = 0.9
_ROW = 1.42  # an image and its caption
_HEAD, _FOOT = 0.55, 0.2
_SPACE, _GROUP_SPACE = 0.15, 0.35
_POINTS = 72  # in an inch
_SIZE = 8  # font size of captions, in points
_LINES = 3  # of a caption
MOST_QUERIES, MOST_EXAMPLES = 20, 10  # the latter on each side


def proponents_and_opponents(
    top: TopK | Attribution,
    query_images: Any,
    train_images: Any,
    *,
    queries: int | Sequence[Any] | None = None,
    k: int | None = None,
    query_labels: Any = None,
    train_labels: Any = None,
    train_ids: Any = None,
    is_mislabeled: Any = None,
    class_names: Sequence[Any] | None = None,
    input_name: str | None = None,
) -> Figure:
    """Draws each query in a row with its proponents and opponents.

    The query comes first, then its proponents (positive scores: training on
    them lowered the query's loss), then its opponents. The strongest come
    first, with label and score below.

    Data are those that the method was given, or others with the same ids, such
    as images from before preprocessing. Images alone will do as well.

    Example:
    ```python
    train, test = (x_train, y_train), (x_test, y_test)
    figure = plots.proponents_and_opponents(
        tracin.top_k(test, k=5), test, train, queries=4
    )
    figure.savefig("proponents.png")
    ```

    Args:
        top: result of `top_k` for m queries, or of `influence`.
        query_images: the queries as `fit` takes them; or images `[m, height,
            width]` or `[m, height, width, channels]` of all queries of `top`,
            or of those in `queries`, in that order. A single channel is drawn
            from black, its lowest value in the figure, to white; three or four
            are colours, from 0 to 255 or floats from 0 to 1.
        train_images: the training examples as `fit` takes them, or images
            `[n, height, width]` or `[n, height, width, channels]`.
        queries: number of queries to draw, from the first; or their ids. By
            default the first 20.
        k: number of proponents and of opponents to draw; by default those in
            `top`, up to 10. Of an `Attribution`, 5.
        query_labels: labels in the order of `query_images`, or by id, shown as
            `str`; by default those in the data.
        train_labels: labels in the order of `train_images`, likewise.
        train_ids: ids `[n]` of `train_images`, if `with_ids` attached them
            and these are arrays; by default ids are positions.
        is_mislabeled: booleans in the order of `train_images`, or by id; wrong
            labels are drawn in red.
        class_names: names of the classes 0, 1, …
        input_name: the input to draw, of a model with several images.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if `top` is another result.
        ValueError: if `top` has no queries, if lengths or shapes do not match,
            if colours are out of range, if there is no image or several of
            them, or if `top` names an id that the data does not have.
    """
    new_figure()  # before long work, whether there is matplotlib
    pictures = Pictures.look_up(
        select(top, queries, k, (MOST_QUERIES, MOST_EXAMPLES)),
        query_images,
        train_images,
        query_labels=query_labels,
        train_labels=train_labels,
        train_ids=train_ids,
        is_mislabeled=is_mislabeled,
        class_names=class_names,
        input_name=input_name,
    )
    return pictures.draw(slice(None), pictures.selection.note)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Images of queries, and of their proponents and opponents.

    Attributes:
        selection: the queries, and the strongest on each side.
        asked: the queries.
        trained: the training examples.
        images: the images of both.
    """

    selection: Selection
    asked: Shown
    trained: Shown
    images: tuple[np.ndarray, np.ndarray]

    @classmethod
    def look_up(
        cls,
        selection: Selection,
        query_images: Any,
        train_images: Any,
        *,
        query_labels: Any = None,
        train_labels: Any = None,
        train_ids: Any = None,
        is_mislabeled: Any = None,
        class_names: Sequence[Any] | None = None,
        input_name: str | None = None,
    ) -> Pictures:
        """Looks the images up; arguments as of `proponents_and_opponents`."""
        asked = selection.queries(
            query_images, "query_images", query_labels, class_names
        )
        trained = selection.examples(
            train_images,
            "train_images",
            train_labels,
            class_names,
            train_ids,
            is_mislabeled,
        )
        images = _images_of(asked, input_name), _images_of(trained, input_name)
        return cls(selection, asked, trained, images)

    def draw(self, rows: slice, note: str) -> Figure:
        """A figure of some of the selected queries.

        Args:
            rows: their places among the selected.
            note: what the figure leaves out, if anything.
        """
        figure = new_figure()
        asked, trained, top = self.asked, self.trained, self.selection.top
        query_ids, scores = (
            top.query_ids[rows],
            np.hstack([top.proponents.scores, top.opponents.scores])[rows],
        )
        queries, cells = asked.at[rows], trained.at[rows]
        pairs = zip(self.images, (queries, cells), strict=True)
        shown = [images[np.unique(places)] for images, places in pairs]
        limits = min(x.min() for x in shown), max(x.max() for x in shown)

        axes: Any = _image_grid(figure, len(queries), cells.shape[1] // 2)
        for row, place in enumerate(queries):
            name = (
                query_ids[row] if asked.labels is None else asked.labels[place]
            )
            caption = _wrap(str(name), _LINES)
            _draw_image(axes[row, 0], self.images[0][place], limits, caption)
        for cell, place in np.ndenumerate(cells):
            caption = [f"{scores[cell]:+.3g}"]
            if trained.labels is not None:
                caption = _wrap(trained.labels[place], _LINES - 1) + caption
            is_wrong = trained.is_wrong is not None and trained.is_wrong[place]
            image = self.images[1][place]
            _draw_image(axes[:, 1:][cell], image, limits, caption, is_wrong)
        if trained.is_wrong is not None:
            add_note(figure, "red: wrong label", "right", WRONG)
        add_note(figure, note, "left")
        use_fonts(figure)
        return figure


def _images_of(shown: Shown, input_name: str | None) -> np.ndarray:
    """Images `[..., h, w]` in grey or `[..., h, w, 3 or 4]`."""
    images = _select_input(shown, input_name)
    if not is_image(images.shape) or images.dtype.kind not in "biuf":
        raise ValueError(
            f"`{shown.name}` should have shape [n, height, width] or [n, "
            "height, width, channels] with 1, 3 or 4 channels. Received: shape "
            f"({len(shown.batch)}, {', '.join(map(str, images.shape[1:]))}). "
            "Pass images with the same ids, or draw texts and rows of values "
            "by `plots.text_table`."
        )
    if images.ndim == 4 and is_grey(images):
        return images[..., 0]
    if images.ndim == 4:
        white = white_of(
            images.dtype,
            images.min(),
            images.max(),
            shown.name,
            "Undo the preprocessing of the images.",
        )
        return images / white
    return images


def _select_input(shown: Shown, input_name: str | None) -> np.ndarray:
    """The input to draw, of one or several.

    Raises:
        ValueError: if it is not clear which, or there is none of the name.
    """
    inputs = dict(named_arrays(shown.batch.x))
    if len(inputs) == 1:
        return next(iter(inputs.values()))
    images = [name for name, x in inputs.items() if kind_of(x) == "image"]
    shapes = {name: x.shape[1:] for name, x in inputs.items()}
    if input_name is not None and input_name not in inputs:
        raise ValueError(
            f"`input_name` should name an input of `{shown.name}`. Received: "
            f"{input_name!r}, while there are {list(inputs)}."
        )
    if input_name is None and len(images) != 1:
        raise ValueError(
            f"`{shown.name}` should have one input that is an image, or "
            f"`input_name` should name one. Received: inputs {shapes}, of "
            f"which {images or 'none'} are images."
        )
    return inputs[input_name or images[0]]


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


def _wrap(name: str, most: int) -> list[str]:
    """A name in lines that fit below an image."""
    return wrap_name(name, _IMAGE * (1 + _SPACE) * _POINTS, _SIZE, most)


def _draw_image(
    axes: Axes,
    image: np.ndarray,
    limits: tuple[float, float],
    caption: list[str],
    is_wrong: bool = False,
) -> None:
    axes.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1])
    axes.set(xticks=[], yticks=[])
    colour = WRONG if is_wrong else "black"
    axes.set_xlabel(
        "\n".join(caption),
        fontsize=_SIZE,
        color=colour,
        labelpad=3,
        parse_math=False,
    )
    axes.spines[:].set(color=colour, linewidth=2 if is_wrong else 0.5)
