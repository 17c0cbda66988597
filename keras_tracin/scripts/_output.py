"""Results as files that are whole or absent, or as lines of text.

Synopsis:

    output = Output.from_flags(values)   # refuses a path it cannot write
    output.write(scores)         # an Attribution or another result
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
from keras_tracin.scripts._program import UsageError
from keras_tracin.storage.files import written_whole

Result = Attribution | TopK | SelfInfluence | LabelIssues
Row = list[Any]


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

    def write(self, result: Result) -> None:
        """Writes the result, whole or not at all."""
        if self.path is None:
            _print_csv(result)
        elif self.path.suffix == ".npz":
            result.save(self.path)
        else:
            with (
                written_whole(self.path) as unfinished,
                open(unfinished, "w", newline="", encoding="utf-8") as file,
            ):
                _write_csv(file, result)


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


def _print_csv(result: Result) -> None:
    try:
        _write_csv(sys.stdout, result)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_csv(file: TextIO, result: Result) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerows(_rows(result))


def _rows(result: Result) -> Iterator[Row]:
    """The header and the rows of a table."""
    if isinstance(result, SelfInfluence):
        ranked = result.ranking()
        yield ["rank", "train_id", "self_influence"]
        pairs = zip(ranked.ids.tolist(), ranked.scores, strict=True)
        for rank, (name, score) in enumerate(pairs, 1):
            yield [rank, name, _number(score)]
    elif isinstance(result, LabelIssues):
        yield from _issue_rows(result)
    elif isinstance(result, TopK):
        yield ["query_id", "side", "rank", "train_id", "score"]
        for at, query in enumerate(result.query_ids.tolist()):
            for side in ("proponent", "opponent"):
                ranking = getattr(result, f"{side}s")
                pairs = zip(
                    ranking.ids[at].tolist(), ranking.scores[at], strict=True
                )
                for rank, (name, score) in enumerate(pairs, 1):
                    yield [query, side, rank, name, _number(score)]
    else:
        yield ["query_id", *result.train_ids.tolist()]
        for query, row in zip(
            result.query_ids.tolist(), result.scores, strict=True
        ):
            yield [query, *map(_number, row)]


def _issue_rows(issues: LabelIssues) -> Iterator[Row]:
    count, number = len(issues), issues.num_issues
    columns: dict[str, list] = {
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
    yield list(columns)
    yield from map(list, zip(*columns.values(), strict=True))


def _number(score: Any) -> str:
    return f"{score:.9g}"  # enough digits for a float32 to be read back
