"""Whether a step is compiled by XLA, and what its trace then may not do.

XLA wants to know all shapes when it compiles, so that a step is compiled once
for each size of batch, and has no operations whose results differ in size.

Synopsis:

    if wanted("auto"):
        step = compiled(step)           # traced for XLA
    if shapes_are_static():             # asked inside the trace
        ...
"""

from __future__ import annotations

import contextlib
import contextvars
import re
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

_NOT_COMPILED = re.compile(r"(\w+) \(No registered '\w+' OpKernel for XLA")
_STATIC = contextvars.ContextVar("keras_tracin_static_shapes", default=False)


def wanted(jit_compile: bool | str) -> bool:
    """Whether XLA compiles the steps.

    Args:
        jit_compile: True, False, or "auto": where there is a device other
            than a CPU, as Keras decides for `fit`.

    Raises:
        ValueError: for anything else.
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


def compiled(step: Callable, jit_compile: bool, signature: Any):
    """The step as a `tf.function` with one trace.

    Args:
        step: a function of tensors.
        jit_compile: whether XLA compiles it.
        signature: the types of its arguments; open sizes of the batch stay
            open in the trace.
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

    It is traced under `tf.config.run_functions_eagerly(True)` too: only a
    trace tells the examples' axis from others.

    Args:
        function: the function.
        name: what errors call it.
    """

    def __init__(self, function: Any, name: str):
        self._function, self._name = function, name

    def __call__(self, *arguments: Any) -> Any:
        call = self._function
        if tf.config.functions_run_eagerly():
            call = call.get_concrete_function()
        try:
            return call(*arguments)
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
        """How often it was traced, as `tf.function` counts."""
        return self._function.experimental_get_tracing_count()

    def get_concrete_function(self) -> Any:
        """The trace."""
        return self._function.get_concrete_function()


def _name_of(step: Callable) -> str:
    return getattr(step, "__qualname__", repr(step)).replace(".<locals>", "")


def shapes_are_static() -> bool:
    """Whether the trace being made is for XLA."""
    return _STATIC.get()


@contextlib.contextmanager
def _static_shapes() -> Iterator[None]:
    token = _STATIC.set(True)
    try:
        yield
    finally:
        _STATIC.reset(token)
