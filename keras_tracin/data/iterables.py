"""Examples that generators and loaders give, read anew each time.

Synopsis:

    def batches():
        for path in paths:
            yield load(path)            # (x, y)

    kt.TracIn(model, batches, "runs/digits")    # not `batches()`
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from keras_tracin.data.streams import StreamedExamples

_ENDLESS = 2**40  # batches; Grain repeats as often as integers can say
_TAKE_OUT = "Take out what is random there (augmentation, shuffling)"


class IteratedExamples(StreamedExamples):
    """The examples of batches that can be iterated over again and again.

    Args:
        begin: returns the batches from the first one on.
        described: what gives the batches, for errors.
        remedy: what to do where they change from one reading to the next.
        name: name of the data, for errors.
        labels: whether labels are required.
        num_batches: number of batches, None where it is not known.

    Raises:
        ValueError: as `StreamedExamples`.
    """

    def __init__(
        self,
        begin: Callable[[], Iterable[Any]],
        described: str,
        remedy: str,
        name: str,
        labels: bool = True,
        num_batches: int | None = None,
    ):
        self._begin = begin
        super().__init__(name, labels, described, remedy, num_batches)

    def _elements(self) -> Iterator[Any]:
        return iter(self._begin())


def open_iterable(
    data: Any, name: str, labels: bool = True
) -> IteratedExamples | None:
    """The examples of a generator's function or of a loader.

    Args:
        data: a function without arguments that returns an iterator over
            batches, a `torch.utils.data.DataLoader`, or a dataset of Grain.
        name: name of the data, for errors.
        labels: whether labels are required.

    Returns:
        The examples; None if the data is nothing of the kind.

    Raises:
        TypeError: if it is a generator, which can be read only once, or a
            function that takes arguments or returns no iterator.
        ValueError: if it shuffles, never ends, or as `StreamedExamples`.
    """
    if isinstance(data, types.GeneratorType):
        raise TypeError(
            f"`{name}` is read several times, but a generator can be read only "
            f"once. Received the generator `{data.__name__}`: pass the "
            f"function that makes it, `{data.__name__}` or `lambda: "
            f"{data.__name__}(...)`."
        )
    if _is_loader(data):
        return _open_loader(data, name, labels)
    if _is_of_grain(data):
        return _open_grain(data, name, labels)
    if _is_function(data):
        return _open_function(data, name, labels)
    return None


def is_iterable(data: Any) -> bool:
    """Whether data is a generator, makes one, or is a loader."""
    return (
        isinstance(data, types.GeneratorType)
        or _is_loader(data)
        or _is_of_grain(data)
        or _is_function(data)
    )


def _is_loader(data: Any) -> bool:
    return _is_a(data, "torch.utils.data", "DataLoader")


def _is_of_grain(data: Any) -> bool:
    kinds = "MapDataset", "IterDataset", "DataLoader"
    return any(_is_a(data, "grain.", kind) for kind in kinds)


def _is_function(data: Any) -> bool:
    return callable(data) and not hasattr(data, "__array__")


def _open_function(data: Any, name: str, labels: bool) -> IteratedExamples:
    described = f"`{getattr(data, '__name__', type(data).__name__)}`"
    expected = f"`{name}` should be a function without arguments"
    try:
        inspect.signature(data).bind()
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{expected}, such as `lambda: batches(...)`. Received {described}."
        ) from error
    batches = data()
    if not isinstance(batches, Iterable) or isinstance(batches, tuple | dict):
        raise TypeError(
            f"{expected} that returns an iterator over batches (x, y). "
            f"Received {described}, which returns a {type(batches).__name__}."
        )
    remedy = f"{_TAKE_OUT}, or seed it anew in each call."
    return IteratedExamples(data, described, remedy, name, labels)


def _open_grain(data: Any, name: str, labels: bool) -> IteratedExamples:
    described = f"a `{type(data).__name__}` of Grain"
    if hasattr(data, "class_names"):
        raise ValueError(
            f"`{name}` is a folder in the format of Grain, whose order does "
            "not tell which example is which file. Read the same folder in the "
            "format of TensorFlow, `format='tf'`, for attribution: there the "
            "names of files are ids."
        )
    count = len(data) if hasattr(data, "__len__") else None
    if count is not None and count > _ENDLESS:
        raise ValueError(
            f"`{name}` never ends: it is {described} that repeats. Leave out "
            "`.repeat()`, or give it a number of epochs."
        )
    return IteratedExamples(
        lambda: data,
        described,
        f"{_TAKE_OUT}, or give it a seed.",
        name,
        labels,
        count,
    )


def _open_loader(data: Any, name: str, labels: bool) -> IteratedExamples:
    remedy = (
        "Pass a loader that reads the same dataset in order: "
        "`DataLoader(loader.dataset, batch_size=..., shuffle=False)`."
    )
    if "Random" in type(getattr(data, "sampler", None)).__name__:
        raise ValueError(
            f"`{name}`, a `DataLoader` that shuffles, gives other batches each "
            "time it is read, so its examples cannot be told apart by "
            f"position. {remedy}"
        )
    sized = hasattr(data.dataset, "__len__")
    return IteratedExamples(
        lambda: data,
        "a `DataLoader`",
        remedy,
        name,
        labels,
        len(data) if sized else None,
    )


def _is_a(data: Any, package: str, kind: str) -> bool:
    """Whether data is of a class of a package, which is not imported here."""
    return any(
        parent.__name__ == kind and parent.__module__.startswith(package)
        for parent in type(data).__mro__
    )
