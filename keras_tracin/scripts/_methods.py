"""Creates the method that `--method` names.

Synopsis:

    method = create_method(job)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from absl import flags

from keras_tracin.curvature.solvers import CG, EKFAC, Arnoldi, Exact, LiSSA
from keras_tracin.curvature.solvers.randomized_sketch import RandomizedSketch
from keras_tracin.methods.attributor import Attributor
from keras_tracin.methods.influence import InfluenceFunctions
from keras_tracin.methods.representer import RepresenterPoints
from keras_tracin.methods.tracin import TracIn
from keras_tracin.methods.trak import TRAK
from keras_tracin.runs import TrainingRun
from keras_tracin.scripts._job import Job
from keras_tracin.scripts._program import UsageError


def create_method(job: Job, indexed: bool = False) -> Attributor:
    """Creates the method of a job.

    Args:
        job: the job.
        indexed: whether it is for an index, which projects by itself, and has
            influence functions at one set of weights, those of the model.

    Raises:
        UsageError: if a flag that the method needs is missing.
        ValueError, TypeError: raised by the method.
    """
    values = job.values
    if values.method == "tracin":
        return _tracin(job, not indexed and values.projection is not None)
    if values.method == "influence":
        return _influence(job, None if indexed else _influence_run(job))
    makers: dict[str, Callable[[Job], Attributor]] = {
        "representer": _representer,
        "trak": _trak,
    }
    return makers[values.method](job)


def _require_run(job: Job, method: str) -> TrainingRun:
    if job.run is None:
        raise UsageError(
            f"{method} needs a training run: --run=DIRECTORY, or a `run` of "
            "the task. `kt.TracInCheckpoint(DIRECTORY)` records one in `fit`."
        )
    return job.run


def _tracin(job: Job, projected: bool) -> TracIn:
    values = job.values
    aware = values.optimizer_aware
    if values.factored and not aware:
        raise UsageError(
            "--factored says how --optimizer_aware measures gradients. "
            "Received it alone; give both, or neither."
        )
    return TracIn(
        job.model,
        job.task.train(),
        _require_run(job, "TracIn"),
        projection=job.projection() if projected else None,
        optimizer_aware="factored" if values.factored else aware,
        **job.options(
            "normalize",
            "weights",
            "query_loss",
            "loss",
            "class_weight",
            "layers",
            "strategy",
            "memory_limit",
        ),
    )


def _trak(job: Job) -> TRAK:
    values = job.values
    projects = values["dim"].present or values.projection is not None
    return TRAK(
        job.model,
        job.task.train(),
        _require_run(job, "TRAK"),
        projection=job.projection() if projects else None,
        damping=1.0 if values.damping is None else values.damping,
        **job.options("loss", "layers", "strategy", "memory_limit"),
    )


def _influence_run(job: Job) -> TrainingRun | None:
    """The checkpoints that were asked for, or the last one alone."""
    values = job.values
    if job.run is None or values.checkpoints or values.epochs:
        return job.run
    return job.run[-1:]


def _influence(job: Job, run: TrainingRun | None) -> InfluenceFunctions:
    values = job.values
    if values.curvature == "ekfac" and values.solver is not None:
        raise UsageError("--curvature=ekfac takes no --solver.")
    return InfluenceFunctions(
        job.model,
        job.task.train(),
        run=run,
        damping="auto" if values.damping is None else values.damping,
        curvature=values.curvature,
        solver=_solver(values),
        relative=values.relative,
        **job.options(
            "query_loss",
            "loss",
            "class_weight",
            "layers",
            "strategy",
            "memory_limit",
        ),
    )


def _solver(values: flags.FlagValues) -> Any:
    return {
        None: lambda: None,
        "cg": lambda: CG(),
        "ekfac": lambda: EKFAC(),
        "exact": lambda: Exact(),
        "lissa": lambda: LiSSA(seed=values.seed),
        "arnoldi": lambda: Arnoldi(seed=values.seed),
        "sketch": lambda: RandomizedSketch(values.dim, seed=values.seed),
    }[values.solver]()


def _representer(job: Job) -> RepresenterPoints:
    values, layers = job.values, job.values.layers or []
    if len(layers) > 1:
        raise UsageError(
            "--method=representer explains one layer. Received: "
            f"--layers={','.join(layers)}."
        )
    return RepresenterPoints(
        job.model,
        job.task.train(),
        l2=values.l2,
        layer=layers[0] if layers else None,
        method=values.representer,
        verbose=job.verbose,
        **job.options("loss", "strategy", "memory_limit"),
    )
