"""The flags that programs have in common, section by section of `--help`."""

from __future__ import annotations

import re
from typing import Any

from absl import flags

from keras_tracin.engine.distribution import NAMED
from keras_tracin.scripts._data_flags import define_files

TASK = "The task and where it runs"
METHOD = "The method and its checkpoints"
TRACIN = "For --method=tracin"
INFLUENCE = "For --method=influence"
REPRESENTER = "For --method=representer"
QUERIES = "The queries"
INDEX = "The index"
OUTPUT = "Output"

METHODS = ("tracin", "influence", "trak", "representer")
PROJECTIONS = ("tensor_sketch", "gaussian", "factored")
SOLVERS = ("cg", "ekfac", "exact", "lissa", "arnoldi", "sketch")

# Methods whose scores an index can hold.
INDEXED_METHODS = ("tracin", "influence")

# Flags that only some methods take, and these methods.
METHODS_WITH = {
    "weights": ("tracin",),
    "projection": ("tracin", "trak"),
    "normalize": ("tracin",),
    "optimizer_aware": ("tracin",),
    "factored": ("tracin",),
    "aggregate": ("tracin",),
    "damping": ("influence", "trak"),
    "curvature": ("influence",),
    "solver": ("influence",),
    "relative": ("influence",),
    "l2": ("representer",),
    "representer": ("representer",),
    "target": ("representer",),
    "query_loss": ("tracin", "influence"),
    "dim": ("tracin", "influence", "trak"),
}

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", re.IGNORECASE)


class _BytesParser(flags.ArgumentParser):
    syntactic_help = "bytes, or a number with KB, MB or GB"

    def parse(self, argument) -> int:
        """Parses a size such as "4GB" into bytes."""
        match = _SIZE.fullmatch(str(argument).strip())
        if not match or not float(match[1]):
            raise ValueError(f"expected {self.syntactic_help}")
        return int(float(match[1]) * _UNITS[match[2].upper()])


class _EpochsParser(flags.ArgumentParser):
    syntactic_help = "whole numbers of 1 or more, between commas"

    def parse(self, argument) -> list[int]:
        """Parses numbers such as "3,7,12"."""
        parts = [part.strip() for part in str(argument).split(",")]
        if not all(part.isdecimal() and int(part) for part in parts):
            raise ValueError(f"expected {self.syntactic_help}")
        return [int(part) for part in parts]


def define_task(values: flags.FlagValues) -> None:
    """Defines `--task`, what takes its place, and how it runs."""
    options: dict[str, Any] = {"flag_values": values, "module_name": TASK}
    flags.DEFINE_string(
        "task",
        None,
        "The Python module, or module:attribute, that builds the model and its "
        "data. --helpfull shows how to write one. Files can take its place: "
        "--model and --data.",
        **options,
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "Random seed of Python, NumPy, TensorFlow and projections.",
        **options,
    )
    flags.DEFINE_enum(
        "strategy",
        None,
        sorted(NAMED),
        "Distribution strategy to build the model under and to spread the work "
        "over. Scores do not depend on it.",
        **options,
    )
    flags.DEFINE(
        _BytesParser(),
        "memory_limit",
        None,
        "Memory that the computation may use, such as 4GB. Default: half of "
        "the free memory.",
        values,
        module_name=TASK,
    )
    define_files(values)


def define_run(values: flags.FlagValues, section: str = METHOD) -> None:
    """Defines `--run`, what selects its checkpoints, and `--layers`."""
    define_checkpoints(
        values,
        "Directory that TracInCheckpoint recorded. Default: the task's `run`. "
        "--method=influence and representer use the weights of its last "
        "checkpoint (influence the mean over those of --checkpoints or "
        "--epochs) or, without a run, the present weights of the model.",
        section,
    )
    flags.DEFINE_list(
        "layers",
        None,
        "Names of the layers whose gradients to use. Default: all layers.",
        flag_values=values,
        module_name=section,
    )


def define_checkpoints(
    values: flags.FlagValues, text: str, section: str
) -> None:
    """Defines `--run`, with this help, and what selects its checkpoints."""
    options: dict[str, Any] = {"flag_values": values, "module_name": section}
    flags.DEFINE_string("run", None, text, **options)
    flags.DEFINE_integer(
        "checkpoints",
        None,
        "Number of the run's checkpoints to use, selected where the loss falls "
        "most. Default: all of them.",
        lower_bound=1,
        **options,
    )
    flags.DEFINE(
        _EpochsParser(),
        "epochs",
        None,
        "Epochs whose checkpoints to use, such as 3,7,12, in place of "
        "--checkpoints.",
        **options,
    )


def define_method(values: flags.FlagValues) -> None:
    """Defines `--method` and the options of every method."""
    flags.DEFINE_enum(
        "method",
        "tracin",
        METHODS,
        "TracIn; influence functions; TRAK over all checkpoints; representer "
        "points.",
        flag_values=values,
        module_name=METHOD,
    )
    define_run(values)
    define_tracin(values)
    define_influence(values)
    options: dict[str, Any] = {
        "flag_values": values,
        "module_name": REPRESENTER,
    }
    flags.DEFINE_float(
        "l2", 1e-3, "L2 regularisation λ of the retuned last layer.", **options
    )
    flags.DEFINE_enum(
        "representer",
        "l2",
        ("l2", "lje"),
        "l2: retune the last layer with --l2. lje: keep the last layer and "
        "expand its loss around it (local Jacobian expansion).",
        **options,
    )


def define_tracin(values: flags.FlagValues) -> None:
    """Defines the options of TracIn."""
    options: dict[str, Any] = {"flag_values": values, "module_name": TRACIN}
    flags.DEFINE_enum(
        "weights",
        "mean",
        ("mean", "sum"),
        "How checkpoints are weighted: by the mean or the sum of the learning "
        "rates applied since the previous one.",
        **options,
    )
    flags.DEFINE_enum(
        "projection",
        None,
        PROJECTIONS,
        "Random projection that compresses each gradient to a sketch of --dim "
        "numbers. Also for --method=trak, whose default is tensor_sketch.",
        **options,
    )
    flags.DEFINE_bool(
        "optimizer_aware",
        False,
        "Precondition gradients as Adam and related optimizers do.",
        **options,
    )
    flags.DEFINE_bool(
        "factored",
        False,
        "With --optimizer_aware: by rows × columns of each kernel, at the cost "
        "of plain gradients.",
        **options,
    )
    flags.DEFINE_enum(
        "normalize",
        None,
        ("train", "both"),
        "Divide gradients by their lengths: those of training examples, or of "
        "both sides.",
        **options,
    )
    flags.DEFINE_integer(
        "dim",
        1024,
        "Length of a sketch: of --projection at each checkpoint, of "
        "--solver=sketch, or of --method=trak, whose default is 2048.",
        lower_bound=1,
        **options,
    )
    define_query_loss(values)


def define_query_loss(values: flags.FlagValues) -> None:
    """Defines `--query_loss`."""
    flags.DEFINE_enum(
        "query_loss",
        "loss",
        ("loss", "logit", "margin"),
        "Quantity of a query that influence is measured on. With all of them, "
        "a positive score marks a proponent. For --method=tracin and "
        "influence.",
        flag_values=values,
        module_name=METHOD,
    )


def define_influence(values: flags.FlagValues) -> None:
    """Defines the options of influence functions."""
    options: dict[str, Any] = {"flag_values": values, "module_name": INFLUENCE}
    flags.DEFINE_float(
        "damping",
        None,
        "Damping λ, added to the curvature; by default it follows from the "
        "steps that the model's optimizer has made. Also for --method=trak, "
        "whose default is 1.",
        **options,
    )
    flags.DEFINE_enum(
        "curvature",
        None,
        ("hessian", "gauss_newton", "ekfac"),
        "Curvature matrix to invert; ekfac is short for --solver=ekfac. "
        "Default: ekfac, or hessian with any other --solver.",
        **options,
    )
    flags.DEFINE_enum(
        "solver",
        None,
        SOLVERS,
        "Solver that inverts the curvature; ekfac by default, or cg with a "
        "--curvature. Not with --curvature=ekfac.",
        **options,
    )
    flags.DEFINE_enum(
        "relative",
        None,
        ("loss", "parameters"),
        "Divide scores by an example's own influence: on its loss, or on the "
        "parameters (RelatIF, Barshan et al. 2020).",
        **options,
    )


def define_queries(values: flags.FlagValues, k: int | None) -> None:
    """Defines `--queries` and `--k`."""
    options: dict[str, Any] = {"flag_values": values, "module_name": QUERIES}
    flags.DEFINE_list(
        "queries",
        None,
        "Ids of the test examples to score. Default: all of them.",
        **options,
    )
    flags.DEFINE_integer(
        "k",
        k,
        "Number of strongest proponents and opponents to list for each query."
        + ("" if k else " Without it, all training examples are scored."),
        lower_bound=1,
        **options,
    )


def define_target(values: flags.FlagValues) -> None:
    """Defines `--target`, of representer points."""
    flags.DEFINE_string(
        "target",
        "label",
        "Class whose logit the scores explain: label, predicted, or a class "
        "index.",
        flag_values=values,
        module_name=REPRESENTER,
    )


def define_directory(values: flags.FlagValues) -> None:
    """Defines `--directory`, for long calls."""
    flags.DEFINE_string(
        "directory",
        None,
        "Directory for finished parts of the work: the same command, run "
        "again after an interruption, continues from them.",
        flag_values=values,
        module_name=OUTPUT,
    )


def define_output(
    values: flags.FlagValues, text: str, required: bool = False
) -> None:
    """Defines `--output`, `--overwrite` and `--quiet`."""
    options: dict[str, Any] = {"flag_values": values, "module_name": OUTPUT}
    flags.DEFINE_string("output", None, text, required=required, **options)
    define_overwrite(values, "Replace an existing output file.")
    define_quiet(values)


def define_overwrite(values: flags.FlagValues, text: str) -> None:
    """Defines `--overwrite`."""
    flags.DEFINE_bool(
        "overwrite", False, text, flag_values=values, module_name=OUTPUT
    )


def define_quiet(values: flags.FlagValues) -> None:
    """Defines `--quiet`."""
    flags.DEFINE_bool(
        "quiet",
        False,
        "Print warnings and errors only: no progress bars, no messages.",
        flag_values=values,
        module_name=OUTPUT,
    )
