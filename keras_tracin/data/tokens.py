"""The tokens of examples: which inputs hold them, and which are asked about.

Synopsis:

    (name, ids), *_ = token_inputs(batch.x)      # [n, t], whole numbers
    predicts = predicts_next(ids, batch.y, batch.sample_weight)
    text = read_tokens(batch, name, predicts)
    text.ids, text.is_there, text.is_asked       # [n, t] or [n, t + 1]
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np

from keras_tracin.data.batches import Batch
from keras_tracin.data.kinds import named_arrays

# In the names of inputs that say something of the tokens of another one.
COMPANIONS = ("mask", "segment", "position", "type")


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The tokens of some examples.

    Attributes:
        ids: ids of tokens, `[n, t]`, and one more where labels are the next
            tokens, whose last one is no input.
        is_there: whether a token is no padding, as far as masks tell.
        is_asked: whether its loss counts; None without weights by position.
    """

    ids: np.ndarray
    is_there: np.ndarray
    is_asked: np.ndarray | None


def is_companion(name: str) -> bool:
    """Whether an input says something of the tokens of another one."""
    return any(word in name for word in COMPANIONS)


def token_inputs(x: Any) -> list[tuple[str, np.ndarray]]:
    """The inputs that are ids of tokens, `[n, t]`, with their names.

    Args:
        x: the inputs of some examples.
    """
    return [
        (name, array)
        for name, array in named_arrays(x)
        if array.ndim == 2
        and array.dtype.kind in "iu"
        and not is_companion(name)
    ]


def padding_mask(x: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Which tokens of an input are no padding, by the mask beside it.

    Of several masks of its shape it is the one whose name has the longest
    beginning in common. Without a mask all are true.

    Args:
        x: the inputs of some examples.
        name: name of the input of tokens.
        shape: its shape.
    """
    masks = {
        other: array
        for other, array in named_arrays(x)
        if "mask" in other and "position" not in other
        if array.shape == shape and array.dtype.kind in "biu"
    }
    if not masks:
        return np.ones(shape, bool)
    return masks[max(masks, key=lambda other: _alike(other, name))] != 0


def predicts_next(ids: np.ndarray, y: Any, sample_weight: Any) -> bool:
    """Whether labels are the tokens that follow, as of a language model.

    Args:
        ids: ids of tokens, `[n, t]`.
        y: the labels.
        sample_weight: the weights; labels of weight zero may be anything.
    """
    if not hasattr(y, "shape") or tuple(y.shape) != ids.shape:
        return False
    labels = np.asarray(y)
    if labels.dtype.kind not in "iu":
        return False
    counts = _by_position(sample_weight, ids.shape)
    counts = np.ones(ids.shape, bool) if counts is None else counts
    alike = labels[:, :-1] == ids[:, 1:]
    return bool(alike[counts[:, :-1]].all())


def read_tokens(batch: Batch, name: str, has_next: bool) -> Tokens:
    """The tokens of a batch, in one input.

    Args:
        batch: some examples.
        name: name of the input.
        has_next: whether labels are the next tokens.
    """
    ids = dict(named_arrays(batch.x))[name]
    there = padding_mask(batch.x, name, ids.shape)
    asked = _by_position(batch.sample_weight, ids.shape)
    if not has_next or np.shape(batch.y) != ids.shape:
        return Tokens(ids, there, asked)
    # The first token is predicted by none, the last one is a label alone.
    labels = np.asarray(batch.y)
    first, last = np.zeros((len(ids), 1), bool), there[:, -1:]
    if asked is not None:
        # Where a label counts, it is that token which is asked about.
        counts = np.hstack([first, asked[:, :-1]])
        shifted = np.hstack([labels[:, :1], labels[:, :-1]])
        ids = np.where(counts, shifted, ids)
        last = last & asked[:, -1:]
        asked = np.hstack([first, asked])
    whole = np.hstack([ids, labels[:, -1:]])
    return Tokens(whole, np.hstack([there, last]), asked)


def _by_position(
    sample_weight: Any, shape: tuple[int, ...]
) -> np.ndarray | None:
    """Where weights `[n, t]` are not zero; None for other weights."""
    if sample_weight is None or not hasattr(sample_weight, "shape"):
        return None
    if tuple(sample_weight.shape) != shape:
        return None
    return np.asarray(sample_weight) != 0


def _alike(name: str, other: str) -> int:
    """How many letters two names have in common at their beginnings."""
    alike = (a == b for a, b in zip(name, other, strict=False))
    return sum(itertools.takewhile(bool, alike))
