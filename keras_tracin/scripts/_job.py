"""Builds a model, its data, its run and a method from flags.

Synopsis:

    with open_job(values) as job:
        test = job.queries()    # and job.model, job.run, job.task.train()
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import flags

from keras_tracin.data.batches import join
from keras_tracin.data.examples import open_examples, select
from keras_tracin.data.with_ids import with_ids
from keras_tracin.engine.distribution import NAMED, Strategy
from keras_tracin.projection import (
    FactoredProjection,
    GaussianProjection,
    Projection,
    TensorSketch,
)
from keras_tracin.runs import TrainingRun, run_weights, select_checkpoints
from keras_tracin.scripts._files_task import FilesTask, given_files
from keras_tracin.scripts._flags import INDEXED_METHODS, METHODS_WITH
from keras_tracin.scripts._program import UsageError
from keras_tracin.scripts.task import Task, load_task

_BATCH = 256
_LOADS_CHECKPOINTS = ("tracin", "trak")
_PROJECTIONS: dict[str, Any] = {
    "tensor_sketch": TensorSketch,
    "gaussian": GaussianProjection,
    "factored": FactoredProjection,
}


@dataclasses.dataclass(frozen=True)
class Job:
    """Flags, task, model and run of a program.

    Attributes:
        values: parsed flags.
        task: the task that `--task` names, or that files describe.
        model: the task's model.
        run: the run with the selected checkpoints, or None.
        strategy: the strategy of `--strategy`, or None.
    """

    values: flags.FlagValues
    task: Task | FilesTask
    model: keras.Model
    run: TrainingRun | None
    strategy: Strategy | None

    @property
    def verbose(self) -> int:
        """Value of the `verbose` argument of library calls."""
        return 0 if self.values.quiet else 1

    def queries(self) -> Any:
        """The task's queries, or those that `--queries` names.

        Raises:
            UsageError: if no query has such an id.
        """
        test = self.task.test()
        if self.values.queries is None:
            return test
        return select_queries(test, self.values.queries)

    def call_options(self, call: str) -> dict[str, Any]:
        """Keyword arguments of a call of the method.

        Args:
            call: name of the call, such as "top_k". Every call has its own
                subdirectory of `--directory`.
        """
        values = self.values
        options: dict[str, Any] = {"verbose": self.verbose}
        if values.method == "representer" and call != "self_influence":
            target = values.target
            options["target"] = int(target) if target.isdigit() else target
        if values.directory:
            options["directory"] = Path(values.directory) / call
        return options

    def projection(self) -> Projection:
        """The projection of `--projection`, `--dim` and `--seed`."""
        kind = self.values.projection or "tensor_sketch"
        return _PROJECTIONS[kind](self.values.dim, seed=self.values.seed)

    def options(self, *names: str) -> dict[str, Any]:
        """Arguments of these names, as flags and the task give them."""
        values = self.values.flag_values_dict()
        options = {
            "loss": self.task.option("loss"),
            "class_weight": self.task.option("class_weight"),
            "strategy": self.strategy,
            **{k: values.get(k) for k in ("layers", "memory_limit")},
            **{
                k: values.get(k) for k in ("query_loss", "weights", "normalize")
            },
        }
        return {name: options[name] for name in names}


@contextlib.contextmanager
def open_job(
    values: flags.FlagValues, at_end: bool = False, compare: bool = True
) -> Iterator[Job]:
    """Opens the job of these flags, with the weights that it needs loaded.

    Args:
        values: parsed flags.
        at_end: If true, the model gets the weights of the run's last
            checkpoint also for methods that load each checkpoint themselves.
        compare: whether data in files are refused if they have other losses
            than those that the run recorded.

    Raises:
        UsageError: if flags do not go together.
        ValueError, TypeError: if the task or the run is at fault.
    """
    method = values.flag_values_dict().get("method", "tracin")
    check_flags(values, method)
    keras.utils.set_random_seed(values.seed)
    task = open_task(values)
    strategy = NAMED[values.strategy]() if values.strategy else None
    run = select_run(values, task)
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = task.model()
    if isinstance(task, FilesTask):
        task.settle(compare)
    with contextlib.ExitStack() as stack:
        if run is not None and (at_end or method not in _LOADS_CHECKPOINTS):
            stack.enter_context(run_weights(model))(run[-1])
        yield Job(values, task, model, run, strategy)


def open_task(values: flags.FlagValues) -> Task | FilesTask:
    """The task that `--task` names, or that `--model` and `--data` describe.

    Raises:
        UsageError: if there are both, or neither.
        ValueError: if the task cannot be loaded.
    """
    files = given_files(values)
    if values.task is None and not files:
        raise UsageError(
            "Expected the model and its data: --task=MODULE, or "
            "--model=FILE.keras --data=FILES. Received neither."
        )
    if values.task is not None and files:
        raise UsageError(
            "A --task describes the model and its data, and so do --model and "
            f"--data. Received: --task and {', '.join(files)}. Leave out "
            "one of them."
        )
    return load_task(values.task) if not files else FilesTask(values)


def check_flags(values: flags.FlagValues, method: str) -> None:
    """Refuses flags that the method does not take.

    Raises:
        UsageError: naming the flag and the methods that take it.
    """
    for flag, methods in METHODS_WITH.items():
        if flag in values and values[flag].present and method not in methods:
            others = " or ".join(f"--method={name}" for name in methods)
            raise UsageError(
                f"--{flag} is for {others}. Received: --method={method}."
            )
    flag_values = values.flag_values_dict()
    sketched = (
        "index" in flag_values or flag_values.get("projection") is not None
    )
    sketched = (
        sketched or flag_values.get("solver") == "sketch" or method == "trak"
    )
    if "dim" in flag_values and values["dim"].present and not sketched:
        raise UsageError("--dim is for --projection or --solver=sketch.")


def check_indexed(method: str) -> None:
    """Refuses a method whose scores an index cannot hold.

    Raises:
        UsageError: naming the methods with an index.
    """
    if method not in INDEXED_METHODS:
        others = " or ".join(f"--method={name}" for name in INDEXED_METHODS)
        raise UsageError(
            f"There is no index of --method={method}. Choose {others}."
        )


def select_run(
    values: flags.FlagValues, task: Task | FilesTask
) -> TrainingRun | None:
    """Selects the checkpoints of `--run` by `--checkpoints` or `--epochs`.

    Raises:
        UsageError: if an epoch has no checkpoint, or if both `--epochs` and
            `--checkpoints` are given.
        ValueError: if there is no run in the directory, or it is damaged.
    """
    source = values.run if values.run is not None else task.option("run")
    if source is None:
        if values.checkpoints or values.epochs:
            raise UsageError("--checkpoints and --epochs need a --run.")
        return None
    run = source if isinstance(source, TrainingRun) else TrainingRun(source)
    if not len(run):
        raise ValueError(f"{run!r}: train for an epoch, or use `save_freq=`.")
    if values.checkpoints and values.epochs:
        raise UsageError("Give --checkpoints or --epochs, not both.")
    if values.checkpoints:
        verbose = 0 if values.quiet else 1
        return select_checkpoints(run, values.checkpoints, verbose=verbose)
    return _select_epochs(run, values.epochs) if values.epochs else run


def _select_epochs(run: TrainingRun, selected: Sequence[int]) -> TrainingRun:
    epochs = [checkpoint.epoch for checkpoint in run]
    missing = sorted(set(selected) - set(epochs))
    if missing:
        there = ", ".join(map(str, sorted(set(epochs))))
        raise UsageError(
            f"--epochs names {missing[0]}, which has no checkpoint in {run!r}; "
            f"there are checkpoints of epochs {there}."
        )
    return run.select([i for i, e in enumerate(epochs) if e in selected])


def select_queries(test: Any, names: Sequence[str]) -> Any:
    """The test examples with these ids, as a dataset that carries the ids.

    Raises:
        UsageError: naming an id that no test example has.
    """
    examples = open_examples(test, "test")
    ids = np.concatenate([batch.ids for batch in examples.batches(_BATCH)])
    id_of = {str(name): name for name in ids.tolist()}
    missing = [name for name in names if name not in id_of]
    if missing:
        raise UsageError(
            f"--queries names '{missing[0]}', which none of the task's "
            f"{len(ids):,} test examples has as its id: these are "
            f"{', '.join(list(id_of)[:3])}, ...."
        )
    selected = np.array([id_of[name] for name in names])
    batch = join(list(select(examples, selected).batches(_BATCH)))
    return with_ids(batch.data, batch.ids).batch(_BATCH)
