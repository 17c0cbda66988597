"""Dataclasses that `tf.function` takes and returns.

Synopsis:

    @dataclasses.dataclass(frozen=True)
    class Pair(Nest):
        left: tf.Tensor
        name: str

        static = ("name",)
"""

from __future__ import annotations

import dataclasses
from typing import Any


class Nest:
    """Lets `tf.nest` and `tf.function` look inside a dataclass.

    Fields named in `static` are metadata, all others tensors.
    """

    static: tuple[str, ...] = ()

    def __tf_flatten__(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        names = [f.name for f in dataclasses.fields(self)]  # type: ignore[arg-type]
        metadata = tuple(getattr(self, name) for name in self.static)
        tensors = tuple(
            getattr(self, name) for name in names if name not in self.static
        )
        return metadata, tensors

    @classmethod
    def __tf_unflatten__(cls, metadata, tensors):
        names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        fields = dict(zip(cls.static, metadata, strict=True))
        moving = [name for name in names if name not in cls.static]
        fields.update(zip(moving, tensors, strict=True))
        return cls(**fields)
