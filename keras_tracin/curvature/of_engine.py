"""The curvature of an engine's objective, and the work on it as it is shown.

Synopsis:

    operator = curvature_of(engine, "gauss_newton", loss=None, penalty=1.0)
    with announced("fit of EK-FAC", "SOURCE", engine, operator, verbose=1):
        operator.matmat(vectors)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from keras_tracin.curvature.objective import GaussNewton, Hessian
from keras_tracin.engine.call import Call
from keras_tracin.engine.chunks import Sink
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.passes import norms_pass
from keras_tracin.engine.progress import Progress
from keras_tracin.engine.sweep import sweep
from keras_tracin.engine.visits import Weights
from keras_tracin.losses.output_kinds import SAMPLE, outputs_of
from keras_tracin.losses.outputs import check_consistent
from keras_tracin.models.state import preserved


def curvature_of(
    engine: Engine, curvature: str, loss: Any, penalty: float
) -> Hessian | GaussNewton:
    """The curvature at the weights that the model has, undamped.

    Args:
        engine: the model, and the training examples of the objective.
        curvature: "hessian"; anything else is the Gauss-Newton matrix.
        loss: used in place of the compiled loss, as the engine was given it.
        penalty: factor of the weight regularisers beside the mean loss.
    """
    execution = engine.execution
    groups = engine.train_steps.variables
    arguments = (
        engine.model,
        engine.loss,
        engine.train,
        tuple(variable for group in groups for variable in group),
        penalty,
        execution.memory,
        execution.strategy,
        execution.jit_compile,
    )

    def gauss_newton() -> GaussNewton:
        x = engine.train.first(SAMPLE).x
        outputs = outputs_of(engine.model, loss, x)
        check_consistent(outputs)
        return GaussNewton(*arguments, outputs.with_logits, engine.layers)

    if curvature == "hessian":
        return Hessian(*arguments, gauss_newton=gauss_newton)
    return gauss_newton()


@contextlib.contextmanager
def announced(
    what: str,
    title: str,
    engine: Engine,
    operator: Hessian | GaussNewton,
    verbose: int,
) -> Iterator[None]:
    """Shows a progress bar of the batches that are used in a block.

    Args:
        what: the work.
        title: name of the method.
        engine: the model, which keeps its state.
        operator: the curvature, whose batches are counted.
        verbose: 0 for silence.
    """
    progress = Progress(_Work(what), verbose, title)
    with preserved(engine.model), operator.held.watched(progress):
        yield


def check_gradients(title: str, engine: Engine, weights: Weights) -> None:
    """Raises ValueError if an example's gradient is NaN or infinite.

    Args:
        title: name of the method.
        engine: the model and its training examples.
        weights: the weights to look at.
    """
    norms = norms_pass(title, engine.train_steps, weights)
    sweep(engine, norms, Sink(lambda *_: None), Call(verbose=0))


class _Work:
    """Work of an unknown number of steps, as it is announced."""

    steps = None

    def __init__(self, what: str):
        self._what = what

    def __str__(self) -> str:
        return self._what
