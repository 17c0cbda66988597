"""Exclusive use of models: calls of several threads take turns.

While a model is scored it holds other weights, and while it is traced its
layers are watched. Other threads would see both. There is one lock for all
models, since models share layers, losses read weights of other models, and
TensorFlow spreads a single call over all cores anyway.

Synopsis:

    @exclusive_access
    def influence(self, test): ...   # calls of other threads wait

    with exclusive_access:
        ...
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any

_PATIENCE = 60.0  # seconds between announcements of waiting


class _ExclusiveAccess(contextlib.ContextDecorator):
    """A reentrant lock of all models, as a decorator and a context manager."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        # A timeout, since a wait without one could not be ended by Ctrl-C.
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
        """Releases a lock whose thread does not exist any more."""
        if self._lock.acquire(blocking=False):
            self._lock.release()  # it was free, or this thread's own
        else:
            self._lock = threading.RLock()


exclusive_access = _ExclusiveAccess()

# A process that was forked has none of its parent's other threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=exclusive_access.renew)
