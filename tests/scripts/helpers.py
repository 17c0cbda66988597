"""Calls programs in this process."""

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

TASK = "--task=digits_task"
FEW = "--queries=3,17"  # two of its queries


@dataclasses.dataclass(frozen=True)
class Workplace:
    """A directory with a task, and what the programs printed."""

    directory: Path
    capsys: Any

    def run(self, program, *arguments) -> str:
        """What a program prints that succeeds."""
        self.capsys.readouterr()
        code = program.main(list(arguments))
        out, err = self.capsys.readouterr()
        assert code == 0, err
        return out

    def refused(self, program, *arguments) -> str:
        """The one line on stderr of a program that fails with code 2."""
        before = self.files()
        self.capsys.readouterr()
        code = program.main(list(arguments))
        _, err = self.capsys.readouterr()
        assert code == 2
        assert err.startswith("keras_tracin-")
        assert err.count("\n") == 1, err
        assert err.endswith("\n")
        assert self.files() == before
        return err

    def files(self) -> set[Path]:
        """All files there are, but for compiled ones."""
        return {
            path
            for path in self.directory.rglob("*")
            if "__pycache__" not in path.parts
        }


def table(text: str) -> list[dict[str, str]]:
    """The rows of a table in CSV."""
    return list(csv.DictReader(io.StringIO(text)))
