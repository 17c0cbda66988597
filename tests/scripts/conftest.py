"""A task to run the programs on: the one that their documentation shows."""

import runpy
import textwrap

import pytest

from keras_tracin import scripts
from tests.scripts.helpers import Workplace


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A directory with digits_task.py, as documented, and its recorded run."""
    directory = tmp_path_factory.mktemp("scripts")
    text = scripts.__doc__.split("digits_task.py, which is")[1]
    example = textwrap.dedent(text.split("\n", 1)[1])
    (directory / "digits_task.py").write_text(example, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        runpy.run_path("digits_task.py", run_name="__main__")
    return directory


@pytest.fixture
def work(trained, monkeypatch, capsys):
    """What runs a program in that directory."""
    monkeypatch.chdir(trained)
    monkeypatch.syspath_prepend(trained)
    return Workplace(trained, capsys)
