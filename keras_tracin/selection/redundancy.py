"""Greedy selection that counts near-duplicates once, and keeps to quotas.

Synopsis:

    picked = pick(order, budget, rows=sketches.__getitem__, max_cosine=0.9)
    picked.chosen                            # positions, in that order
    picked.left_out, picked.near_to          # near-duplicates, and of which
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

Rows = Callable[[np.ndarray], np.ndarray]

_BLOCK = 512  # candidates compared at a time
_PANEL = 4096  # chosen rows they are compared with at a time


@dataclasses.dataclass(frozen=True)
class Picked:
    """What a greedy selection took, and what it left out.

    Attributes:
        chosen: positions `[k]`, the most wanted first.
        left_out: positions `[r]` of those that were passed over as
            near-duplicates of a chosen one.
        near_to: positions `[r]` of the chosen ones that they are too near to.
    """

    chosen: np.ndarray
    left_out: np.ndarray
    near_to: np.ndarray


def pick(
    order: np.ndarray,
    budget: int,
    *,
    rows: Rows | None = None,
    max_cosine: float = 1.0,
    classes: np.ndarray | None = None,
    limits: np.ndarray | None = None,
) -> Picked:
    """Takes the most wanted that are not too near to one taken before.

    Memory holds the rows that were taken, and blocks of others.

    Args:
        order: positions `[n]`, the most wanted first.
        budget: how many to take; fewer where no more are left.
        rows: `(positions [b]) -> [b, d]`, their sketches; None to compare
            nothing.
        max_cosine: cosine above which two are near-duplicates.
        classes: class numbers by position, `[n]`.
        limits: how many of each class to take.
    """
    if classes is None or limits is None:
        classes, limits = np.zeros(len(order), np.int64), np.array([budget])
    left = limits.copy()
    taken = _Taken(budget)
    left_out: list[int] = []
    near_to: list[int] = []
    for start in range(0, len(order), _BLOCK):
        block = order[start : start + _BLOCK]
        block = block[left[classes[block]] > 0]
        near = np.full(len(block), -1)  # the position of one that was taken
        units = None
        if rows is not None and len(block):
            units = _unit_rows(rows, block)
            near = taken.near(units, max_cosine)
        for i, position in enumerate(block.tolist()):
            if taken.count == budget or not left[classes[position]]:
                continue
            if near[i] >= 0:
                left_out.append(position)
                near_to.append(int(near[i]))
                continue
            unit = None if units is None else units[i]
            taken.add(position, unit)
            left[classes[position]] -= 1
            if units is not None:  # later ones of the block, near to this one
                is_near = (units[i + 1 :] @ units[i] > max_cosine) & (
                    near[i + 1 :] < 0
                )
                near[i + 1 :][is_near] = position
    return Picked(
        taken.positions,
        np.array(left_out, np.int64),
        np.array(near_to, np.int64),
    )


class _Taken:
    """The examples that were taken, with unit rows."""

    def __init__(self, budget: int):
        self._positions = np.empty(budget, np.int64)
        self._units: np.ndarray | None = None
        self.count = 0

    @property
    def positions(self) -> np.ndarray:
        return self._positions[: self.count]

    def add(self, position: int, unit: np.ndarray | None = None) -> None:
        self._positions[self.count] = position
        if unit is not None:
            if self._units is None:
                size = min(_BLOCK, len(self._positions))
                self._units = np.empty([size, len(unit)], np.float32)
            elif self.count == len(self._units):
                size = min(2 * self.count, len(self._positions))
                grown = np.empty([size, len(unit)], np.float32)
                grown[: self.count] = self._units
                self._units = grown
            self._units[self.count] = unit
        self.count += 1

    def near(self, units: np.ndarray, max_cosine: float) -> np.ndarray:
        """The position of the nearest taken one, `[b]`, or -1 if none is near.

        Args:
            units: unit rows `[b, d]`.
            max_cosine: cosine above which two are near.
        """
        best = np.full(len(units), max_cosine, np.float32)
        at = np.full(len(units), -1)
        for start in range(0, self.count, _PANEL):
            assert self._units is not None
            panel = self._units[start : min(start + _PANEL, self.count)]
            cosines = units @ panel.T
            column = cosines.argmax(axis=1)
            value = cosines[np.arange(len(units)), column]
            better = value > best
            best[better] = value[better]
            at[better] = self._positions[start + column[better]]
        return at


def _unit_rows(rows: Rows, positions: np.ndarray) -> np.ndarray:
    """Rows of length 1, `[b, d]`; rows of zeros stay, near to nothing."""
    values = np.asarray(rows(positions), np.float64)
    if not np.isfinite(values).all():
        raise ValueError(
            "`redundancy` should hold finite numbers. Received NaN or infinite "
            "ones in the rows of some examples. Leave these out, or sketch "
            "them anew."
        )
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return (values / np.where(lengths > 0, lengths, 1)).astype(np.float32)
