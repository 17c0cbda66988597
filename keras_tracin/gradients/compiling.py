"""Compiles steps, with XLA or without.

XLA needs to know all shapes when it compiles. So a step is compiled once for
each batch size, and must have no operations whose results vary in size.

Synopsis:

    if should_compile("auto"):
        step = compile_step(step, signature, jit_compile=True)
    if shapes_are_static():             # called while tracing
        ...
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

_NOT_COMPILED = re.compile(r"(\w+) \(No registered '\w+' OpKernel for XLA")
_STATIC = contextvars.ContextVar("keras_tracin_static_shapes", default=False)


def should_compile(jit_compile: bool | str) -> bool:
    """Whether XLA should compile steps.

    Args:
        jit_compile: True, False, or "auto": true if there is a device other
            than a CPU, as Keras decides for `fit`.

    Raises:
        ValueError: if it is anything else.
    """
    if jit_compile == "auto":
        devices = tf.config.list_logical_devices()
        return any(device.device_type != "CPU" for device in devices)
    if isinstance(jit_compile, bool):
        return jit_compile
    raise ValueError(
        "`jit_compile` should be True, False or 'auto'. Received: "
        f"{jit_compile!r}."
    )


def compile_step(step: Callable, signature: Any, jit_compile: bool = False):
    """Compiles a step to a `tf.function` with one trace.

    Args:
        step: a function of tensors.
        signature: types of its arguments; open batch sizes stay open in the
            trace.
        jit_compile: If true, XLA compiles it.
    """
    traced = step
    if jit_compile:

        def traced(*arguments):
            with _static_shapes():
                return step(*arguments)

    function = tf.function(
        traced,
        autograph=False,
        input_signature=signature,
        jit_compile=jit_compile or None,
    )
    return CompiledStep(function, _name_of(step))


class CompiledStep:
    """A `tf.function` with one trace.

    It is traced under `tf.config.run_functions_eagerly(True)` as well, since
    only a trace identifies the axis of examples. Its trace is called, and not
    the function, as TensorFlow warns of functions of the same name that are
    traced when they are called, such as those of several methods.

    Args:
        function: the function.
        name: name of the step in errors.
    """

    def __init__(self, function: Any, name: str):
        self._function, self._name = function, name

    def __call__(self, *arguments: Any) -> Any:
        try:
            return self._concrete(*arguments)
        except tf.errors.OpError as error:
            operations = sorted(set(_NOT_COMPILED.findall(str(error))))
            if not operations:
                raise
            raise ValueError(
                f"XLA cannot compile the step '{self._name}': it has no "
                f"implementation of the operations {operations} on this "
                "device, which the model or its loss uses. Received "
                "`jit_compile=True` (or 'auto', with an accelerator); pass "
                "`jit_compile=False`."
            ) from error

    def experimental_get_tracing_count(self) -> int:
        """Number of traces, as counted by `tf.function`."""
        return self._function.experimental_get_tracing_count()

    def get_concrete_function(self) -> Any:
        """The concrete function of the trace."""
        return self._concrete

    @functools.cached_property
    def _concrete(self) -> Any:
        return self._function.get_concrete_function()


def _name_of(step: Callable) -> str:
    return getattr(step, "__qualname__", repr(step)).replace(".<locals>", "")


def shapes_are_static() -> bool:
    """Whether the present trace is for XLA."""
    return _STATIC.get()


@contextlib.contextmanager
def _static_shapes() -> Iterator[None]:
    token = _STATIC.set(True)
    try:
        yield
    finally:
        _STATIC.reset(token)
