"""TRAK: influence in a kernel machine made of projected gradients.

At a checkpoint m a model is taken for linear in φ(z) = G∇f(z), the projected
gradient of its output f: log(p / (1 - p)) of the label in a classification, the
prediction in a regression. With Φ of all training examples,

    τ(z, z') = [mean_m φ(z')ᵀ (ΦᵀΦ + λI)⁻¹ φ(z)] · [mean_m Q(z)],

where Q = -∂ℓ/∂f, which is 1 - p for margins: one Newton step of the linear
model, with the means over checkpoints, of one training or of several, taken
apart (Park et al. 2023, sec. 3 and eq. 17). In a regression each kernel is also
multiplied with the query's own -∂ℓ/∂f, so that positive means proponent. A
sequence has a margin m_t at each position: f = Σ_t w_t m_t and
Q = Σ_t w_t (1 - p_t), with its weights w_t normalised.

LoGra is the same of f = -ℓ, which needs no Q, with both sides of each layer
projected and a kernel for each layer (Choe et al. 2024).

Synopsis:

    trak = kt.TRAK(model, train, ["runs/a", "runs/b"])
    trak.influence(test)         # Attribution [num_test, num_train]
    trak.top_k(test, k=10)       # TopK
    trak.self_influence()        # SelfInfluence
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.curvature.operators import check_damping
from keras_tracin.data.batches import Batch, content_digest
from keras_tracin.engine.call import Call
from keras_tracin.engine.chunks import Chunk
from keras_tracin.engine.distribution import Strategy
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.execution import Execution
from keras_tracin.engine.measures import Numbers
from keras_tracin.engine.passes import Pass, unscaled
from keras_tracin.engine.queries import Queries
from keras_tracin.engine.visits import Visit, Weights, digest_of
from keras_tracin.gradients.capture import LossAndNumbers
from keras_tracin.losses.model_outputs import HELP, PULL, model_output
from keras_tracin.losses.output_kinds import SAMPLE
from keras_tracin.methods.base import Method
from keras_tracin.methods.indexable import Keep, RowRecipe
from keras_tracin.methods.kernel_rows import kernel_rows
from keras_tracin.methods.trak_kernels import Kernels, features_pass, joined
from keras_tracin.models.descriptions import describe
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.models.kinds import check_is_model
from keras_tracin.projection import Projection, TensorSketch
from keras_tracin.runs import TrainingRun, check_checkpoint

_DIGESTED = 256  # examples at a time

Run = TrainingRun | str | os.PathLike


class TRAK(Method):
    """Influence of training examples by TRAK.

    Example:
    ```python
    trak = kt.TRAK(model, train, ["runs/a", "runs/b", "runs/c"])
    trak.top_k(test, k=10).proponents.ids
    ```

    All checkpoints of all runs count alike. Ten of one training, evenly spaced,
    help about as much as five trainings, and both together most. The first
    call passes over the training examples once, to make the kernels, which
    take `8 · dim²` bytes for each checkpoint and are kept. So are the examples'
    features, if they take no more than a quarter of the memory; else they are
    computed anew for each block of queries. The model runs in inference mode
    and has its own weights back after every call.

    Scores rank; their size is that of f in a linear model. A training
    example's sample weight multiplies its part in ΦᵀΦ and its Q.
    `self_influence` is the leverage φᵀ(ΦᵀΦ + λI)⁻¹φ times Q: large for an
    example that is unlike the others and not fitted well.

    Args:
        model: the trained model, compiled with its loss.
        train: the training examples as `model.fit` took them, as in `TracIn`.
        run: a `TrainingRun` or its directory, or a list of several: trainings
            of the same architecture, from other seeds or on other subsets.
        projection: the projection that makes φ. The larger its `dim`, the
            better, up to a part of the number of examples;
            `kt.TensorSketch(2048)` by default. With
            `kt.FactoredProjection(..., joint=False)` each layer has a kernel
            of its own.
        damping: λ, as a multiple of the mean squared length of φ, so that
            it means the same whatever the model, its data and `dim`: 1 was
            best, or nearly, wherever it was measured (benchmarks). 0 is
            the published form, for which `dim` has to be well below the
            number of examples.
        output: "margin" or "prediction", if the loss does not say which; or
            "loss" for the gradients of the loss itself, as LoGra.
        loss: used in place of the compiled loss; anything `compile` takes.
        layers: names or layers to restrict the gradients to.
        strategy: a `tf.distribute.Strategy` under which the model was built.
        jit_compile: whether XLA compiles the steps, as in `TracIn`.
        memory_limit: bytes the computation may use, beside the data and the
            kernels; half of what is free by default.

    Raises:
        TypeError: for something that cannot serve as a projection.
        ValueError: if `damping` is negative, if runs hold no checkpoint, if
            the loss does not say what to differentiate, if the model says
            more than one thing of an example, or if data, runs and model do
            not fit one another.
    """

    title = "TRAK"

    @exclusive_access
    def __init__(
        self,
        model: keras.Model,
        train: Any,
        run: Run | Sequence[Run],
        *,
        projection: Projection | None = None,
        damping: float = 1.0,
        output: str | None = None,
        loss: Any = None,
        layers: str | keras.Layer | Sequence[str | keras.Layer] | None = None,
        strategy: Strategy | None = None,
        jit_compile: bool | str = "auto",
        memory_limit: int | None = None,
    ):
        check_is_model(model)
        check_damping(damping)
        self._damping = damping
        projection = TensorSketch(2048) if projection is None else projection
        self.checkpoints = _equal_shares(run)
        self.engine = Engine(
            model,
            train,
            loss=loss,
            layers=layers,
            projection=projection,
            output=LossAndNumbers(
                lambda *batch: self._output.value(*batch),
                lambda *batch: self._output.numbers(*batch),
            ),
            execution=Execution.of(strategy, jit_compile, memory_limit),
        )
        x = self.engine.train.first(SAMPLE).x
        self._output = model_output(model, loss, output, x)
        # Of all training examples, also where `among` scores some of them.
        self._kernels = Kernels(self.engine, self.checkpoints, damping)
        for checkpoint in self.checkpoints:
            if checkpoint is not None:
                check_checkpoint(model, checkpoint)

    @property
    def settings(self) -> dict[str, Any]:
        """Options that scores depend on, as JSON, without reading any data."""
        return {
            "projection": describe(self.engine.projection),
            "damping": self._damping,
            "output": self._output.kind,
        }

    @property
    def unit_options(self) -> dict[str, Any]:
        """Options on which the unit of scores depends, by name."""
        return {"output": self._output.kind}

    def job(self, test: Any) -> dict[str, Any]:
        """All that scores depend on, as JSON, for the parts on disk.

        Args:
            test: the queries, if there are any.
        """
        # All training examples have a part in the kernels.
        train = self._kernels.engine.train.batches(_DIGESTED)
        return {**super().job(test), "train": content_digest(train)}

    def index_rows(
        self, projection: Projection | None, keep: Keep
    ) -> RowRecipe:
        """Rows and vectors; `projection` and `keep` as in `Indexable`."""
        return kernel_rows(
            self.engine,
            self.checkpoints,
            self._kernels,
            lambda: self.fit(Call(verbose=0)),
            self.settings,
            more=self.more_numbers,
            projection=projection,
            keep=keep,
        )

    def fit(self, call: Call) -> None:
        """Makes the kernels, unless that has been done.

        Args:
            call: the call that needs them.
        """
        self._kernels.fit(call)

    def fitting_pass(self) -> Pass | None:
        """The pass that `fit` still has to make, for the forecast."""
        return None if self._kernels.fitted else self._kernels.fitting_pass()

    def trial_pass(self, queries: Queries) -> Pass:
        """A pass that takes as long as `query_pass`, but needs no kernels.

        Args:
            queries: the queries.
        """
        return dataclasses.replace(
            self._query_pass(queries),
            prepare=lambda visit: tf.zeros(
                [len(queries.ids), self._dim], self._kernels.dtype
            ),
            rescale=unscaled,
        )

    def query_pass(self, queries: Queries) -> Pass:
        """The pass that scores a block of queries.

        Args:
            queries: the queries.
        """
        work = self._query_pass(queries)
        if not self._kernels.holds_features:
            return work

        def recall(visit, chunk, rows, arguments):
            solved = arguments[0].numpy()
            features, _ = self._kernels.recall(visit, chunk, rows, self.engine)
            return visit.rate * (solved @ features)

        # The step only tells the plan what it may need.
        step = self.engine.train_steps.features
        return dataclasses.replace(work, step=step, recall=recall)

    def _query_pass(self, queries: Queries) -> Pass:
        """The pass that makes all features anew."""
        return Pass(
            self.title,
            queries.steps.train.feature_products,
            self.checkpoints,
            queries,
            prepare=lambda visit: self._solve(queries, visit),
            rescale=self._multiply_with_pulls,
        )

    @property
    def _dim(self) -> int:
        return sum(self._kernels.widths)

    @property
    def bytes_per_query(self) -> int:
        """Bytes that are held for each query, in one copy and another."""
        return 16 * self._dim

    def self_pass(self) -> Pass:
        """The pass that scores φᵀ(ΦᵀΦ + λI)⁻¹φ times Q."""

        def measure(visit, features, numbers):
            solved = self._kernels.solve(int(visit.position), features)
            return numbers[:, HELP] * np.sum(features * solved, axis=1)

        def rescale(leverages: np.ndarray, chunk: Chunk) -> np.ndarray:
            mean = np.mean(leverages, axis=0)
            return (mean * self._kernels.pulls_of(chunk, self.engine)).astype(
                np.float32
            )

        work = features_pass(
            self.title, self.engine, self.checkpoints, measure, rescale
        )
        if not self._kernels.holds_features:
            return work

        def recall(visit, chunk, rows, arguments):
            return self._kernels.recall(visit, chunk, rows, self.engine)

        return dataclasses.replace(work, recall=recall)

    def more_numbers(self, batch: Batch, known: Numbers) -> Numbers:
        """The derivatives of losses by outputs, which scores are made of.

        Args:
            batch: a few training examples.
            known: their outputs, losses and gradients as numbers.
        """
        x, y, *weights = batch.data
        weight = weights[0] if weights else None
        numbers = self._output.numbers(y, self.model(x, training=False), weight)
        columns = {"pulls": PULL, "weights": HELP}
        return {name: numbers[:, at].numpy() for name, at in columns.items()}

    def _solve(self, queries: Queries, visit: Visit) -> tf.Tensor:
        """`(ΦᵀΦ + λI)⁻¹ φ(z')` of some queries, times what it helps them."""
        rows = []
        for batch in queries.batches:
            sketches, numbers = queries.steps.query.features(
                batch.data, visit.position
            )
            features = joined(sketches)
            if not np.isfinite(features).all():
                raise self.engine.not_finite(None, queries, visit.checkpoint)
            solved = self._kernels.solve(int(visit.position), features)
            solved *= numbers.numpy()[:, HELP, np.newaxis]
            rows.append(solved.astype(features.dtype))
        return tf.constant(np.concatenate(rows))

    def _multiply_with_pulls(
        self, scores: np.ndarray, chunk: Chunk
    ) -> np.ndarray:
        """Multiplies the columns with the training examples' mean Q."""
        return scores * self._kernels.pulls_of(chunk, self.engine).astype(
            scores.dtype
        )

    def _describe_checkpoints(self) -> list:
        return [digest_of(one) for one in self.checkpoints if one is not None]


def _equal_shares(run: Run | Sequence[Run]) -> Weights:
    """All checkpoints of one run, or of several, with equal shares."""
    runs = [run] if isinstance(run, Run) else list(run)
    checkpoints = [checkpoint for one in runs for checkpoint in _open(one)]
    if not checkpoints:
        raise ValueError(
            "TRAK needs a checkpoint. Received: "
            f"{'an empty list of runs' if not runs else run!r}."
        )
    if len(set(checkpoints)) < len(checkpoints):
        raise ValueError(
            "A checkpoint would count more than once. Received the same run "
            "twice, or runs that overlap."
        )
    return dict.fromkeys(checkpoints, 1.0 / len(checkpoints))


def _open(run: Run) -> Iterator:
    return iter(run if isinstance(run, TrainingRun) else TrainingRun(run))
