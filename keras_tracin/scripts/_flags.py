"""The flags that programs have in common, section by section of `--help`."""

from __future__ import annotations

import re
from typing import Any

from absl import flags

from keras_tracin.engine.distribution import NAMED

TASK = "The task and where it runs"
METHOD = "The method and its checkpoints"
TRACIN = "For --method=tracin"
INFLUENCE = "For --method=influence"
REPRESENTER = "For --method=representer"
QUERIES = "What is asked"
INDEX = "The index"
OUTPUT = "What comes out"

METHODS = ("tracin", "influence", "trak", "representer")
PROJECTIONS = ("tensor_sketch", "gaussian", "factored")
SOLVERS = ("cg", "exact", "lissa", "arnoldi", "sketch")

# Their self-influence is not done part by part.
NO_PARTS = ("trak", "representer")

# Flags that only some methods have, and which.
METHODS_OF = {
    "weights": ("tracin",),
    "projection": ("tracin", "trak"),
    "optimizer_aware": ("tracin",),
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
        """Bytes from such as "4GB"."""
        found = _SIZE.fullmatch(str(argument).strip())
        if not found or not float(found[1]):
            raise ValueError(f"expected {self.syntactic_help}")
        return int(float(found[1]) * _UNITS[found[2].upper()])


class _EpochsParser(flags.ArgumentParser):
    syntactic_help = "whole numbers of 1 or more, between commas"

    def parse(self, argument) -> list[int]:
        """Numbers from such as "3,7,12"."""
        parts = [part.strip() for part in str(argument).split(",")]
        if not all(part.isdecimal() and int(part) for part in parts):
            raise ValueError(f"expected {self.syntactic_help}")
        return [int(part) for part in parts]


def define_task(values: flags.FlagValues) -> None:
    """`--task`, and what holds whatever is done with it."""
    here: dict[str, Any] = {"flag_values": values, "module_name": TASK}
    flags.DEFINE_string(
        "task",
        None,
        "module or module:attribute, what builds the model and its data. "
        "--helpfull shows how to write one.",
        required=True,
        **here,
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "Of Python, NumPy and TensorFlow, and of projections.",
        **here,
    )
    flags.DEFINE_enum(
        "strategy",
        None,
        sorted(NAMED),
        "The distribution strategy that the model is built under and the work "
        "is spread over. Scores do not depend on it.",
        **here,
    )
    flags.DEFINE(
        _BytesParser(),
        "memory_limit",
        None,
        "Bytes that the computation may use, such as 4GB; half of what is free "
        "by default.",
        values,
        module_name=TASK,
    )


def define_run(values: flags.FlagValues, section: str = METHOD) -> None:
    """`--run`, and which of its checkpoints count."""
    here: dict[str, Any] = {"flag_values": values, "module_name": section}
    flags.DEFINE_string(
        "run",
        None,
        "The directory that TracInCheckpoint recorded; the task's `run` by "
        "default. influence and representer take the weights of its last "
        "checkpoint, or without a run those that the task's model has.",
        **here,
    )
    flags.DEFINE_integer(
        "checkpoints",
        None,
        "So many of the run's checkpoints, chosen where the loss falls; all "
        "of them by default.",
        lower_bound=1,
        **here,
    )
    flags.DEFINE(
        _EpochsParser(),
        "epochs",
        None,
        "The checkpoints of these epochs, such as 3,7,12, in place of "
        "--checkpoints.",
        **here,
    )
    flags.DEFINE_list(
        "layers", None, "Names of the layers whose gradients count.", **here
    )


def define_method(values: flags.FlagValues) -> None:
    """`--method`, and the options of each."""
    flags.DEFINE_enum(
        "method",
        "tracin",
        METHODS,
        "Checkpoints' gradients; influence functions; TRAK, of all "
        "checkpoints; representer points.",
        flag_values=values,
        module_name=METHOD,
    )
    define_run(values)
    define_tracin(values)
    define_influence(values)
    here: dict[str, Any] = {"flag_values": values, "module_name": REPRESENTER}
    flags.DEFINE_float("l2", 1e-3, "λ, of the retuned last layer.", **here)
    flags.DEFINE_enum(
        "representer",
        "l2",
        ("l2", "lje"),
        "Retune the last layer, or expand the loss at the one there is.",
        **here,
    )


def define_tracin(values: flags.FlagValues) -> None:
    """The options of TracIn."""
    here: dict[str, Any] = {"flag_values": values, "module_name": TRACIN}
    flags.DEFINE_enum(
        "weights",
        "mean",
        ("mean", "sum"),
        "What a checkpoint counts: the mean or the sum of the learning rates "
        "since the one before.",
        **here,
    )
    flags.DEFINE_enum(
        "projection",
        None,
        PROJECTIONS,
        "Score sketches of the gradients, of --dim numbers each. Also for "
        "trak, which takes tensor_sketch by default.",
        **here,
    )
    flags.DEFINE_bool(
        "optimizer_aware",
        False,
        "Gradients as Adam and its kin use them.",
        **here,
    )
    flags.DEFINE_integer(
        "dim",
        1024,
        "The length of a sketch: of --projection at each checkpoint, of "
        "--solver=sketch, or of trak, which has 2048 by default.",
        lower_bound=1,
        **here,
    )
    define_query_loss(values)


def define_query_loss(values: flags.FlagValues) -> None:
    """What queries are measured on."""
    flags.DEFINE_enum(
        "query_loss",
        "loss",
        ("loss", "logit", "margin"),
        "What a query's influence is measured on. Positive scores are "
        "proponents with each. For tracin and influence.",
        flag_values=values,
        module_name=METHOD,
    )


def define_influence(values: flags.FlagValues) -> None:
    """The options of influence functions."""
    here: dict[str, Any] = {"flag_values": values, "module_name": INFLUENCE}
    flags.DEFINE_float(
        "damping",
        None,
        "λ, added to the curvature; needed. Also for trak, which has 1 by "
        "default.",
        **here,
    )
    flags.DEFINE_enum(
        "curvature",
        "hessian",
        ("hessian", "gauss_newton", "ekfac"),
        "Whose inverse is taken.",
        **here,
    )
    flags.DEFINE_enum(
        "solver",
        "cg",
        SOLVERS,
        "How it is taken; --curvature=ekfac has its own.",
        **here,
    )
    flags.DEFINE_enum(
        "relative",
        None,
        ("loss", "parameters"),
        "Divide by what an example does to itself (RelatIF).",
        **here,
    )


def define_queries(values: flags.FlagValues, k: int | None) -> None:
    """`--queries` and `--k`."""
    here: dict[str, Any] = {"flag_values": values, "module_name": QUERIES}
    flags.DEFINE_list(
        "queries",
        None,
        "Ids of the test examples to ask about; all of them by default.",
        **here,
    )
    flags.DEFINE_integer(
        "k",
        k,
        "The strongest proponents and opponents of each query."
        + ("" if k else " Without it, the scores of all training examples."),
        lower_bound=1,
        **here,
    )


def define_target(values: flags.FlagValues) -> None:
    """`--target`, of representer points."""
    flags.DEFINE_string(
        "target",
        "label",
        "The class that scores push towards: label, predicted, or an index.",
        flag_values=values,
        module_name=REPRESENTER,
    )


def define_directory(values: flags.FlagValues) -> None:
    """`--directory`, for long calls."""
    flags.DEFINE_string(
        "directory",
        None,
        "Where finished parts are kept: a call that was killed goes on from "
        "them when it is made again.",
        flag_values=values,
        module_name=OUTPUT,
    )


def define_output(
    values: flags.FlagValues, text: str, required: bool = False
) -> None:
    """`--output`, `--overwrite` and `--quiet`."""
    here: dict[str, Any] = {"flag_values": values, "module_name": OUTPUT}
    flags.DEFINE_string("output", None, text, required=required, **here)
    define_overwrite(values, "Replace the output that is there.")
    define_quiet(values)


def define_overwrite(values: flags.FlagValues, text: str) -> None:
    """`--overwrite`."""
    flags.DEFINE_bool(
        "overwrite", False, text, flag_values=values, module_name=OUTPUT
    )


def define_quiet(values: flags.FlagValues) -> None:
    """`--quiet`."""
    flags.DEFINE_bool(
        "quiet",
        False,
        "No progress bars, no word but warnings and errors.",
        flag_values=values,
        module_name=OUTPUT,
    )
