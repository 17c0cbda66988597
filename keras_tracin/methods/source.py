"""SOURCE: training unrolled approximately, segment by segment.

    score(z, z') = Σ_l ∇ℓ(w_T, z')ᵀ S_L ⋯ S_{l+1} (1/n) H_l⁻¹ (I − S_l) ∇ℓ_l(z)

with S_l = exp(−η_l K_l H_l), for segments l of a recorded run with K_l steps at
rates of mean η_l; H_l and ∇ℓ_l are means over the checkpoints in it (Bae et
al. 2024, "Training Data Attribution via Approximate Unrolled Differentiation").
Positive scores are proponents. A score is, to first order, the rise of the
query's loss when z is left out of this training: it carries 1/n, for n training
examples, which the scores of `InfluenceFunctions` do not.

Synopsis:

    method = kt.SOURCE(model, train, "runs/digits")
    method.influence(test)       # Attribution [num_test, num_train]
    method.top_k(test, k=10)     # TopK
    method.self_influence()      # SelfInfluence
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_tracin.curvature.mean_loss import check_precision
from keras_tracin.curvature.penalty import penalties_of
from keras_tracin.curvature.segment_filters import (
    Backwards,
    OwnScores,
    SegmentFilters,
)
from keras_tracin.curvature.solvers import EKFAC
from keras_tracin.data.batches import Batch
from keras_tracin.engine.call import Call
from keras_tracin.engine.distribution import Strategy
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.execution import Execution
from keras_tracin.engine.measures import Numbers
from keras_tracin.engine.passes import Pass
from keras_tracin.engine.preconditioner import Preconditioner
from keras_tracin.engine.queries import Queries
from keras_tracin.engine.updated import unequal_shares
from keras_tracin.engine.visits import Visit, Weights
from keras_tracin.gradients import flat
from keras_tracin.losses.per_example import objective_scale, penalty_weight
from keras_tracin.methods.of_objective import OfObjective
from keras_tracin.methods.training_notes import check_training
from keras_tracin.models.descriptions import describe, describe_optimizer
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.models.kinds import check_is_model
from keras_tracin.runs import (
    Segments,
    TrainingRun,
    check_checkpoint,
    cut_run,
)


class SOURCE(OfObjective):
    """Influence of training examples by approximate unrolling.

    Example:
    ```python
    model.fit(train, epochs=20, callbacks=[kt.TracInCheckpoint("runs/a")])
    source = kt.SOURCE(model, train, kt.TrainingRun("runs/a")[3::4])
    source.top_k(test, k=10).proponents.ids     # [num_test, 10]
    ```

    What training on an example did to the weights is followed through the
    recorded learning rates, without a minimum of the objective and without a
    damping: along directions of much curvature it is forgotten within a
    segment, along those of none it stays. Gradients of queries are those at
    the last checkpoint.

    The curvature H_l is EK-FAC's approximation of the Gauss-Newton matrix of
    the objective, the mean loss and its weight regularisers: bases and
    eigenvalues are fitted to the mean over the segment's checkpoints, by two
    readings of the data or more at each, at the first call. It stays in memory,
    a few copies of the weights for each segment.

    The model's optimizer says what a gradient does to the weights. A step of
    SGD with momentum μ moves them by η / (1 − μ) in the end. For Adam and the
    others of `TracIn(optimizer_aware=)`, D_l is the segment's mean of
    1 / (√v̂ + ε), which has to be recorded with the checkpoints: then EK-FAC is
    fitted to D^{1/2} ∇ℓ, and S_l = D^{1/2} exp(−η_l K_l D^{1/2} H_l D^{1/2})
    D^{−1/2}. D is rows × columns for the kernel and bias of a layer, the outer
    product that is nearest in logarithms. Decoupled weight decay counts as
    curvature; clipping and averages of the weights (`use_ema`) are left out.

    The self-influence of an example is its score for itself as a query;
    `query_loss` plays no part in it. It needs two whole gradients of each
    example at once, and takes longer than `influence` of a few queries.

    Args:
        model: the trained model, compiled with its loss and the optimizer that
            trained it.
        train: the data that `model.fit` took, as in `TracIn`.
        run: a `TrainingRun`, or its directory. Five to ten checkpoints of it
            will do, `run[3::4]` for every fourth; the rates of the steps
            between count all the same.
        segments: the number of segments, which end at the checkpoints nearest
            to equal numbers of steps; by default 3, or one for each of fewer
            checkpoints. `"rates"` begins one where a checkpoint's mean
            learning rate, `"loss"` where its loss, is twice or half that of
            the segment's first checkpoint. Or lists of the epochs (or
            checkpoints) in each, which leaves out all others.
        curvature: `EKFAC()`, with its number of pseudo-gradients and seed.
        loss: used in place of the compiled loss; anything `compile` takes.
        query_loss: measure of a query's influence, as in `TracIn`.
        class_weight: the `class_weight` given to `fit`.
        layers: names or layers to restrict gradients and curvature to.
        batch_size: that of training; only needed for a loss that is summed
            over the batch.
        strategy: a `tf.distribute.Strategy` under which the model was built.
        jit_compile: whether XLA compiles the steps; "auto" does where there is
            a device other than a CPU, as Keras does in `fit`.
        memory_limit: bytes the computation may use, beside the data; half of
            what is free by default.

    Attributes:
        segments: the segments, with their checkpoints and sums of rates.

    Raises:
        ValueError: if the run has no checkpoint or does not know the rates of
            its steps, cannot be cut into such segments or does not fit; if its
            steps did not all update the same variables; if the optimizer is
            not known, or its state was not recorded; if the model is not
            compiled, or computes in half precision.
    """

    title = "SOURCE"

    @exclusive_access
    def __init__(
        self,
        model: keras.Model,
        train: Any,
        run: TrainingRun | str | os.PathLike,
        *,
        segments: Segments = None,
        curvature: EKFAC | None = None,
        loss: Any = None,
        query_loss: Any = None,
        class_weight: Mapping[int, float] | None = None,
        layers: str | keras.Layer | Sequence[str | keras.Layer] | None = None,
        batch_size: int | None = None,
        strategy: Strategy | None = None,
        jit_compile: bool | str = "auto",
        memory_limit: int | None = None,
    ):
        check_is_model(model)
        check_precision(model)
        self._ekfac = EKFAC() if curvature is None else curvature
        if not isinstance(self._ekfac, EKFAC):
            raise ValueError(
                "`curvature` should be `EKFAC()`, in whose basis training is "
                f"unrolled. Received: {curvature!r}."
            )
        if self._ekfac.damping is not None:
            raise ValueError(
                "SOURCE has no damping: directions without curvature keep what "
                f"they learnt. Received: {curvature!r}. Leave its `damping=` "
                "out."
            )
        if not isinstance(run, TrainingRun):
            run = TrainingRun(run)
        self.segments = cut_run(run, segments)
        preconditioner = Preconditioner(
            model,
            "SOURCE",
            "compile it with the optimizer that trained it, or use "
            "`InfluenceFunctions(run=)`, which needs none",
        )
        self._scale = objective_scale(
            model, "how far a step goes", loss, batch_size
        )
        self._penalty = penalty_weight(model, loss, batch_size)
        self.checkpoints = {
            checkpoint: 1.0 / len(segment.checkpoints)
            for segment in self.segments
            for checkpoint in segment.checkpoints
        }
        self._places = {
            checkpoint: place
            for place, segment in enumerate(self.segments)
            for checkpoint in segment.checkpoints
        }
        self.engine = Engine(
            model,
            train,
            loss=loss,
            query_loss=query_loss,
            class_weight=class_weight,
            layers=layers,
            checkpoints=self._places,
            execution=Execution.of(strategy, jit_compile, memory_limit),
        )
        if self.engine.shares is not None:
            raise ValueError(unequal_shares("SOURCE"))
        check_training(run, self.engine)
        with self.engine.updated.trainable():
            for checkpoint in self._places:
                check_checkpoint(model, checkpoint)
                if preconditioner.constant is None:
                    preconditioner.check(checkpoint)
        self._whole = self.engine
        self._filters = SegmentFilters(
            self.engine,
            self.segments,
            self._ekfac,
            preconditioner,
            loss=loss,
            penalty=self._penalty,
            scale=self._scale,
            title=self.title,
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Options that scores depend on, as JSON, without reading any data."""
        return {
            "segments": [
                [len(segment.checkpoints), segment.rate_sum]
                for segment in self.segments
            ],
            "curvature": describe(self._ekfac),
            "optimizer": describe_optimizer(self.model.optimizer),
            "scale": self._scale,
            **self.objective_settings,
        }

    @property
    def unit_options(self) -> dict[str, Any]:
        """Options on which the unit of scores depends, by name."""
        return dict(self.engine.losses["objective"])

    @property
    def bytes_per_query(self) -> int | None:
        """Bytes that are held for each query."""
        # At the end of a segment, at its beginning, and its factor.
        return 3 * self._filters.bytes_per_vector

    def fit(self, call: Call) -> None:
        """Fits the segments' curvatures, with the progress bar of `call`."""
        self._filters.fit(call.verbose)

    def fitting_pass(self) -> Pass | None:
        """The passes that `fit` still has to make, for the forecast."""
        passes = self._filters.missing_passes
        if not passes:
            return None
        return Pass(
            self.title,
            self.engine.train_steps.squared_norms,
            self.checkpoints,
            repeated=passes,
        )

    def more_numbers(self, batch: Batch, known: Numbers) -> Numbers:
        """Numbers of regularisers, beside the `known` ones of `batch`."""
        return {"penalties": penalties_of(self.model)}

    def query_pass(self, queries: Queries) -> Pass:
        """The pass that scores a block of queries.

        Args:
            queries: the queries.
        """
        walks: list[Backwards] = []

        def directions(visit: Visit) -> tuple:
            assert visit.checkpoint is not None
            if visit.position == 0:  # the end of training, of each chunk
                rows = self.engine.rows_of(queries, visit.checkpoint)
                walks[:] = [self._filters.walk(rows)]
            vectors = walks[0].at(self._places[visit.checkpoint])
            return flat.directions(vectors, queries.steps.query.variables)

        return Pass(
            self.title,
            queries.steps.train.along,
            self._backwards,
            queries,
            prepare=directions,
        )

    def trial_pass(self, queries: Queries) -> Pass:
        """A pass of `queries` that takes about as long, but needs no fit."""

        def directions(visit: Visit) -> tuple:
            rows = self.engine.rows_of(queries, visit.checkpoint)
            return flat.directions(rows, queries.steps.query.variables)

        trial = self.query_pass(queries)
        return dataclasses.replace(trial, prepare=directions)

    def self_pass(self) -> Pass:
        """The pass that scores training examples as queries for themselves."""
        return Pass(
            self.title,
            self.engine.train_steps.rows,
            self._backwards,
            finish=lambda rows: rows.numpy().T,
            compared=lambda rows: np.linalg.norm(rows.numpy(), axis=-1),
            gather=lambda chunk: OwnScores(chunk, self._filters, self._places),
            gathered=3 * self._filters.bytes_per_vector,
            scores=False,
        )

    @property
    def _backwards(self) -> Weights:
        """The checkpoints from the end of training on, as queries go."""
        return dict(reversed(list(self.checkpoints.items())))
