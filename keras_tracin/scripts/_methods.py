"""Creates the method that `--method` names.

Synopsis:

    method = create_method(job, projected=True)
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


def create_method(job: Job, projected: bool = True) -> Attributor:
    """Creates the method of a job.

    Args:
        job: the job.
        projected: If true, TracIn uses the `--projection`.

    Raises:
        UsageError: if a flag that the method needs is missing.
        ValueError, TypeError: raised by the method.
    """
    values = job.values
    if values.method == "tracin":
        return _tracin(job, projected and values.projection is not None)
    makers: dict[str, Callable[[Job], Attributor]] = {
        "influence": _influence,
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


def _influence(job: Job) -> InfluenceFunctions:
    values = job.values
    if values.curvature == "ekfac" and values.solver is not None:
        raise UsageError("--curvature=ekfac takes no --solver.")
    return InfluenceFunctions(
        job.model,
        job.task.train(),
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
