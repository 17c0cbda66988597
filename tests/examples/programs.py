"""Runs the examples in this process."""

import contextlib
import importlib
import os
import pathlib
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

DATA = pathlib.Path(os.environ.get("KERAS_TRACIN_DATA", "../shared/data"))


def needs(folder):
    """Skips tests where the data is not."""
    return pytest.mark.skipif(
        not (DATA / folder).is_dir(),
        reason=f"there is no {DATA / folder}; set KERAS_TRACIN_DATA",
    )


@contextlib.contextmanager
def program(name):
    """The module of an example.

    Its flags are taken off afterwards, for those of two programs have the same
    names.
    """
    module = importlib.import_module(f"examples.{name}")
    try:
        yield module
    finally:
        for flag in flags.FLAGS.get_flags_for_module(module.__name__):
            delattr(flags.FLAGS, flag.name)
        del sys.modules[module.__name__]


def run(module, output, *arguments):
    """The program's `main`."""
    with flagsaver.flagsaver():
        flags.FLAGS(["program", f"--output_dir={output}", *arguments])
        module.main([])


def run_program(name, output, capsys, *arguments):
    """What a program prints."""
    with program(name) as module:
        run(module, output, *arguments)
    return capsys.readouterr().out


def assert_pictures(output, *names):
    """That these pictures were drawn, and no others."""
    assert sorted(path.name for path in output.glob("*.png")) == sorted(names)
    for name in names:
        assert (output / name).read_bytes().startswith(b"\x89PNG")
