"""One call at a time: while a model is scored, it holds other weights.

A model has one set of weights, and for the length of a trace its layers are
watched. Both are seen by all threads, so that calls of several threads take
turns: one lock for all models, since models share layers, losses read weights
of other models, and TensorFlow spreads a single call over all cores as it is.

Synopsis:

    @exclusively
    def influence(self, test): ...   # calls of other threads wait

    with exclusively:
        ...
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

_PATIENCE = 60.0  # seconds after which waiting is announced, again and again


class _Exclusively(contextlib.ContextDecorator):
    """A lock that its own thread may take again, as decorator or context."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        # Ctrl-C ends the waiting: a lock that is not there yet is not held.
        while not self._lock.acquire(timeout=_PATIENCE):
            print(
                "Waiting for another thread of this process, whose call of "
                "keras_tracin has a model. A model has one set of weights, so "
                "calls take turns.",
                flush=True,
            )

    def __exit__(self, *_: Any) -> None:
        self._lock.release()

    def renew(self) -> None:
        """Lets go of a lock whose thread is not there any more."""
        if self._lock.acquire(blocking=False):
            self._lock.release()  # it was free, or is this thread's own
        else:
            self._lock = threading.RLock()


exclusively = _Exclusively()

# A process that was forked has none of its parent's other threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=exclusively.renew)
