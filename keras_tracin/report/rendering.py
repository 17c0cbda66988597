"""Renders examples for the page: as images, text, or rows of values.

Synopsis:

    view = View.for_batch(examples.first(1), render="auto", name="train")
    view = view.with_limits(examples.batches(256))
    for batch in examples.batches(256):
        view.render(batch)                   # {"images": [], "texts": …}
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_tracin.data.batches import Batch
from keras_tracin.data.kinds import (
    as_text,
    is_grey,
    is_image,
    kind_of,
    named_arrays,
    white_of,
)
from keras_tracin.report.images import encoder

_MOST_CHARACTERS = 2_000  # of a text
_MOST_FEATURES = 200
_REMEDY = (
    "Pass the images as they were before preprocessing, in the same order or "
    "with the same ids; or `render='row'` to see their numbers."
)


@dataclasses.dataclass(frozen=True)
class View:
    """Rendering of the examples of one data set.

    Attributes:
        name: name of the data set in errors.
        inputs: names of the inputs: their keys in `x`, or "".
        kinds: kind of each input, one of `KINDS`.
        limits: values of black and of white in the images of each input; None
            where `with_limits` has to determine them.
        features: names of the values in a row.
        num_hidden: number of values of a row that are not shown.
    """

    name: str
    inputs: tuple[str, ...]
    kinds: tuple[str, ...]
    limits: tuple[tuple[float, float] | None, ...]
    features: tuple[str, ...]
    num_hidden: int

    @classmethod
    def for_batch(
        cls, batch: Batch, render: str, name: str, feature_names: Any = None
    ) -> View:
        """Chooses a view for data like a batch.

        Args:
            batch: some of the examples.
            render: one of `KINDS`, or "auto": images have the shape
                `[n, h, w]` or `[n, h, w, 1, 3 or 4]`, texts are strings `[n]`
                or `[n, 1]`, anything else is a row.
            name: name of the data set in errors.
            feature_names: names of the values in a row.

        Raises:
            ValueError: if `render` is "image" and an input cannot be one, or if
                the number of names is not the number of values.
        """
        inputs, leaves = zip(*named_arrays(batch.x), strict=True)
        shapes = [leaf.shape for leaf in leaves]
        if render == "auto":
            kinds = tuple(map(kind_of, leaves))
        else:
            kinds = (render,) * len(leaves)
        if render == "image":
            for shape in shapes:
                _check_image(shape, name)
        features = _features(inputs, shapes, kinds)
        if feature_names is not None:
            features = _check_feature_names(feature_names, len(features), name)
        return cls(
            name,
            inputs,
            kinds,
            tuple(
                None if kind == "image" and not _is_photo(leaf) else (0.0, 255)
                for kind, leaf in zip(kinds, leaves, strict=True)
            ),
            features[:_MOST_FEATURES],
            max(0, len(features) - _MOST_FEATURES),
        )

    def named(self, columns: Sequence[str] | None) -> View:
        """The view with the columns of a table as names, where they fit."""
        count = len(self.features) + self.num_hidden
        if columns is None or len(columns) != count:
            return self
        names = tuple(columns[:_MOST_FEATURES])
        return dataclasses.replace(self, features=names)

    def with_limits(self, batches: Iterable[Batch]) -> View:
        """The view with black and white of the images in these batches.

        Grey is black at its lowest value and white at its highest; colours are
        black at 0 and white at 1 or 255.

        Raises:
            ValueError: if values are not finite, or colours out of range.
        """
        if None not in self.limits:
            return self
        limits = list(self.limits)
        colours: dict[int, np.dtype] = {}
        for batch in batches:
            for place, images in self._of_kind("image", batch):
                if self.limits[place] is not None:
                    continue
                low, high = images.min().item(), images.max().item()
                self._check_finite(low, high)
                previous = limits[place] or (low, high)
                limits[place] = min(low, previous[0]), max(high, previous[1])
                if not is_grey(images):
                    colours[place] = images.dtype
        for place, dtype in colours.items():
            low, high = limits[place] or (0.0, 0.0)
            limits[place] = 0.0, white_of(dtype, low, high, self.name, _REMEDY)
        return dataclasses.replace(self, limits=tuple(limits))

    def render(self, batch: Batch) -> dict[str, list]:
        """Renders a batch: images as data URIs, texts, and rows of values.

        The list of a kind that no input has is empty.

        Raises:
            ImportError: if there are images and Pillow is not installed.
        """
        images = []
        for place, pixels in self._of_kind("image", batch):
            encode = encoder(*(self.limits[place] or (0.0, 1.0)))
            images.append([encode(image) for image in pixels])
        texts = [
            [self._text(place, value) for value in values]
            for place, values in self._of_kind("text", batch)
        ]
        rows = [
            values.reshape(len(batch), -1)
            for _, values in self._of_kind("row", batch)
        ]
        return {
            "images": [list(group) for group in zip(*images, strict=True)],
            "texts": ["\n\n".join(group) for group in zip(*texts, strict=True)],
            "rows": [_row(values) for values in zip(*rows, strict=True)],
        }

    def _of_kind(
        self, kind: str, batch: Batch
    ) -> Iterator[tuple[int, np.ndarray]]:
        for place, (_, leaf) in enumerate(named_arrays(batch.x)):
            if self.kinds[place] == kind:
                yield place, leaf

    def _text(self, place: int, value: np.ndarray) -> str:
        parts = np.asarray(value).reshape(-1).tolist()
        text = " ".join(as_text(part) for part in parts)
        if len(text) > _MOST_CHARACTERS:
            omitted = len(text) - _MOST_CHARACTERS
            text = f"{text[:_MOST_CHARACTERS]}… ({omitted:,} more characters)"
        is_only = self.kinds.count("text") == 1
        return text if is_only else f"{self.inputs[place]}: {text}"

    def _check_finite(self, low: float, high: float) -> None:
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(
                f"The images in `{self.name}` hold NaN or infinite values. "
                "Pass `render='row'` to see their numbers."
            )


def _is_photo(images: np.ndarray) -> bool:
    """Whether images have colours whose type tells their range."""
    return images.dtype == np.uint8 and not is_grey(images)


def _check_image(shape: tuple[int, ...], name: str) -> None:
    if not is_image(shape):
        raise ValueError(
            "With `render='image'` every input should have the shape [n, "
            "height, width] or [n, height, width, channels] with 1, 3 or 4 "
            f"channels. Received one of `{name}` of shape {shape}. Reshape it: "
            "`train` and `test` need not be what the model is given, only "
            "have the same ids."
        )


def _features(
    inputs: tuple[str, ...],
    shapes: list[tuple[int, ...]],
    kinds: tuple[str, ...],
) -> tuple[str, ...]:
    """Names of the values in a row: name of the input, index, or both."""
    names: list[str] = []
    for name, shape, kind in zip(inputs, shapes, kinds, strict=True):
        if kind == "row":
            count = math.prod(shape[1:])
            is_named = count == 1 and name
            more = [f"{name}[{place}]" for place in range(count)]
            names += [name] if is_named else more
    return tuple(names)


def _check_feature_names(
    feature_names: Any, expected: int, name: str
) -> tuple[str, ...]:
    names = tuple(str(feature) for feature in feature_names)
    if len(names) != expected:
        raise ValueError(
            "`feature_names` should have a name for each value in a row. "
            f"Received: {len(names)} names, while an example of `{name}` has "
            f"{expected} values."
        )
    return names


def _row(values: tuple[np.ndarray, ...]) -> list[Any]:
    """Values as JSON-compatible types; floats have six digits."""
    flat = [value for part in values for value in part.tolist()]
    return [
        float(as_text(value))
        if isinstance(value, float) and math.isfinite(value)
        else as_text(value)
        for value in flat[:_MOST_FEATURES]
    ]
