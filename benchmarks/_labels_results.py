"""Figures of a setting, kept as JSON so that later runs add to them."""

import json
import pathlib
from typing import Any

from keras_tracin.storage.files import written_whole

Row = dict[str, float]


class Results:
    """The figures of one data set, kind of wrong labels and seed.

    Args:
        path: the file; made with the first figure.
        setting: what the figures depend on beside these three.

    Raises:
        ValueError: if the file has figures of another setting.
    """

    def __init__(self, path: pathlib.Path, setting: dict[str, Any]):
        self._path = path
        self._content: dict[str, Any] = {"setting": setting}
        if path.is_file():
            self._content = json.loads(path.read_text(encoding="utf-8"))
        if (other := self._content["setting"]) != setting:
            raise ValueError(
                f"{path} has results of {other}. Received: {setting}. Choose "
                "another --results_dir."
            )

    def row(self, name: str) -> Row | None:
        """The figures of a score by column, if they are known."""
        return self._content.get("rows", {}).get(name)

    def figure(self, kind: str, name: str) -> float | None:
        """A figure that is of no score, if it is known.

        Args:
            kind: what it is, as "accuracy".
            name: its name.
        """
        return self._content.get(kind, {}).get(name)

    def add_row(self, name: str, figures: Row) -> None:
        """Adds figures to those of a score."""
        rows = self._content.setdefault("rows", {})
        rows[name] = rows.get(name, {}) | _rounded(figures)
        self._write()

    def add_figure(self, kind: str, name: str, value: float) -> None:
        """Adds a figure that is of no score."""
        figures = self._content.setdefault(kind, {})
        figures |= _rounded({name: value})
        self._write()

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self._content, indent=1) + "\n"
        with written_whole(self._path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")


def _rounded(figures: Row) -> Row:
    return {name: round(value, 6) for name, value in figures.items()}
