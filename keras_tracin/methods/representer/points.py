"""Representer points: a prediction as a sum over training examples.

    φ_c(z') = Σ_z α_c(z) f(z)·f(z'),  α(z) = −1/(2λn) ∂ℓ/∂φ(z)

f is what goes into the model's last layer, φ the logits that come out of it
once its weights w2 minimise (1/n) Σ ℓ + λ‖w2‖² (appendix A.2; Yeh et al. 2018).
Equation 4 of the appendix differentiates at the query z'; the sum is only
right with the gradient at the *training* example z, as it is here.

Positive scores push the query's logit towards the target class. They explain
the prediction, not its loss, and through the last layer alone.

Synopsis:

    points = kt.RepresenterPoints(model, train, l2=1e-3)
    print(points.faithfulness())
    points.influence(test)                          # Attribution
    points.top_k(test, k=10, target="predicted")    # TopK
    points.self_influence()                         # SelfInfluence
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_tracin.data.batches import Batch, content_digest
from keras_tracin.data.preprocessing import open_for_model
from keras_tracin.engine import collecting
from keras_tracin.engine.chunks import Chunk, Sink
from keras_tracin.engine.descriptions import loss_names
from keras_tracin.engine.distribution import Strategy, check_alone, worker_of
from keras_tracin.engine.fingerprint import classes_of, spread_rows, tolerance
from keras_tracin.engine.measures import Numbers
from keras_tracin.engine.parts import Parts
from keras_tracin.engine.planning import Plan
from keras_tracin.methods.representer.decomposition import (
    L2Points,
    LocalExpansion,
)
from keras_tracin.methods.representer.faithfulness import Faithfulness, compare
from keras_tracin.methods.representer.features import Representations
from keras_tracin.methods.representer.head import RetunedModel
from keras_tracin.methods.representer.problem import Problem
from keras_tracin.methods.representer.retune import retune
from keras_tracin.methods.representer.targets import Target
from keras_tracin.models.descriptions import describe_loss
from keras_tracin.models.exclusive import exclusively
from keras_tracin.results import Attribution, SelfInfluence, TopK
from keras_tracin.runs.manifest import weights_digest

_QUERY_BLOCK = 1024  # queries that are scored together, at most
_CHUNK = 2**22  # scores that are made at a time, at most: more saves no time


class RepresenterPoints:
    """Influence of training examples by representer points.

    Example:
    ```python
    model.fit(train, epochs=10)
    points = kt.RepresenterPoints(model, train, l2=1e-3)
    top = points.top_k(test, k=5, target="predicted")
    top.proponents.ids          # [num_test, 5]
    ```

    The last Dense layer is retuned on cached representations when the object
    is made; the model keeps its weights, and later calls expect it to have
    them still. Bias and kernel are regularised alike, as one matrix whose last
    input is a constant 1. The layer's own weight regularisers play no part: λ
    stands in for them. The model runs in inference mode, and the loss is the
    compiled one, times each example's sample weight. Memory grows with the
    number of training examples times the width of the representation.

    With `directory=`, calls keep what is finished and go on from it, and
    processes of one cluster (`TF_CONFIG`) share the scores. Retuning is not
    shared: each process reads all training examples and retunes by itself,
    which is deterministic, before it scores its part of them.

    Args:
        model: the trained model, compiled with its loss. It ends in a Dense
            layer that reads one vector per example, with no more than a known
            activation after it.
        train: what `model.fit` took: a batched `tf.data.Dataset` or a tuple
            of arrays, `(x, y)` or `(x, y, sample_weight)`.
        l2: λ. The smaller, the closer the retuned layer fits the labels; the
            larger, the smaller its weights. `kt.sweep_l2` shows how faithful
            it stays to the model. With `method="lje"`, 2λ damps the Hessian.
        layer: the Dense layer that makes the logits, by name or object; by
            default the one that is called last.
        method: `"l2"`, or `"lje"` for Local Jacobian Expansion (Sui et al.
            2021), which decomposes the last layer as it is and retunes
            nothing; see `keras_tracin.methods.representer.decomposition`.
        loss: used in place of the compiled loss; anything `compile` takes.
        strategy: a `tf.distribute.Strategy` under which the model was built,
            to spread the pass over the data over.
        memory_limit: bytes the computation may use, beside the data and the
            representations; half of what is free by default.
        verbose: 0 for silence; else a pass over the training examples of more
            than two seconds has a progress bar.

    Attributes:
        weights: the explained layer's weights `[f, k]`, its bias as last row:
            retuned, or those of the model with `method="lje"`.
        values: the representer values α, `[num_train, num_outputs]`, in
            reading order. With `method="lje"` they score each example on
            itself, and on others approximately.
        train_ids: the training examples' ids, `[num_train]`.

    Raises:
        ValueError: if λ is not above zero, if the model has no such layer, if
            the loss has no gradient at the logits, if data and model do not
            fit one another, or if the model was not built under `strategy`. A
            layer that retuning leaves short of a stationary point is a
            warning.
    """

    def __init__(
        self,
        model: keras.Model,
        train: Any,
        *,
        l2: float = 1e-3,
        layer: str | keras.Layer | None = None,
        method: str = "l2",
        loss: Any = None,
        strategy: Strategy | None = None,
        memory_limit: int | None = None,
        verbose: int = 1,
    ):
        if method not in ("l2", "lje"):
            raise ValueError(
                f"`method` should be 'l2' or 'lje'. Received: {method!r}."
            )
        self._strategy = strategy
        self._problem = Problem.read(
            model,
            train,
            layer=layer,
            loss=loss,
            strategy=strategy,
            memory_limit=memory_limit,
            verbose=verbose,
        )
        self._model, self._retuned = model, None
        objective = self._problem.objective(l2)
        self._settings = {
            "l2": float(l2),
            "kind": method,
            "loss": loss_names("compiled" if loss is None else loss),
            "objective": describe_loss(model, loss),
        }
        self._weights_digest = weights_digest(model)
        self.weights = self._problem.head.weights
        self._points: L2Points | LocalExpansion
        if method == "l2":
            self._retuned = retune(objective, self.weights)
            self.weights = self._retuned.weights
            self._points = L2Points(objective, self.weights)
        else:
            self._points = LocalExpansion(
                objective, self.weights, self._problem.memory_limit
            )

    @property
    def train_ids(self) -> np.ndarray:
        """The training examples' ids, `[num_train]`."""
        return self._problem.train.ids

    @property
    def values(self) -> np.ndarray:
        """The representer values α, `[num_train, num_outputs]`."""
        return self._points.values

    @property
    def retuned_model(self) -> keras.Model:
        """The model with the retuned layer in the place of its own.

        Its other layers are the user's, not copies.

        Raises:
            ValueError: with `method="lje"`, which retunes nothing.
        """
        if self._retuned is None:
            raise ValueError(
                "`method='lje'` explains the model as it is and retunes "
                "nothing. Use `method='l2'` for a retuned model."
            )
        return RetunedModel(self._model, self._problem.head, self.weights)

    def influence(
        self,
        test: Any,
        *,
        target: Target = "label",
        directory: str | os.PathLike | None = None,
        verbose: int = 1,
    ) -> Attribution:
        """The score of every training example for every query's target.

        Args:
            test: the queries, in the same form as `train`.
            target: the class that scores push towards: `"label"`, the query's
                own; `"predicted"`, the one the user's model predicts; or a
                class index for all queries. For a single sigmoid, classes 0
                and 1 are its sides. In a regression positive scores raise the
                output, whose index may be given.
            directory: where finished parts are kept, as in `TracIn`: a call
                that was killed goes on from them, processes that share it
                share the work, and the scores are mapped from a file there.
            verbose: 0 for silence.

        Returns:
            An `Attribution` with `scores [num_test, num_train]`, float32; a
            row adds up to the target's logit (for class 0 of a single sigmoid
            to its negative).

        Raises:
            ValueError: if the queries have no such target, if `directory`
                holds parts of another call, or if several processes have the
                strategy in common and no directory.
        """
        self._problem.meaning.check(target)
        parts = self._kept(directory, "influence", test, target=target)
        return collecting.influence(
            self._blocks(test, verbose, parts),
            self._stream(target, parts),
            parts,
        )

    def top_k(
        self,
        test: Any,
        k: int = 10,
        *,
        target: Target = "label",
        directory: str | os.PathLike | None = None,
        verbose: int = 1,
    ) -> TopK:
        """The `k` strongest proponents and opponents of every query's target.

        The same as `influence(test).top_k(k)` without ever holding all the
        scores.

        Args:
            test: the queries, in the same form as `train`.
            k: how many on each side.
            target: as in `influence`.
            directory: as in `influence`.
            verbose: 0 for silence.

        Raises:
            ValueError: if `k` is below 1 or above the number of training
                examples; and as `influence`.
        """
        self._problem.meaning.check(target)
        parts = self._kept(directory, "top_k", test, target=target, k=k)
        return collecting.top_k(
            self._blocks(test, verbose, parts),
            self._stream(target, parts),
            k,
            len(self._problem.train),
            parts,
        )

    def class_scores(
        self,
        test: Any,
        *,
        directory: str | os.PathLike | None = None,
        verbose: int = 1,
    ) -> np.ndarray:
        """The scores for every output, `[num_test, num_train, num_outputs]`.

        Positive raises the output's logit, of which the scores are the parts.
        All are held, in float32, unless there is a directory: for many
        queries, `top_k` is the way.

        Args:
            test: the queries, in the same form as `train`.
            directory: as in `influence`.
            verbose: 0 for silence.
        """
        parts = self._kept(directory, "class_scores", test)
        blocks = self._blocks(test, verbose, parts)
        stream = self._stream_for_all(parts)
        if parts is not None:
            return collecting.mapped(blocks, stream, parts)["scores"]
        shape = (len(self.train_ids), self.weights.shape[1])
        found = []
        for queries in blocks:
            scores = np.empty((len(queries), *shape), np.float32)
            stream(queries, _filling(scores))
            found.append(scores)
        return found[0] if len(found) == 1 else np.concatenate(found)

    def logits(self, test: Any, *, verbose: int = 1) -> np.ndarray:
        """The sums of the scores over the training examples, `[m, k]`.

        Without making the scores: the sum of the points comes first.

        Args:
            test: the queries, in the same form as `train`.
            verbose: 0 for silence.
        """
        self._check_weights()
        blocks = self._problem.blocks(test, _QUERY_BLOCK, verbose)
        return np.concatenate(
            [queries.features @ self._points.total for queries in blocks]
        )

    def self_influence(self, *, verbose: int = 1) -> SelfInfluence:
        """The global importance of each training example.

        The length of its representer values over the outputs, ‖α(z)‖: large
        where the retuned layer does not fit the label, so for mislabelled and
        unusual examples. It is not the example's score on itself, and never
        negative. With `method="lje"` it is the length of the example's scores
        on itself, as in Sui et al. 2021.

        Args:
            verbose: taken as by the other methods; this one reads no data.
        """
        return SelfInfluence(scores=self._points.importance, ids=self.train_ids)

    def faithfulness(
        self, data: Any = None, *, verbose: int = 1
    ) -> Faithfulness:
        """How well the points add up, and how close they are to the model.

        Args:
            data: examples to compare logits on; the training examples by
                default.
            verbose: 0 for silence.
        """
        problem = self._problem
        examples = problem.train
        if data is not None:
            self._check_weights()
            examples = problem.reader.read(
                open_for_model(self._model, data, "data"), verbose
            )
        return compare(
            examples.features,
            original=problem.head.weights,
            explained=self.weights,
            points=self._points.total,
            gradient_ratio=(
                None if self._retuned is None else self._retuned.gradient_ratio
            ),
        )

    def _kept(
        self,
        directory: str | os.PathLike | None,
        call: str,
        test: Any,
        **options: Any,
    ) -> Parts | None:
        """The parts of a call, if it is to keep any."""
        if directory is None:
            check_alone(self._strategy)
            return None
        layers = self._model._flatten_layers()
        with exclusively:
            weights = weights_digest(self._model)
        job = {
            "method": "RepresenterPoints",
            "call": call,
            **self._settings,
            "weights": weights,
            "layer": layers.index(self._problem.head.layer),
            "train": self._train_digest,
            "test": content_digest(
                open_for_model(self._model, test, "test").batches(_QUERY_BLOCK)
            ),
            **options,
        }
        parts = Parts.open(directory, job, worker_of(self._strategy))
        # Retuning ends where its gradient is small, on each machine elsewhere.
        parts.compare(self._numbers(), max(1e-3, tolerance(self._model)))
        return parts

    def _numbers(self) -> Numbers:
        """What scores are made of, of a few training examples."""
        train = self._problem.train
        rows = spread_rows(len(train), classes_of([train.y]))
        return {
            "ids": train.ids[rows],
            "features": train.features[rows],
            "values": self.values[rows],
        }

    def _check_weights(self) -> None:
        """Raises ValueError unless the model still has its weights."""
        if weights_digest(self._model) != self._weights_digest:
            raise ValueError(
                f"The weights of the model '{self._model.name}' are not those "
                "that its training examples were represented with, so queries "
                "would be represented otherwise. Make another "
                "`RepresenterPoints`, or give the model its weights back."
            )

    @functools.cached_property
    def _train_digest(self) -> str:
        return content_digest(self._problem.examples.batches(_QUERY_BLOCK))

    def _blocks(
        self, test: Any, verbose: int, parts: Parts | None
    ) -> Iterator[Representations]:
        """Queries that are scored together."""
        self._check_weights()
        room = self._problem.memory_limit // 8
        # Of each its features, and under `lje` one solution for each output.
        per_query = 8 * 3 * self.weights.size * self.weights.shape[1]
        size = min(max(1, room // per_query), _QUERY_BLOCK)
        # A power of two, so that batches of whatever size fill it.
        size = 2 ** int(math.log2(size))
        if parts is not None:
            size = parts.agree("block", size)
        return self._problem.blocks(test, size, verbose)

    def _stream(
        self, target: Target, parts: Parts | None
    ) -> collecting.Stream[Representations]:
        """Streams the scores of one block of queries."""

        def stream(queries: Representations, sink: Sink) -> None:
            logits = queries.features @ self._problem.head.weights
            targets = self._problem.meaning.targets(target, queries, logits)

            @functools.cache
            def prepared():
                return self._points.prepared(queries.features, targets.outputs)

            def scores_of(rows: slice) -> np.ndarray:
                scores = self._points.scores(prepared(), rows)
                scores *= targets.signs[:, np.newaxis]
                return scores

            self._pour(scores_of, sink, len(queries), parts)

        return stream

    def _stream_for_all(
        self, parts: Parts | None
    ) -> collecting.Stream[Representations]:
        """Streams one block's scores for every output, `[m, c, k]`."""

        def stream(queries: Representations, sink: Sink) -> None:
            @functools.cache
            def prepared():
                return self._points.prepared_for_all(queries.features)

            self._pour(
                lambda rows: self._points.class_scores(prepared(), rows),
                sink,
                len(queries) * self.weights.shape[1],
                parts,
            )

        return stream

    def _pour(
        self,
        scores_of: Callable[[slice], np.ndarray],
        sink: Sink,
        columns: int,
        parts: Parts | None,
    ) -> None:
        """Makes the scores of the training examples that a sink wants.

        They come in chunks that fit memory, by scores of each example.
        """
        room = min(self._problem.memory_limit // (8 * 8), _CHUNK)
        total, size = len(self.train_ids), max(1, room // columns)
        if parts is not None:
            plan = Plan(total, columns, 1, batch_size=1, chunk=size, memory=0)
            size = parts.cut(plan).chunk
        for number, start in enumerate(range(0, total, size)):
            rows = slice(start, start + size)
            ids = self.train_ids[rows]
            if sink.wants(Chunk(number, start, (Batch(ids, None),))):
                sink.add(ids, scores_of(rows).astype(np.float32, copy=False))


def _filling(scores: np.ndarray) -> Sink:
    """A sink that fills `scores [m, n, k]` along the second axis."""
    stop = 0

    def add(ids: np.ndarray, found: np.ndarray) -> None:
        nonlocal stop
        start, stop = stop, stop + len(ids)
        scores[:, start:stop] = found

    return Sink(add)
