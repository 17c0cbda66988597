"""How files were read for an index, so that queries are read in the same way.

Synopsis:

    write_reading(directory, task.reading)   # once the index is built
    reading = adopt_reading(values, directory)   # before queries are opened
    if reading is not None:
        reading.check(task.reading)          # once they are
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from absl import flags

from keras_tracin.scripts._model_file import FilesError
from keras_tracin.scripts._program import UsageError
from keras_tracin.storage.files import written_whole

_NAME = "files.json"


@dataclasses.dataclass(frozen=True)
class Reading:
    """What was done to the inputs and labels of files.

    Attributes:
        scale: what inputs were divided by; None where they are no numbers.
        offset: what was added then.
        class_names: names of the classes, in order, or None.
        feature_columns: columns of a table that went in, or None.
        pixels: whether inputs were pixels from 0 to 255.
    """

    scale: float | None
    offset: float
    class_names: list[str] | None
    feature_columns: list[str] | None
    pixels: bool

    def check(self, other: Reading) -> None:
        """Refuses queries of another kind than the rows of the index.

        Raises:
            FilesError: if one has pixels and the other has not.
        """
        if self.pixels != other.pixels:
            kinds = ("other numbers", "pixels from 0 to 255")
            raise FilesError(
                "--test_data should hold inputs of one kind with the data of "
                f"the index. Received: {kinds[other.pixels]}, where the index "
                f"was built of {kinds[self.pixels]}. Write both in one form."
            )


def write_reading(directory: Path, reading: Reading) -> None:
    """Writes a reading beside an index."""
    with written_whole(directory / _NAME) as unfinished:
        text = json.dumps(dataclasses.asdict(reading), indent=1)
        unfinished.write_text(text, encoding="utf-8")


def adopt_reading(
    values: flags.FlagValues, directory: str | Path
) -> Reading | None:
    """Takes flags that were left out as they were for the index.

    Args:
        values: parsed flags, which are changed.
        directory: directory of the index.

    Returns:
        How its data were read; None if they were no files.

    Raises:
        UsageError: if a flag says otherwise.
    """
    path = Path(directory) / _NAME
    if values.task is not None or not path.is_file():
        return None
    reading = Reading(**json.loads(path.read_text(encoding="utf-8")))
    if reading.scale is not None:
        if values.scale is None:
            values["scale"].value = reading.scale
            values["offset"].value = reading.offset
        _check(
            "scale and --offset",
            (values.scale, values.offset),
            (reading.scale, reading.offset),
        )
    for name in ("class_names", "feature_columns"):
        built: Any = getattr(reading, name)
        if values[name].value is None:
            values[name].value = built
        elif built is not None:
            _check(name, values[name].value, built)
    return reading


def _check(flag: str, given: Any, built: Any) -> None:
    if given != built:
        raise UsageError(
            f"--{flag} should be what the index was built with, {built}. "
            f"Received: {given}. Leave it out."
        )
