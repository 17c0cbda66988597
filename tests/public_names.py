"""What users import: the modules, and the classes, functions and methods.

Synopsis:

    PUBLIC["TracIn.influence"]    # the function
    [module.__name__ for module in MODULES]
"""

import inspect
import types

import keras_tracin

MODULES = [
    getattr(keras_tracin, name)
    for name in keras_tracin.__all__
    if isinstance(getattr(keras_tracin, name), types.ModuleType)
]


def _public_objects():
    """Classes, functions and public methods by name, of this package."""
    found = {}
    for module in (keras_tracin, *MODULES):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                found[name] = value
                found.update(_methods_of(value))
    return found


def _methods_of(value):
    """The public methods that a class of this package writes itself."""
    found = {}
    if inspect.isclass(value):
        for name, member in vars(value).items():
            function = getattr(member, "__func__", member)
            if inspect.isfunction(function) and not name.startswith("_"):
                found[f"{value.__name__}.{name}"] = function
    return found


PUBLIC = _public_objects()
