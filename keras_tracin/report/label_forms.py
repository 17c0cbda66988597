"""How the page puts labels in words, and what such words are as labels.

Synopsis:

    form = label_forms(np.eye(3)[[2, 0]], class_names=None)[0]
    form.words()                             # ["2", "0"]
    form.labels(["1"])                       # [[0, 1, 0]]
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.data.kinds import as_text
from keras_tracin.data.labels import label_values, row_texts
from keras_tracin.report.examples import NO_LABEL
from keras_tracin.report.suspects import NONE_HOLDS, label_sets


class Form:
    """How the page puts labels in words, and back.

    Args:
        y: labels of the decided examples, of which each has one value.
    """

    def __init__(self, y: Any):
        self.y = y

    def words(self) -> list[str]:
        """The labels in words, `[k]`."""
        return [as_text(value) for value in label_values(self.y).tolist()]

    def labels(self, words: Sequence[str]) -> np.ndarray:
        """Labels `[m, ...]` of the words, as the data has them.

        Raises:
            ValueError: if a word is none.
        """
        leaves = [np.asarray(leaf) for leaf in tf.nest.flatten(self.y)]
        first = leaves[0]
        is_one = len(leaves) == 1 and first[:1].size == 1
        if not is_one or self.words()[0] == NO_LABEL:
            raise ValueError(
                "A new label should be a class, a set of classes, a number or "
                f"a word. Received: {words[0]!r}, where an example of `data` "
                f"has {self.words()[0]!r}. Leave these rows out of the file."
            )
        shape = (len(words), *first.shape[1:])
        if first.dtype.kind == "U":
            return np.array(words).reshape(shape)
        if first.dtype.kind in "SO":
            is_bytes = isinstance(first.reshape(-1)[0], bytes)
            values = [word.encode() if is_bytes else word for word in words]
            return np.array(values, "S" if is_bytes else object).reshape(shape)
        return np.array([_typed_number(w, first.dtype) for w in words]).reshape(
            shape
        )


class _Rows(Form):
    """Labels of several values, also where one alone is not zero."""

    def words(self) -> list[str]:
        return row_texts(self.y).tolist()


class _Classes(Form):
    """Labels `[k, classes]` of which one holds, or that are probabilities."""

    def words(self) -> list[str]:
        return [str(value) for value in self.y.argmax(axis=1).tolist()]

    def labels(self, words: Sequence[str]) -> np.ndarray:
        count = self.y.shape[1]
        for word in words:
            if not (word.isdecimal() and int(word) < count):
                raise _not_a_label(word, f"a class from 0 to {count - 1}")
        return np.eye(count, dtype=self.y.dtype)[[int(w) for w in words]]


class _Binary(Form):
    """Labels `[k]` that are the probability of the second of two classes."""

    def words(self) -> list[str]:
        return [str(int(value > 0.5)) for value in np.ravel(self.y).tolist()]

    def labels(self, words: Sequence[str]) -> np.ndarray:
        for word in words:
            if word not in ("0", "1"):
                raise _not_a_label(word, "the class 0 or 1")
        leaf = np.asarray(tf.nest.flatten(self.y)[0])
        values = np.array([int(word) for word in words], leaf.dtype)
        return values.reshape(len(words), *leaf.shape[1:])


class _Sets(Form):
    """Labels `[k, labels]` of which several may hold.

    Args:
        y: the labels.
        names: their names.
    """

    def __init__(self, y: np.ndarray, names: Sequence[str]):
        super().__init__(y)
        self.names = names

    def words(self) -> list[str]:
        return label_sets(self.y, self.names).tolist()

    def labels(self, words: Sequence[str]) -> np.ndarray:
        places = {name: place for place, name in enumerate(self.names)}
        several = [name for name in self.names if "," in name]
        if len(places) < len(self.names) or any(
            {part.strip() for part in name.split(",")} <= {*places}
            for name in several
        ):
            raise ValueError(
                "`class_names` should tell labels apart. Received: "
                f"{list(self.names[:10])}, where one is another or several "
                "others. Write the page with distinct names, without commas."
            )
        values = np.zeros((len(words), len(self.names)), self.y.dtype)
        for row, word in enumerate(words):
            held = [] if word == NONE_HOLDS else word.split(",")
            for name in held:
                if name.strip() not in places:
                    known = ", ".join(self.names[:10])
                    raise _not_a_label(
                        word, f"some of {known}, or {NONE_HOLDS}"
                    )
                values[row, places[name.strip()]] = 1
        return values


def label_forms(y: Any, class_names: Any) -> list[Form]:
    """The forms that these labels may have, the likeliest first."""
    leaves = [np.asarray(leaf) for leaf in tf.nest.flatten(y)]
    leaf = leaves[0]
    is_one = len(leaves) == 1 and leaf[:1].size == 1
    if is_one and leaf.dtype.kind == "f" and _are_shares(leaf):
        return [Form(y), _Binary(leaf)]
    is_row = leaf.ndim == 2 and leaf.shape[1] > 1
    if len(leaves) > 1 or not is_row or leaf.dtype.kind not in "biuf":
        return [Form(y)]
    forms: list[Form] = []
    values = leaf.astype(np.float64)
    if (values >= 0).all() and np.allclose(values.sum(axis=1), 1, atol=1e-3):
        forms.append(_Classes(leaf))
    if ((values == 0) | (values == 1)).all():
        count = leaf.shape[1]
        names = list(range(count) if class_names is None else class_names)
        if len(names) == count:
            forms.append(_Sets(leaf, [str(name) for name in names]))
    return [*forms, _Rows(y)]


def _are_shares(values: np.ndarray) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())


def _typed_number(word: str, dtype: np.dtype) -> Any:
    """A number of this type; a whole one exactly.

    Raises:
        ValueError: if the word is none.
    """
    number = _number(word)
    typed = None
    with contextlib.suppress(OverflowError), np.errstate(over="ignore"):
        typed = np.asarray(number).astype(dtype)[()]
    if dtype.kind in "biu":
        is_near = typed is not None and typed.item() == number
    else:
        is_near = typed is not None and bool(
            np.isclose(float(typed), number, rtol=1e-2)
        )
    if typed is None or not is_near:
        raise _not_a_label(word, f"a number of type {dtype}")
    return typed


def _number(word: str) -> float:
    """A whole number, or a finite one."""
    with contextlib.suppress(ValueError):
        return int(word)
    with contextlib.suppress(ValueError):
        if math.isfinite(float(word)):
            return float(word)
    raise _not_a_label(word, "a number")


def _not_a_label(word: str, expected: str) -> ValueError:
    return ValueError(
        f"A new label should be {expected}, as the labels of `data` are. "
        f"Received: {word!r}. Correct it in the file."
    )
