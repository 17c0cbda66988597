"""The state of one call of a method, which ends with it.

Synopsis:

    call = Call(parts=parts, verbose=1)
    size = call.agree("block", 64)      # of all processes that share the parts
    call.warn("weights", "They exceed the limit.")     # once in a call
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from keras_tracin.engine.chunks import Chunk
from keras_tracin.engine.parts import Parts
from keras_tracin.engine.planning import Plan


@dataclasses.dataclass
class Call:
    """The state of one call.

    Attributes:
        parts: finished parts on disk, if the call keeps any.
        verbose: 0 for silence.
        options: keywords of the call that its method knows.
        chunk: the training examples to score, where they are not all of them.
        warned: kinds of warnings that were given.
    """

    parts: Parts | None = None
    verbose: int = 1
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    chunk: Chunk | None = None
    warned: set[str] = dataclasses.field(default_factory=set)

    def agree(self, name: str, value: Any) -> Any:
        """The value of all calls and processes that share the parts.

        Args:
            name: the value's name.
            value: this call's own, which counts where it is the first.
        """
        return value if self.parts is None else self.parts.agree(name, value)

    def cut(self, plan: Plan) -> Plan:
        """The plan with the batches and chunks of all that share the parts."""
        return plan if self.parts is None else self.parts.cut(plan)

    def warn(self, kind: str, message: str) -> None:
        """Gives a warning, unless the call has given one of this kind."""
        if kind not in self.warned:
            self.warned.add(kind)
            warnings.warn(message, stacklevel=3)
