"""TRAK: influence in a kernel machine made of projected gradients.

At a checkpoint m a model is taken for linear in φ(z) = G∇f(z), the projected
gradient of its output f: log(p / (1 - p)) of the label in a classification, the
prediction in a regression. With Φ of all training examples,

    τ(z, z') = [mean_m φ(z')ᵀ (ΦᵀΦ + λI)⁻¹ φ(z)] · [mean_m Q(z)],

where Q = -∂ℓ/∂f, which is 1 - p for margins: one Newton step of the linear
model, with the means over checkpoints, of one training or of several, taken
apart (Park et al. 2023, sec. 3 and eq. 17). In a regression each kernel is also
multiplied with the query's own -∂ℓ/∂f, so that positive means proponent.

Synopsis:

    trak = kt.TRAK(model, train, ["runs/a", "runs/b"])
    trak.influence(test)         # Attribution [num_test, num_train]
    trak.top_k(test, k=10)       # TopK
    trak.self_influence()        # SelfInfluence
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import scipy.linalg
import tensorflow as tf

from keras_tracin.curvature.operators import check_damping
from keras_tracin.data.batches import Batch, content_digest
from keras_tracin.engine import collecting
from keras_tracin.engine.collecting import Stream
from keras_tracin.engine.distribution import Strategy
from keras_tracin.engine.measures import Numbers
from keras_tracin.engine.progress import Progress
from keras_tracin.engine.scoring import Queries, Rates, Scorer
from keras_tracin.engine.spot_checks import SpotChecks
from keras_tracin.engine.sweep import Chunk, Sink
from keras_tracin.gradients.factors import DenseGradients
from keras_tracin.losses.model_outputs import model_output, sample_weights
from keras_tracin.losses.output_kinds import SAMPLE
from keras_tracin.models.descriptions import describe
from keras_tracin.models.exclusive import exclusively
from keras_tracin.projection import FactoredProjection, Projection, TensorSketch
from keras_tracin.results import Attribution, SelfInfluence, TopK
from keras_tracin.runs import TrainingRun, check_checkpoint, run_weights
from keras_tracin.storage.files import digest

_DIGESTED = 256  # examples at a time

Run = TrainingRun | str | os.PathLike

# `(position, batch, features [b, dim], outputs [b])`
_Each = Callable[[int, Batch, np.ndarray, tf.Tensor], None]


class TRAK:
    """Influence of training examples by TRAK.

    Example:
    ```python
    trak = kt.TRAK(model, train, ["runs/a", "runs/b", "runs/c"])
    trak.top_k(test, k=10).proponents.ids
    ```

    All checkpoints of all runs count alike. Ten of one training, evenly spaced,
    help about as much as five trainings, and both together most. The first
    call passes over the training examples once more, to make the kernels,
    which take `8 · dim²` bytes for each checkpoint and are kept; no memory
    grows with examples × `dim`. The model runs in inference mode and has its
    own weights back after every call.

    Scores rank; their size is that of f in a linear model. A training
    example's sample weight multiplies its part in ΦᵀΦ and its Q.

    Args:
        model: the trained model, compiled with its loss.
        train: what `model.fit` took, as in `TracIn`.
        run: a `TrainingRun` or its directory, or a list of several: trainings
            of the same architecture, from other seeds or on other subsets.
        projection: what makes φ. The larger its `dim`, the better, up to a
            part of the number of examples; `kt.TensorSketch(2048)` by default.
        damping: λ, as a multiple of the mean squared length of φ, so that
            it means the same whatever the model, its data and `dim`: 1 was
            best, or nearly, wherever it was measured (benchmarks). 0 is
            the published form, for which `dim` has to be well below the
            number of examples.
        output: "margin" or "prediction", if the loss does not say which.
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
        check_damping(damping)
        self._damping = damping
        projection = TensorSketch(2048) if projection is None else projection
        if isinstance(projection, FactoredProjection) and not projection.joint:
            raise ValueError(
                "TRAK needs one vector for each gradient, not sides kept "
                f"apart. Received: projection={projection!r}; leave out "
                "`joint=False`."
            )
        self._rates = _equal_shares(run)
        self._scorer = Scorer(
            model,
            train,
            loss=loss,
            layers=layers,
            projection=projection,
            strategy=strategy,
            jit_compile=jit_compile,
            memory_limit=memory_limit,
            output=lambda *batch: self._output.value(*batch),
        )
        x = self._scorer.train.first(SAMPLE).x
        self._output = model_output(model, loss, output, x)
        for checkpoint in self._rates:
            if checkpoint is not None:
                check_checkpoint(model, checkpoint)

    @exclusively
    def influence(
        self,
        test: Any,
        *,
        directory: str | os.PathLike | None = None,
        verbose: int = 1,
    ) -> Attribution:
        """The score of every training example for every query.

        Args:
            test: the queries, in the same form as `train`.
            directory: where finished parts are kept, as in `TracIn`; kernels
                are made again.
            verbose: 0 for silence; else long work has a progress bar.

        Returns:
            An `Attribution` with `scores [num_test, num_train]`.

        Raises:
            ValueError: if a gradient is NaN or infinite, naming checkpoint,
                layer and ids, if ΦᵀΦ + λI cannot be inverted, or if `test`
                does not fit the model.
        """
        scorer = self._kept(directory, "influence", test)
        return collecting.influence(
            scorer.blocks(test), self._stream(scorer, verbose), scorer.parts
        )

    @exclusively
    def top_k(
        self,
        test: Any,
        k: int = 10,
        *,
        directory: str | os.PathLike | None = None,
        verbose: int = 1,
    ) -> TopK:
        """The `k` strongest proponents and opponents of every query.

        Args:
            test: the queries, in the same form as `train`.
            k: how many on each side.
            directory: as in `influence`.
            verbose: 0 for silence.

        Raises:
            ValueError: if `k` is below 1 or above the number of training
                examples; and as `influence`.
        """
        scorer = self._kept(directory, "top_k", test, k=k)
        return collecting.top_k(
            scorer.blocks(test),
            self._stream(scorer, verbose),
            k,
            scorer.train.size,
            scorer.parts,
        )

    @exclusively
    def self_influence(self, *, verbose: int = 1) -> SelfInfluence:
        """Each training example's score for itself.

        The leverage φᵀ(ΦᵀΦ + λI)⁻¹φ times Q: large for an example that is
        unlike the others and not fitted well.

        Args:
            verbose: 0 for silence.
        """
        kernels = self._kernels
        shares: list[list[np.ndarray]] = []
        ids: list[np.ndarray] = []

        def each(position, batch, features, outputs):
            if position == len(shares):
                shares.append([])
            if position == 0:
                ids.append(batch.ids)
            solved = scipy.linalg.cho_solve(kernels[position], features.T)
            helped = self._output.help(batch.y, outputs, batch.sample_weight)
            shares[-1].append(helped * np.sum(features * solved.T, axis=1))

        self._pass_over(each, verbose)
        mean = np.mean([np.concatenate(found) for found in shares], axis=0)
        scores = (mean * self._pulls).astype(np.float32)
        return SelfInfluence(scores=scores, ids=np.concatenate(ids))

    def _stream(self, scorer: Scorer, verbose: int) -> Stream:
        """Streams the scores of one block of queries."""

        def stream(queries: Queries, sink: Sink) -> None:
            scorer.sweep(
                queries.steps.train.products,
                self._rates,
                self._times_pulls(sink),
                title="TRAK",
                queries=queries,
                prepare=lambda _, position: self._solved(queries, position),
                verbose=verbose,
            )

        return stream

    def _solved(self, queries: Queries, position: np.int32) -> tuple:
        """`(ΦᵀΦ + λI)⁻¹ φ(z')` of some queries, as factors."""
        kernel = self._kernels[position]
        step = queries.steps.query.sketched_with_values
        rows = []
        for batch in queries.batches:
            (features,), outputs = step(batch.data, position)
            helped = self._output.help(batch.y, outputs, batch.sample_weight)
            found = features.parts[0].numpy()
            if not np.isfinite(found).all():
                self._scorer.raise_not_finite(queries)
            solved = scipy.linalg.cho_solve(kernel, found.T).T
            solved *= helped[:, np.newaxis]
            rows.append(solved.astype(found.dtype))
        return (DenseGradients((tf.constant(np.concatenate(rows)),)),)

    def _times_pulls(self, sink: Sink) -> Sink:
        """Multiplies the columns with the training examples' mean Q."""
        chosen = np.zeros(0)

        def wants(chunk: Chunk) -> bool:
            nonlocal chosen
            chosen = self._pulls[chunk.start : chunk.start + len(chunk)]
            return sink.wants(chunk)

        def add(ids: np.ndarray, scores: np.ndarray) -> None:
            sink.add(ids, scores * chosen.astype(scores.dtype))

        return Sink(add, wants)

    @property
    def _kernels(self) -> list[tuple[np.ndarray, bool]]:
        """The Cholesky factors of ΦᵀΦ + λI, of each checkpoint."""
        return self._fitted[0]

    @property
    def _pulls(self) -> np.ndarray:
        """The mean over checkpoints of Q, `[n]` in reading order."""
        return self._fitted[1]

    @functools.cached_property
    def _fitted(self) -> tuple[list[tuple[np.ndarray, bool]], np.ndarray]:
        grams: list[np.ndarray] = []
        pulls: list[list[np.ndarray]] = []

        def each(position, batch, features, outputs):
            if position == len(grams):
                grams.append(np.zeros([features.shape[1]] * 2))
                pulls.append([])
            weights = sample_weights(batch.sample_weight, outputs)
            grams[-1] += features.T @ (features * weights[:, np.newaxis])
            pulls[-1].append(
                self._output.pull(batch.y, outputs, batch.sample_weight)
            )

        self._pass_over(each, verbose=0)
        mean = np.mean([np.concatenate(found) for found in pulls], axis=0)
        kernels = [
            _factorized(gram, self._damping, len(mean)) for gram in grams
        ]
        return kernels, mean

    def _pass_over(self, each: _Each, verbose: int) -> None:
        """Calls `each` with the features of all batches at all checkpoints."""
        scorer = self._scorer
        step = scorer.train_steps.sketched_with_values
        plan = scorer.plan(step, self._rates)
        progress = Progress(plan, verbose, "TRAK")
        size = plan.batch_size if scorer.jit_compile else None
        spots = SpotChecks(scorer.model, scorer.loss, scorer.jit_compile)

        def features_of(data) -> np.ndarray:
            return step(data, np.int32(0))[0][0].parts[0].numpy().T

        with run_weights(scorer.model) as load:
            for position, checkpoint in enumerate(self._rates):
                if checkpoint is not None:
                    load(checkpoint)
                scorer.first_look(size=size)
                batches = scorer.train.batches(plan.batch_size)
                for number, batch in enumerate(batches):
                    with scorer.explaining(None, batch):
                        (features,), outputs = step(
                            batch.data, np.int32(position)
                        )
                    found = features.parts[0].numpy()
                    if not np.isfinite(found).all():
                        scorer.raise_bad_training(batch, checkpoint)
                    if position == 0:
                        spots.look(number, batch, found.T, features_of)
                    each(position, batch, found, outputs)
                    progress.advance()

    def _kept(
        self,
        directory: str | os.PathLike | None,
        call: str,
        test: Any,
        **options: Any,
    ) -> Scorer:
        """The scorer of a call, which may keep what is finished of it."""
        return self._scorer.keeping(
            directory,
            lambda: {
                "method": "TRAK",
                "call": call,
                "checkpoints": [
                    one.sha256 or digest(one.path)
                    for one in self._rates
                    if one is not None
                ],
                "projection": describe(self._scorer.projection),
                "damping": self._damping,
                "output": self._output.kind,
                # All of them have a part in the kernels.
                "train": content_digest(self._scorer.train.batches(_DIGESTED)),
                **options,
            },
            self._rates,
            test,
            self._pull_numbers,
        )

    def _pull_numbers(self, batch: Batch, numbers: Numbers) -> Numbers:
        """How hard the loss pulls at outputs, of which scores are made."""
        outputs = tf.constant(numbers["losses"])
        weights = batch.sample_weight
        return {
            "pulls": self._output.pull(batch.y, outputs, weights),
            "weights": self._output.help(batch.y, outputs, weights),
        }


def _equal_shares(run: Run | Sequence[Run]) -> Rates:
    """All checkpoints of one run, or of several, and what each counts."""
    runs = [run] if isinstance(run, Run) else list(run)
    checkpoints = [checkpoint for one in runs for checkpoint in _opened(one)]
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


def _opened(run: Run) -> Iterator:
    return iter(run if isinstance(run, TrainingRun) else TrainingRun(run))


def _factorized(
    gram: np.ndarray, damping: float, count: int
) -> tuple[np.ndarray, bool]:
    """Cholesky's factor of the Gram matrix of `count` examples, damped."""
    dim = len(gram)
    gram[np.diag_indices(dim)] += damping * np.trace(gram) / count
    try:
        return scipy.linalg.cho_factor(gram, lower=True, overwrite_a=True)
    except scipy.linalg.LinAlgError as error:
        raise ValueError(
            f"The features of the training examples, {dim} numbers each, do "
            f"not span their space: ΦᵀΦ + λI with damping={damping} cannot be "
            "inverted. Pass a larger `damping`, 1 for example, or a "
            "projection with a smaller `dim`."
        ) from error
