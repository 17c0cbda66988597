"""Ranks training examples by how suspicious their labels are.

    keras_tracin-label_issues --task=digits_task --output=issues.csv
    keras_tracin-label_issues --task=digits_task | head -20
    keras_tracin-label_issues --task=digits_task --report=review.html
    keras_tracin-label_issues --task=digits_task --folds=3 \\
        --directory=folds --output=issues.npz

A wrong label is learnt late, if at all, so all checkpoints of the run are
looked at, in one forward pass each; those that were best on the examples which
`fit` held out decide, if it had any.

A .csv file has the columns rank, train_id, score, given_label, suggested_label,
suggested_probability, is_issue, given_name and suggested_name, as far as there
are such things, the most suspicious first: 1 in is_issue marks labels that are
estimated to be wrong.
`kt.LabelIssues.load` reads a .npz file. Without --output, CSV goes to standard
output, unless there is a --report.

--report writes a page on which a person who knows the data decides which labels
are wrong; the corrections are exported as CSV. It needs the `report` extra:
pip install "keras_tracin[report]".

With --folds, copies of the model are trained, each on all but a part of the
examples, and judge all: as the run was or, if the task has a function
`fit(model, train, callbacks)`, by that. With --directory, an interrupted
command continues with the folds that are missing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from keras_tracin.labels import LabelIssues, find_label_issues
from keras_tracin.report import write_html
from keras_tracin.scripts import _flags
from keras_tracin.scripts._job import Job, open_job
from keras_tracin.scripts._labels import result_labels
from keras_tracin.scripts._output import Output, output_path
from keras_tracin.scripts._program import SUCCESS, Program, UsageError

_SCORES = "The scores and the number"


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return Program("label_issues", __doc__ or "", _define, _work).main(argv)


def _define(values: flags.FlagValues) -> None:
    _flags.define_task(values)
    _flags.define_checkpoints(
        values,
        "Directory that TracInCheckpoint recorded. Default: the task's `run`. "
        "Without a run, the present weights of the model are looked at.",
        _SCORES,
    )
    options: dict[str, Any] = {"flag_values": values, "module_name": _SCORES}
    flags.DEFINE_list(
        "method",
        "auto",
        "Scores: loss, mean_loss, aum, probability, el2n, best_loss, best_aum, "
        "residual, or several between commas, whose ranks are averaged.",
        **options,
    )
    flags.DEFINE_string(
        "number",
        "auto",
        "How the number of wrong labels is estimated: auto, "
        "confident_learning, confident_examples; or the number itself.",
        **options,
    )
    flags.DEFINE_integer(
        "folds",
        0,
        "Number of folds to train copies of the model on; 0 for none.",
        lower_bound=0,
        **options,
    )
    _flags.define_output(values, ".npz or .csv file for the ranking.")
    options["module_name"] = _flags.OUTPUT
    flags.DEFINE_string(
        "report", None, ".html file for a page to review labels on.", **options
    )
    flags.DEFINE_integer(
        "max_suspects",
        1000,
        "Number of the most suspicious examples on the page.",
        lower_bound=1,
        **options,
    )
    _flags.define_directory(values)


def _work(values: flags.FlagValues) -> int:
    if values.directory and not values.folds:
        raise UsageError("--directory is for --folds.")
    page = output = None
    if values.report is not None:
        page = output_path(values, (".html",), "report")
    if values.output is not None or page is None:
        output = Output.from_flags(values)
    with open_job(values) as job:
        issues = _find(job)
        if output is not None:
            output.write(issues, result_labels(job, train=False))
        if page is not None:
            _write_page(job, page, issues)
        if not values.quiet:
            print(f"{issues!r}".strip("<>") + ".")
            if output is not None:
                print(f"They are in {output.path}.")
            if page is not None:
                print(f"The page is {page}.")
    return SUCCESS


def _find(job: Job) -> LabelIssues:
    values, number = job.values, job.values.number
    method = values.method[0] if len(values.method) == 1 else values.method
    return find_label_issues(
        job.model,
        job.task.train(),
        job.run,
        method=method,
        number=int(number) if number.isdecimal() else number,
        folds=values.folds,
        fit=job.task.option("fit") if values.folds else None,
        directory=values.directory,
        seed=values.seed,
        verbose=job.verbose,
        **job.options("loss", "strategy", "memory_limit"),
    )


def _write_page(job: Job, path: Path, issues: LabelIssues) -> None:
    write_html(
        path,
        train=job.task.shown("train"),
        label_issues=issues,
        max_suspects=job.values.max_suspects,
        title="Suspected labels",
        class_names=job.task.option("class_names"),
        feature_names=job.task.option("feature_names"),
        overwrite=job.values.overwrite,
    )


if __name__ == "__main__":
    sys.exit(main())
