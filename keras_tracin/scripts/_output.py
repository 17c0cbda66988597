"""Results as files that are whole or absent, or as lines of text.

Synopsis:

    output = Output.from_flags(values)   # refuses a path it cannot write
    output.write(scores, labels)         # an Attribution or another result
"""

from __future__ import annotations

import csv
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from absl import flags

from keras_tracin.labels import LabelIssues
from keras_tracin.results import Attribution, SelfInfluence, TopK
from keras_tracin.scripts._labels import ResultLabels
from keras_tracin.scripts._program import UsageError
from keras_tracin.storage.files import written_whole

Result = Attribution | TopK | SelfInfluence | LabelIssues
Row = list[Any]
Columns = dict[str, list]


@dataclasses.dataclass(frozen=True)
class Output:
    """Destination of a result.

    Attributes:
        path: path of a `.npz` or `.csv` file; None for CSV on standard output.
    """

    path: Path | None

    @classmethod
    def from_flags(cls, values: flags.FlagValues) -> Output:
        """Reads `--output`; without it, sets `--quiet`.

        Raises:
            UsageError: if the file has another ending, or exists and
                `--overwrite` is not given.
        """
        if values.output is None:
            # Standard output holds the result and nothing else.
            values["quiet"].value = True
            return cls(None)
        return cls(output_path(values, (".npz", ".csv")))

    @property
    def is_table(self) -> bool:
        """Whether results are written as CSV."""
        return self.path is None or self.path.suffix == ".csv"

    def write(self, result: Result, labels: ResultLabels | None = None) -> None:
        """Writes the result, whole or not at all.

        Args:
            result: the result.
            labels: labels and names of classes, for tables.
        """
        rows = _rows(result, labels or ResultLabels({}))
        if self.path is None:
            _print_csv(rows)
        elif self.path.suffix == ".npz":
            result.save(self.path)
        else:
            with (
                written_whole(self.path) as unfinished,
                open(unfinished, "w", newline="", encoding="utf-8") as file,
            ):
                _write_csv(file, rows)


def output_path(
    values: flags.FlagValues, endings: tuple[str, ...], flag: str = "output"
) -> Path:
    """The path that `--output`, or another flag, names.

    Raises:
        UsageError: if it has another ending, is a directory, or exists and
            `--overwrite` is not given.
    """
    path = Path(str(values[flag].value))
    if path.suffix not in endings:
        raise UsageError(
            f"--{flag} should end in {' or '.join(endings)}. Received: "
            f"'{path}'."
        )
    if path.is_dir():
        raise UsageError(f"--{flag}='{path}' is a directory.")
    if path.exists() and not values.overwrite:
        raise UsageError(f"'{path}' exists: --overwrite replaces it.")
    _check_writable(path, flag)
    return path


def _check_writable(path: Path, flag: str) -> None:
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(
            f"--{flag}='{path}' cannot be written: '{parent}' is no directory "
            "that may be written to."
        )


def _print_csv(rows: Iterator[Row]) -> None:
    try:
        _write_csv(sys.stdout, rows)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_csv(file: TextIO, rows: Iterator[Row]) -> None:
    csv.writer(file, lineterminator="\n").writerows(rows)


def _rows(result: Result, labels: ResultLabels) -> Iterator[Row]:
    """The header and the rows of a table."""
    if isinstance(result, Attribution):
        yield ["query_id", *result.train_ids.tolist()]
        for query, row in zip(
            result.query_ids.tolist(), result.scores, strict=True
        ):
            yield [query, *map(_number, row)]
        return
    if isinstance(result, SelfInfluence):
        columns = _self_influence_columns(result, labels)
    elif isinstance(result, TopK):
        columns = _top_k_columns(result, labels)
    else:
        columns = _issue_columns(result, labels)
    yield list(columns)
    yield from map(list, zip(*columns.values(), strict=True))


def _self_influence_columns(
    result: SelfInfluence, labels: ResultLabels
) -> Columns:
    ranked = result.ranking()
    ids = ranked.ids.tolist()
    return {
        "rank": list(range(1, len(ids) + 1)),
        "train_id": ids,
        "self_influence": list(map(_number, ranked.scores)),
        **labels.columns("train", ids),
    }


def _top_k_columns(result: TopK, labels: ResultLabels) -> Columns:
    rows = [
        (query, side, rank, name, _number(score))
        for at, query in enumerate(result.query_ids.tolist())
        for side in ("proponent", "opponent")
        for ranking in (getattr(result, f"{side}s"),)
        for rank, (name, score) in enumerate(
            zip(ranking.ids[at].tolist(), ranking.scores[at], strict=True), 1
        )
    ]
    names = ("query_id", "side", "rank", "train_id", "score")
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return {
        **columns,
        **labels.columns("query", columns["query_id"]),
        **labels.columns("train", columns["train_id"]),
    }


def _issue_columns(issues: LabelIssues, labels: ResultLabels) -> Columns:
    count, number = len(issues), issues.num_issues
    columns: Columns = {
        "rank": list(range(1, count + 1)),
        "train_id": issues.ids.tolist(),
        "score": list(map(_number, issues.scores)),
    }
    for name, values, write in (
        ("given_label", issues.given_labels, str),
        ("suggested_label", issues.suggested_labels, str),
        ("suggested_probability", issues.suggested_probabilities, _number),
    ):
        if values is not None:  # of several labels of each, between spaces
            rows = values.reshape(count, -1).tolist()
            columns[name] = [" ".join(map(write, row)) for row in rows]
    if number is not None:
        columns["is_issue"] = [int(rank < number) for rank in range(count)]
    for name, values in (
        ("given_name", issues.given_labels),
        ("suggested_name", issues.suggested_labels),
    ):
        if values is not None and values.ndim == 1:
            named = labels.named(values.tolist())
            columns |= {} if named is None else {name: named}
    return columns


def _number(score: Any) -> str:
    return f"{score:.9g}"  # enough digits for a float32 to be read back
