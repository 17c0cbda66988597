"""An announcement of long work, and a bar while it lasts.

Synopsis:

    progress = Progress(plan, verbose, "TracIn")
    for batch in batches:
        ...
        progress.advance()
"""

from __future__ import annotations

import time
from typing import Protocol

import keras

_PATIENCE = 2.0  # seconds of work from which on it is announced


class Announced(Protocol):
    """Long work, which is described when printed."""

    @property
    def steps(self) -> int | None:
        """Number of steps, None where it is not known."""


class Progress:
    """Announces work that takes longer than two seconds, then shows a bar.

    Args:
        plan: the work to be done.
        verbose: 0 for silence.
        title: the name of the method.
    """

    def __init__(self, plan: Announced, verbose: int, title: str):
        self._plan = plan
        self._verbose = verbose
        self._title = title
        self._done = 0
        self._ended = False
        self._started = self._first = time.monotonic()
        self._bar: keras.utils.Progbar | None = None

    def advance(self, steps: int = 1) -> None:
        """Notes that steps are done, or need not be.

        Args:
            steps: number of steps.
        """
        self._done += steps
        if self._done == steps:  # which included tracing
            self._first = time.monotonic()
        if not self._verbose:
            return
        if self._bar is None and self._is_long():
            print(f"{self._title}: {self._plan}", flush=True)
            self._bar = keras.utils.Progbar(
                self._plan.steps, unit_name="batch", verbose=self._verbose
            )
        expected = self._plan.steps
        self._show(ends=expected is not None and self._done >= expected)

    def finish(self) -> None:
        """Ends the bar of work whose number of steps was an estimate."""
        if self._bar is not None and self._plan.steps is not None:
            self._bar.target = self._done
        self._show(ends=True)

    def _show(self, ends: bool) -> None:
        if self._bar is not None and not self._ended:
            self._ended = ends
            self._bar.update(self._done, finalize=ends)

    def _is_long(self) -> bool:
        """Whether all the work will have taken longer than `_PATIENCE`."""
        now = time.monotonic()
        if now - self._started > _PATIENCE:
            return True
        if self._plan.steps is None or now - self._first < _PATIENCE / 20:
            return False
        per_step = (now - self._first) / max(1, self._done - 1)
        left = per_step * (self._plan.steps - self._done)
        return now - self._started + left > _PATIENCE
