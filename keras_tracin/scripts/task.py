"""A task: the object that builds the model and the data of a program.

The package's docstring lists the attributes of a task, with an example.

Synopsis:
```python
task = load_task("digits_task:Digits")
task.model(), task.train(), task.test(), task.option("class_names")
```
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import re
import sys
from typing import Any

import keras

from keras_tracin.models.errors import brief

_SPEC = re.compile(r"(?P<module>\w+(\.\w+)*)(:(?P<attribute>\w+(\.\w+)*))?")
_NEEDED = ("model", "train")


class TaskError(ValueError):
    """A task that cannot be loaded, or that fails."""


@dataclasses.dataclass(frozen=True)
class Task:
    """The task that `--task` names.

    Attributes:
        spec: name given to `--task`.
        source: the module, or object in one, that has the attributes.
    """

    spec: str
    source: Any

    def model(self) -> keras.Model:
        """The model.

        Raises:
            TaskError: if the task returns something else.
        """
        model = self._get("model")
        if not isinstance(model, keras.Model):
            raise TaskError(
                f"`model()` of the task '{self.spec}' should return a "
                f"`keras.Model`. Received: {type(model).__name__}."
            )
        return model

    def train(self) -> Any:
        """The training data.

        Raises:
            TaskError: if the task fails to build them.
        """
        return self._get("train")

    def test(self) -> Any:
        """The queries.

        Raises:
            TaskError: if the task has none, or fails to build them.
        """
        if not self.has("test"):
            raise TaskError(
                f"The task '{self.spec}' has no queries. Give it a `test()` "
                "that returns them, in the form of its `train()`."
            )
        return self._get("test")

    def shown(self, name: str) -> Any:
        """The examples of `train` or `test` in readable form.

        Raises:
            TaskError: if the task fails to build them.
        """
        return self._get(f"shown_{name}" if self.has(f"shown_{name}") else name)

    def has(self, name: str) -> bool:
        """Whether the task has this attribute."""
        return getattr(self.source, name, None) is not None

    def option(self, name: str) -> Any:
        """An optional attribute of the task, or None."""
        return getattr(self.source, name, None)

    def _get(self, name: str) -> Any:
        value = getattr(self.source, name)
        if isinstance(value, keras.Model) or not callable(value):
            return value
        return _call(value, f"`{name}()` of the task '{self.spec}'")


def load_task(spec: str) -> Task:
    """Loads the task of this name.

    Args:
        spec: "module" or "module:attribute".

    Raises:
        TaskError: if there is no such module or attribute, if importing or
            calling it fails, or if it is not a task.
    """
    parts = _SPEC.fullmatch(spec)
    if parts is None:
        raise TaskError(
            "`--task` should be module:attribute, such as 'digits_task:Digits' "
            "for `Digits` in digits_task.py, or only the module. Received: "
            f"{spec!r}."
        )
    source = _import(parts["module"])
    attribute = parts["attribute"]
    for name in attribute.split(".") if attribute else ():
        if not hasattr(source, name):
            raise TaskError(
                f"There is no task '{spec}': {_name_of(source)} has no "
                f"'{name}'. It has {_public(source)}."
            )
        source = getattr(source, name)
    if isinstance(source, type) or (
        callable(source) and not hasattr(source, "model")
    ):
        source = _call(source, f"`{attribute}()` of the task '{spec}'")
    missing = [n for n in _NEEDED if getattr(source, n, None) is None]
    if missing:
        raise TaskError(
            f"A task has `model()` and `train()`. '{spec}' has no "
            f"`{missing[0]}`; it has {_public(source)}."
        )
    return Task(spec, source)


def _import(name: str) -> Any:
    here = os.getcwd()
    if here not in sys.path:  # a console script has its own directory there
        sys.path.insert(0, here)
    what = f"Importing the task's module '{name}'"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        absent = error.name or ""
        if name == absent or name.startswith(f"{absent}."):
            raise TaskError(
                f"There is no module '{absent}' for `--task`. Searched: "
                f"{here}, then Python's path (PYTHONPATH)."
            ) from error
        raise _failure(what, error) from error
    except Exception as error:
        raise _failure(what, error) from error


def _call(function: Any, what: str) -> Any:
    try:
        return function()
    except Exception as error:
        raise _failure(what, error) from error


def _failure(what: str, error: Exception) -> TaskError:
    said = brief(error)
    return TaskError(
        f"{what} failed with {type(error).__name__}{': ' if said else ''}"
        f"{said} (--debug shows where)"
    )


def _name_of(source: Any) -> str:
    name = getattr(source, "__name__", type(source).__name__)
    return f"'{name}'"


def _public(source: Any) -> str:
    names = [name for name in vars(source) if not name.startswith("_")]
    names += [n for n in vars(type(source)) if not n.startswith("_")]
    return ", ".join(sorted(set(names))) or "nothing"
