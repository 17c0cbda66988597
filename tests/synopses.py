"""The synopses at the top of modules, and which names each is given.

Synopsis:

    code = read_synopses()["keras_tracin.methods.tracin"]
    given_names(code)      # ["kt", "model", "train", "test"]
    as_function("keras_tracin.methods.tracin", code)      # for a type checker
"""

import ast
import builtins
import dis
import textwrap
import types

from tests import source_tree

MODULES = source_tree.modules()
STANDARD = {
    "dataclasses": "import dataclasses",
    "keras": "import keras",
    "kt": "import keras_tracin as kt",
    "np": "import numpy as np",
    "plots": "from keras_tracin import plots",
    "tf": "import tensorflow as tf",
}
# Names that mean the same in every synopsis; others may be anything.
TYPES = {
    "engine": ("keras_tracin.engine.engine", "Engine"),
    "examples": ("keras_tracin.data.batches", "Examples"),
    "run": ("keras_tracin.runs", "TrainingRun"),
    "tracin": ("keras_tracin.methods.tracin", "TracIn"),
}


def read_synopses() -> dict[str, str]:
    """The code under "Synopsis:" of each module's docstring that has one."""
    synopses = {}
    for module, path in MODULES.items():
        if module.split(".")[0] == "keras_tracin":
            code = _code(ast.get_docstring(source_tree.parse(path)) or "")
            if code:
                synopses[module] = code
    return synopses


def given_names(code: str) -> list[str]:
    """Names that the code reads before it assigns them, builtins aside."""
    compiled = compile(code, "synopsis", "exec")
    stored: set[str] = set()
    read: list[str] = []
    for instruction in dis.get_instructions(compiled):
        if instruction.opname == "STORE_NAME":
            stored.add(instruction.argval)
        elif instruction.opname == "LOAD_NAME":
            read += {instruction.argval} - stored
    read += sorted(_globals_inside(compiled) - stored)
    return [n for n in dict.fromkeys(read) if not hasattr(builtins, n)]


def as_function(module: str, code: str) -> str:
    """The source of a module with a function that does what the code does.

    Names are imported from the synopsis's module, a function that is called
    from elsewhere in its room, and a class from elsewhere in the package, where
    just one module defines it. All others are parameters.
    """
    own = _definitions(module, with_imports=True)
    lines = ["from typing import Any"]
    parameters = []
    for name in given_names(code):
        home = module if name in own else _home(name, module, code)
        if name in STANDARD:
            lines.append(STANDARD[name])
        elif name in TYPES:
            lines.append("from {} import {}".format(*TYPES[name]))
            parameters.append(f"{name}: {TYPES[name][1]}")
        elif home is not None:
            lines.append(f"from {home} import {name}")
        else:
            parameters.append(f"{name}: Any")
    body = textwrap.indent(code, "    ")
    head = f"def synopsis({', '.join(parameters)}):"
    return "\n".join([*lines, "", head, body, ""])


def _home(name: str, module: str, code: str) -> str | None:
    """The one module where a name that the code uses may be from."""
    room = ".".join(module.split(".")[:2])
    homes = _HOMES.get(name, [])
    if name[0].islower():
        called = {
            node.func.id
            for node in ast.walk(ast.parse(code))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        in_room = [home for home in homes if f"{home}.".startswith(f"{room}.")]
        homes = in_room if name in called else []
    return homes[0] if len(homes) == 1 else None


def _code(docstring: str) -> str:
    _, _, after = docstring.partition("Synopsis:\n")
    after = after.lstrip("\n")
    if after.startswith("```python\n"):
        return after.removeprefix("```python\n").partition("```")[0]
    indented = []
    for line in after.splitlines():
        if line and not line.startswith("    "):
            break
        indented.append(line)
    return textwrap.dedent("\n".join(indented)).strip()


def _globals_inside(code: types.CodeType) -> set[str]:
    """Names that functions and classes within the code take from outside."""
    names: set[str] = set()
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            local: set[str] = set()
            for instruction in dis.get_instructions(inner):
                if instruction.opname == "STORE_NAME":
                    local.add(instruction.argval)
                elif instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                    names |= {instruction.argval} - local
            names |= _globals_inside(inner)
    return {n for n in names if not n.startswith("__")}


def _definitions(module: str, with_imports: bool = False) -> set[str]:
    names: set[str] = set()
    for node in source_tree.parse(MODULES[module]).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif with_imports and isinstance(node, ast.Assign):
            names.update(t.id for t in node.targets if isinstance(t, ast.Name))
        elif with_imports and isinstance(node, ast.AnnAssign):
            names.add(ast.unparse(node.target))
        elif with_imports and isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
    return names


def _homes() -> dict[str, list[str]]:
    homes: dict[str, list[str]] = {}
    for module in MODULES:
        if module.split(".")[0] == "keras_tracin":
            for name in _definitions(module):
                homes.setdefault(name, []).append(module)
    return homes


_HOMES = _homes()
