"""Arrays of `.npz` files and tables of `.csv` files, as sources of examples.

Synopsis:

    source = open_npz(values, "data", form, class_names=None)
    source = open_csv(values, "test_data", form, class_names=None)
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from absl import flags

from keras_tracin.data.ids import find_repeated
from keras_tracin.scripts._file_labels import (
    as_numbers,
    check_readings,
    read_labels,
)
from keras_tracin.scripts._model_file import FilesError, Input, ModelForm
from keras_tracin.scripts._sources import Source
from keras_tracin.storage.arrays import load_arrays

_PART = {"data": "train", "test_data": "test"}


def open_npz(
    values: flags.FlagValues,
    flag: str,
    form: ModelForm,
    class_names: list[str] | None,
) -> Source:
    """The arrays of a `.npz` file.

    Those of `--data` are `x` and `y`, or `x_train` and `y_train`; of
    `--test_data`, `x_test` and `y_test` where the file has them. `ids` and
    `sample_weight` go with them. Each of several inputs is an array of its
    name, in place of `x`.

    Raises:
        FilesError: if there are other arrays.
    """
    path = Path(str(values[flag].value))
    where = f"'{path}'"
    stored = load_arrays(path, "Write it by `np.savez`.")
    ending = f"_{_PART[flag]}"
    parted = f"y{ending}" in stored
    if parted and "y" in stored:
        raise _arrays_error(where, stored, form, ending)
    ending = ending if parted else ""
    names = ["x"] if form.nested is None else [i.name for i in form.inputs]
    needed = [f"{name}{ending}" for name in (*names, "y")]
    # Which examples would these be of?
    beside = {"ids", "sample_weight"} if parted else set()
    if any(name not in stored for name in needed) or beside & {*stored}:
        raise _arrays_error(where, stored, form, ending)
    *inputs, y = (stored[name] for name in needed)
    lengths = {name: np.shape(stored[name])[:1] for name in needed}
    for name in (f"ids{ending}", f"sample_weight{ending}"):
        if name in stored:
            lengths[name] = np.shape(stored[name])[:1]
    if len(set(lengths.values())) != 1 or () in lengths.values():
        shapes = {name: np.shape(stored[name]) for name in lengths}
        raise FilesError(
            f"Arrays of {where} should have a row for each example. Received "
            f"the shapes {shapes}."
        )
    _check_ids(stored.get(f"ids{ending}"), where)
    for name in lengths.keys() - {f"ids{ending}"}:
        is_text = name == needed[-1] or any(
            each.is_text for each in form.inputs
        )
        if stored[name].dtype.kind not in ("biufSU" if is_text else "biuf"):
            raise FilesError(
                f"Array '{name}' of {where} should hold numbers"
                f"{' or words' if is_text else ''}, as the model takes them. "
                f"Received: {stored[name].dtype}. Make numbers of them, as "
                "the training had them."
            )
    y, names_of_y, classes = read_labels(y, form, class_names, where)
    data: tuple[Any, ...] = (_nest(inputs, form), y)
    if f"sample_weight{ending}" in stored:
        data += (stored[f"sample_weight{ending}"],)
    return Source(
        where,
        data,
        names_of_y,
        pixels=form.nested is None and inputs[0].dtype == np.uint8,
        ids=stored.get(f"ids{ending}"),
        classes=classes,
        about=f", of which {', '.join(lengths)} are read",
    )


def open_csv(
    values: flags.FlagValues,
    flag: str,
    form: ModelForm,
    class_names: list[str] | None,
) -> Source:
    """The table of a `.csv` file, whose first line names the columns.

    Raises:
        FilesError: if columns are missing or hold what the model does not
            take.
    """
    path = Path(str(values[flag].value))
    where = f"'{path}'"
    table = _read_table(path)
    label, id_column = values.label_column, values.id_column
    if label is None:
        raise FilesError(
            "--label_column should name the column of the labels in "
            f"{where}, whose columns are {list(table)}. Received: none."
        )
    for name, column in (("label_column", label), ("id_column", id_column)):
        if column is not None:
            _check_column(column, table, name, where)
    others = [name for name in table if name not in (label, id_column)]
    inputs, used = _features(values, form, table, others, where)
    labels = np.array(table[label])
    numbers = as_numbers(labels)
    if not set(table[label]) <= set(class_names or ()):
        labels = numbers
    elif numbers.dtype.kind not in "SU":
        check_readings(labels, numbers, class_names or [], where)
    y, names, classes = read_labels(labels, form, class_names, where)
    ids = None if id_column is None else _read_ids(table[id_column])
    _check_ids(ids, where)
    return Source(
        where,
        (inputs, y),
        names,
        ids=ids,
        classes=classes,
        about=f", of which {', '.join(used)} go in and '{label}' is the label",
        columns=used,
    )


def _features(
    values: flags.FlagValues,
    form: ModelForm,
    table: Mapping[str, list[str]],
    others: list[str],
    where: str,
) -> tuple[Any, list[str]]:
    """The columns as the model's inputs, and their names."""
    chosen = values.feature_columns
    for name in chosen or ():
        _check_column(name, table, "feature_columns", where)
    if form.nested is not None:
        names = [each.name for each in form.inputs]
        if chosen is not None and sorted(chosen) != sorted(names):
            raise FilesError(
                "--feature_columns should name the model's inputs, "
                f"{names}. Received: {chosen}. Leave it out."
            )
        for name in names:
            _check_column(name, table, "model", where)
        columns = [
            _column(table[each.name], each.name, each, where).reshape(
                [-1, *(size or 1 for size in each.shape)]
            )
            for each in form.inputs
        ]
        return _nest(columns, form), names
    taken, chosen = form.only_input, chosen or others
    width = 1 if taken.is_text else int(np.prod([s or 1 for s in taken.shape]))
    if len(chosen) != width or len(taken.shape) > 1:
        raise FilesError(
            f"The model takes {width} values of each example as its input "
            f"{taken.shape}. Received the {len(chosen)} columns {chosen} of "
            f"{where}. Choose by --feature_columns, in the order of the "
            "training; --id_column and --label_column are left out."
        )
    stacked = [_column(table[name], name, taken, where) for name in chosen]
    whole = stacked[0] if taken.is_text else np.stack(stacked, axis=1)
    return whole, chosen


def _column(
    values: list[str], name: str, taken: Input, where: str
) -> np.ndarray:
    """A column in the dtype that an input takes."""
    if taken.is_text:
        return np.array(values)
    parse: Callable[[str], Any] = float
    if tf.as_dtype(taken.dtype).is_integer:
        parse = int
    numbers = np.zeros(len(values), tf.as_dtype(taken.dtype).as_numpy_dtype)
    for row, value in enumerate(values):
        try:
            numbers[row] = parse(value)
        except (ValueError, OverflowError):
            raise FilesError(
                f"Column '{name}' of {where} should hold numbers ("
                f"{taken.dtype}), as the model takes them. Received: "
                f"'{value}' in row {row}. Correct it, leave the row out, or "
                "make numbers of words by --task."
            ) from None
    return numbers


def _check_ids(ids: np.ndarray | None, where: str) -> None:
    """Refuses ids that several examples have: results tell them by these."""
    repeated = [] if ids is None else find_repeated(ids)
    if repeated:
        raise FilesError(
            f"Ids of {where} should be distinct. Received: "
            f"{repeated[0]!r} more than once. Correct them, or leave them out, "
            "for positions."
        )


def _read_ids(words: list[str]) -> np.ndarray:
    """Ids as whole numbers, if these are written as the ids are."""
    ids = np.array(words)
    numbers = as_numbers(ids)
    return numbers if numbers.astype(str).tolist() == words else ids


def _nest(arrays: list[np.ndarray], form: ModelForm) -> Any:
    if form.nested is None:
        return arrays[0]
    if form.nested is dict:
        names = [each.name for each in form.inputs]
        return dict(zip(names, arrays, strict=True))
    return tuple(arrays)


def _read_table(path: Path) -> dict[str, list[str]]:
    """The columns of a table, by name."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        try:
            header, *rows = [row for row in csv.reader(file) if row] or [[]]
        except (UnicodeDecodeError, csv.Error) as error:
            raise FilesError(
                f"'{path}' should be a table in CSV, in UTF-8. Received: "
                f"another file ({error}). Save it as CSV in UTF-8."
            ) from error
    ragged = [at for at, row in enumerate(rows) if len(row) != len(header)]
    if not rows or ragged or len(set(header)) < len(header):
        raise FilesError(
            f"'{path}' should be a table in CSV, with a line of distinct "
            "names and a line for each example. Received: "
            + (
                f"{len(rows[ragged[0]])} values in row {ragged[0]} for "
                f"{len(header)} columns."
                if ragged
                else f"the columns {header} and {len(rows)} rows."
            )
        )
    return {
        name: list(column)
        for name, column in zip(header, zip(*rows, strict=True), strict=True)
    }


def _check_column(
    name: str, table: Mapping[str, Any], flag: str, where: str
) -> None:
    if name not in table:
        raise FilesError(
            f"--{flag} needs a column '{name}', which {where} does not have. "
            f"It has {list(table)}."
        )


def _arrays_error(
    where: str, stored: Mapping[str, Any], form: ModelForm, ending: str
) -> FilesError:
    names = ["x"] if form.nested is None else [i.name for i in form.inputs]
    expected = " and ".join((*names, "y"))
    return FilesError(
        f"{where} should hold the arrays {expected}, or the same with "
        f"{ending or '_train or _test'} at the end, but not both. Received: "
        f"{sorted(stored)}. Write it by `np.savez(path, x=x, y=y)`; `ids` and "
        "`sample_weight` may go with them, with the same end."
    )
