"""The preflight: tries each stage of a job before the job."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.check import structure
from keras_tracin.check.at_rest import HalfWeights
from keras_tracin.check.job import check_gradients
from keras_tracin.check.reading import reading_findings
from keras_tracin.check.report import (
    SEVERITIES,
    CheckReport,
    Finding,
    LayerReport,
)
from keras_tracin.check.training_loss import TrainingLoss, reports_compiled_loss
from keras_tracin.data.preprocessing import open_for_model
from keras_tracin.engine.distribution import Strategy
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.execution import Execution
from keras_tracin.engine.forecast import forecast_plainly
from keras_tracin.engine.padding import open_padded
from keras_tracin.engine.planning import Plan
from keras_tracin.engine.visits import PRESENT_WEIGHTS, Weights, name_of
from keras_tracin.losses.output_kinds import SAMPLE
from keras_tracin.losses.per_example import per_example_loss
from keras_tracin.methods.rates import checkpoint_rates
from keras_tracin.methods.training_notes import check_training
from keras_tracin.models.compiled import compiled_loss
from keras_tracin.models.errors import brief
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.models.kinds import check_is_model
from keras_tracin.models.state import preserved
from keras_tracin.runs import TrainingRun, run_weights


@exclusive_access
def check(
    model: keras.Model,
    train: Any,
    run: TrainingRun | str | os.PathLike | None = None,
    test: Any = None,
    *,
    loss: Any = None,
    class_weight: Mapping[int, float] | None = None,
    layers: str | keras.Layer | Sequence[str | keras.Layer] | None = None,
    strategy: Strategy | None = None,
    memory_limit: int | None = None,
    max_examples: int | None = 10_000,
    verbose: int = 1,
) -> CheckReport:
    """Checks that a model, its data and its run are ready for attribution.

    It checks the layers and how their gradients are computed; the loss; the
    data, read twice, for order, ids, labels and NaN; every checkpoint of the
    run, for damage, fit, NaN and learning rates; the losses that the run
    recorded, which the data should reproduce; a few examples alone and in a
    batch, whose gradients should agree; and a small part of the computation,
    for memory and time. The methods refuse the same faults, but some of them
    only after hours of work.

    Example:
    ```python
    report = kt.check(model, train, "runs/digits", test)
    if report.ok: ...
    ```

    Args:
        model: the built and compiled model. It is left as it was.
        train: the training data, as `model.fit` takes it.
        run: the training run, or its directory. Without it, the present
            weights of the model are checked.
        test: the queries. Without them, the plan is for self-influence.
        loss: used in place of the compiled loss.
        class_weight: the `class_weight` given to `fit`.
        layers: names or layers to restrict the gradients to.
        strategy: the `tf.distribute.Strategy` to spread the work over.
        memory_limit: bytes the computation may use.
        max_examples: number of examples to read from each data set; None
            for all.
        verbose: 0 to print nothing.

    Returns:
        The `CheckReport` that is printed. What is wrong is in its `errors`;
        nothing is raised.

    Raises:
        TypeError: if `model` is no model of Keras 3.
    """
    check_is_model(model)
    options = {
        "loss": loss,
        "class_weight": class_weight,
        "layers": layers,
        "execution": Execution.of(strategy, memory_limit=memory_limit),
    }
    preflight = _Preflight(model, options, max_examples)
    preflight.look(train, run, test)
    report = preflight.report()
    if verbose:
        print(report)
    return report


class _Preflight:
    """Collects findings; a stage that fails is one, and the next is tried."""

    def __init__(
        self,
        model: keras.Model,
        options: dict[str, Any],
        max_examples: int | None,
    ):
        self._model, self._options, self._max_examples = (
            model,
            options,
            max_examples,
        )
        self._findings: list[Finding] = []
        self._layers: tuple[LayerReport, ...] = ()
        self._left_out: dict[str, int] = {}
        self._plan: Plan | None = None
        self._run: TrainingRun | None = None

    def report(self) -> CheckReport:
        findings = sorted(
            self._findings, key=lambda f: SEVERITIES.index(f.severity)
        )
        return CheckReport(
            self._layers,
            self._left_out,
            tuple(findings),
            self._plan,
        )

    def look(self, train: Any, run: Any, test: Any) -> None:
        """Tries every stage that can be tried."""
        with contextlib.ExitStack() as stack:
            if self._model.built:
                stack.enter_context(preserved(self._model))
            self._look(train, run, test)

    def _look(self, train: Any, run: Any, test: Any) -> None:
        engine = examples = rates = None
        with self._stage("train"):
            examples = open_for_model(self._model, train)
        with self._stage("run"):
            rates = self._rates(run)
        if examples is not None:
            with self._stage("model"):
                engine = Engine(
                    self._model,
                    train,
                    **self._options,
                    checkpoints=rates or PRESENT_WEIGHTS,
                )
        if self._model.built:
            with self._stage("model"):
                x = None if examples is None else examples.first(SAMPLE).x
                self._check_model(engine, run is not None, x)
            for name, data in (("train", train), ("test", test)):
                if data is not None:
                    with self._stage(name):
                        self._check_data(data, name)
        with self._stage("run"):
            rates = self._loadable(rates or {})
        if engine is not None and self._run is not None:
            with self._stage("run"):
                check_training(self._run, engine)
            if rates:
                with self._stage("train"):
                    self._compare_losses(engine, self._run)
        if engine is not None and rates:
            with self._stage("job"):
                self._try_job(engine, rates, test)

    @contextlib.contextmanager
    def _stage(self, topic: str) -> Iterator[None]:
        """Turns errors and warnings into findings."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                yield
            except (ValueError, TypeError, tf.errors.OpError) as error:
                self._add_finding("error", topic, brief(error))
        for warning in caught:
            if issubclass(warning.category, UserWarning):
                self._add_finding("warning", topic, str(warning.message))

    def _add_finding(self, severity: str, topic: str, message: str) -> None:
        """Adds a finding, unless an earlier stage had the same."""
        known = [finding.message for finding in self._findings]
        # Examples at fault have been named already, all of them.
        is_of_data = topic == "job" and "examples with ids" in message
        has_faults = any(
            f.severity == "error" and "examples with ids" in f.message
            for f in self._findings
        )
        if message not in known and not (is_of_data and has_faults):
            self._findings.append(Finding(severity, topic, message))

    def _check_model(
        self, engine: Engine | None, has_run: bool, x: Any
    ) -> None:
        model, loss = self._model, self._options["loss"]
        self._findings += structure.model_findings(model)
        if loss is not None or compiled_loss(model) is not None:
            self._findings.append(structure.loss_finding(model, loss))
        if x is not None:
            self._findings += structure.output_findings(model, loss, x)
        broken = structure.broken_weights(model)
        if broken:  # a run has other weights
            self._add_finding(
                "warning" if has_run else "error", "model", broken
            )
        layers = self._options["layers"]
        with engine.updated.trainable() if engine else contextlib.nullcontext():
            self._layers = structure.covered_layers(model, layers)
            self._left_out = structure.left_out(model, layers)
        if engine is not None and engine.shares is not None:
            self._add_finding(
                "note",
                "run",
                "Steps of the run updated different variables, or at "
                "different rates; TracIn weights each variable by its own.",
            )

    def _check_data(self, data: Any, name: str) -> None:
        loss = None
        with self._stage("model"):
            loss = per_example_loss(
                self._model,
                self._options["loss"],
                self._options["class_weight"],
            )
        examples = open_padded(self._model, data, name, loss)
        if examples.note:
            self._add_finding("note", name, examples.note)
        self._findings += reading_findings(
            examples, self._model, loss, self._max_examples
        )

    def _rates(self, run: Any) -> Weights:
        """Learning rates of the checkpoints that scores use."""
        if run is None:
            return PRESENT_WEIGHTS
        if not isinstance(run, TrainingRun):
            run = TrainingRun(run)
        self._run = run
        rates = checkpoint_rates(run)
        self._add_finding(
            "note",
            "run",
            f"{_describe(run)}, of which scores use {len(rates)}.",
        )
        if len(rates) == 1:
            self._add_finding(
                "note",
                "run",
                "A single checkpoint shows one moment of training. Use "
                "several, from where the loss falls.",
            )
        return rates

    def _loadable(self, rates: Weights) -> Weights:
        """The rates of checkpoints that load; the others become findings."""
        if not self._model.built:
            return {}
        if rates is PRESENT_WEIGHTS:
            return rates
        usable = {}
        at_rest = HalfWeights(self._model)
        with run_weights(self._model) as load:
            for checkpoint, rate in rates.items():
                with self._stage("run"):
                    if checkpoint is not None:
                        load(checkpoint)
                        at_rest.look()
                    usable[checkpoint] = rate
        finding = at_rest.finding()
        if finding is not None:
            self._findings.append(finding)
        return usable

    def _compare_losses(self, engine: Engine, run: TrainingRun) -> None:
        """Compares the losses that the run recorded with those of the data."""
        if self._options["loss"] is not None or not reports_compiled_loss(
            self._model
        ):
            return  # `fit` reported another loss
        loss = TrainingLoss(
            self._model,
            engine.train,
            self._options["class_weight"],
            self._max_examples,
        )
        self._findings += loss.findings(run)

    def _try_job(self, engine: Engine, rates: Weights, test: Any) -> None:
        """Checks gradients and plans the job, at the last checkpoint."""
        with run_weights(self._model) as load:
            checkpoint = list(rates)[-1]
            if checkpoint is not None:
                load(checkpoint)
            with engine.updated.visiting(checkpoint):
                check_gradients(engine, name_of(checkpoint))
            self._plan = forecast_plainly(engine, rates, test)


def _describe(run: TrainingRun) -> str:
    """Number of checkpoints, and the epochs that they are from."""
    count = len(run)
    words = f"{count} checkpoint{'' if count == 1 else 's'}"
    if not count or run.directory is None:
        return words
    first, last = run[0].epoch, run[-1].epoch
    span = f"epoch {first}" if first == last else f"epochs {first}-{last}"
    return f"{words} of {span}"
