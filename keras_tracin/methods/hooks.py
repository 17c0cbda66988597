"""What a method overrides for the calls that all methods have in common.

The defaults are those of a method that sweeps over its training examples with
an engine, checkpoint by checkpoint: it supplies passes. One that makes its
scores otherwise supplies a stream of them, and what parts on disk depend on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import keras

from keras_tracin.data.batches import Batch
from keras_tracin.engine.blocks import blocks
from keras_tracin.engine.call import Call
from keras_tracin.engine.chunks import Sink
from keras_tracin.engine.descriptions import in_words
from keras_tracin.engine.distribution import Strategy
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.fingerprint import tolerance
from keras_tracin.engine.identity import identity, numbers
from keras_tracin.engine.measures import Numbers
from keras_tracin.engine.passes import Pass
from keras_tracin.engine.sweep import sweep
from keras_tracin.engine.visits import PRESENT_WEIGHTS, Weights, digest_of
from keras_tracin.runs.manifest import weights_digest


class MethodHooks:
    """Passes or streams of scores, and what they depend on, to override.

    A sweeping method sets `engine` (and `checkpoints`, unless it scores at the
    weights that the model has) and supplies `query_pass` and `self_pass`. Any
    other supplies `blocks`, `stream`, `stream_self`, `job`, `fingerprint` and
    `within`, and the properties `model`, `strategy` and `num_train`.

    Attributes:
        title: the method's name, for the line that announces long work.
        engine: the model, its training examples and their compiled steps.
        checkpoints: the checkpoints that are visited, each with its factor in
            the sum over them.
        settings: options that scores depend on, as JSON.
    """

    title: ClassVar[str] = "Scores"
    engine: Engine
    checkpoints: Weights = PRESENT_WEIGHTS
    _fitted_weights: str | None = None
    _fitted_trainable: list[str] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Options that scores depend on, as JSON, without reading any data."""
        return {}

    @property
    def unit_options(self) -> dict[str, Any]:
        """Options on which the unit of scores depends, by name."""
        return {}

    @property
    def unit(self) -> str:
        """The class and its options that give scores their unit, for errors.

        Scores of equal units can be averaged as they are.
        """
        given = {
            name: value
            for name, value in self.unit_options.items()
            if value not in (None, False)
        }
        options = ", ".join(f"{name}={in_words(given[name])}" for name in given)
        name = type(self).__name__
        return f"{name}({options})" if options else name

    def query_pass(self, queries: Any) -> Pass:
        """The pass that scores a block of queries.

        Args:
            queries: the queries.
        """
        raise NotImplementedError

    def self_pass(self) -> Pass:
        """The pass that scores training examples for themselves."""
        raise NotImplementedError

    def trial_pass(self, queries: Any) -> Pass:
        """A pass that takes as long as `query_pass`, but needs no fit.

        Args:
            queries: the queries.
        """
        return self.query_pass(queries)

    def fitting_pass(self) -> Pass | None:
        """The pass that `fit` still has to make, for the forecast."""
        return None

    def fit(self, call: Call) -> None:
        """Computes what all scores need, unless that has been done.

        Args:
            call: the call that needs it.
        """

    @property
    def no_self_influence(self) -> str | None:
        """Why there is no self-influence, and what to use; None if there is."""
        return None

    @property
    def against_recurring(self) -> str:
        """What to do where all queries have the same strongest examples."""
        return (
            "Look at them; `kt.TracIn(normalize='train')` and "
            "`kt.InfluenceFunctions(relative='loss')` divide by the lengths "
            "of training examples."
        )

    @property
    def no_contrast(self) -> str | None:
        """Why queries cannot be contrasted; None if they can."""
        return None

    @property
    def bytes_per_query(self) -> int | None:
        """Bytes that are held for each query; None if its factors are held."""
        return None

    def more_numbers(self, batch: Batch, known: Numbers) -> Numbers:
        """Further numbers that scores depend on, of a few training examples.

        Args:
            batch: the examples.
            known: their outputs, losses and gradients as numbers.
        """
        return {}

    # What a method without an engine supplies as well.

    @property
    def model(self) -> keras.Model:
        """The model."""
        return self.engine.model

    @property
    def strategy(self) -> Strategy | None:
        """The strategy that steps are spread over."""
        return self.engine.execution.strategy

    @property
    def num_train(self) -> int | None:
        """Number of training examples; None where the data does not tell."""
        return self.engine.train.size

    def blocks(self, test: Any, call: Call) -> Iterator[Any]:
        """The queries in blocks that are scored together.

        Args:
            test: the queries.
            call: the call that they are for.
        """
        return blocks(self.engine, test, call, self.bytes_per_query)

    def stream(self, queries: Any, sink: Sink, call: Call) -> None:
        """Streams the scores of one block of queries into a sink.

        Args:
            queries: the queries.
            sink: takes the scores.
            call: the call that they are for.
        """
        sweep(self.engine, self.query_pass(queries), sink, call)

    def stream_self(self, sink: Sink, call: Call) -> None:
        """Streams the scores of training examples for themselves.

        Args:
            sink: takes the scores.
            call: the call that they are for.
        """
        sweep(self.engine, self.self_pass(), sink, call)

    def job(self, test: Any) -> dict[str, Any]:
        """All that scores depend on, as JSON, for the parts on disk.

        Args:
            test: the queries, if there are any.
        """
        return {**identity(self.engine), **self.describe()}

    def fingerprint(self, test: Any) -> tuple[Numbers, float]:
        """Numbers that scores are computed from, and their largest difference.

        Args:
            test: the queries, if there are any.
        """
        seen = numbers(self.engine, self.checkpoints, test, self.more_numbers)
        return seen, tolerance(self.model)

    def describe(self) -> dict[str, Any]:
        """The method, its options and the weights it scores at, as JSON."""
        method = {"method": type(self).__name__, **self.settings}
        if self.checkpoints is not PRESENT_WEIGHTS:
            return method | {"checkpoints": self._describe_checkpoints()}
        return method | {"weights": weights_digest(self.model)}

    # The state of the model that a method was made at.

    def remember_weights(self) -> None:
        """Notes the model's weights, for a method that is fitted at them."""
        self._fitted_weights = weights_digest(self.model)

    def remember_trainable(self) -> None:
        """Notes what is trainable, for a method fitted to these variables."""
        self._fitted_trainable = _trainable_paths(self.model)

    def check_weights(self) -> None:
        """Compares the model's weights with those that were noted.

        Raises:
            ValueError: if they differ, or others are trainable.
        """
        fitted, now = self._fitted_trainable, _trainable_paths(self.model)
        if fitted not in (None, now):
            kind = type(self).__name__
            changed = sorted(set(fitted) ^ set(now))
            raise ValueError(
                f"This `{kind}` was made while other variables of the model "
                f"'{self.model.name}' were trainable than are now, and its "
                f"scores are by those. Received a change of {changed[:5]}. "
                f"Make another `{kind}`, or set `trainable` back."
            )
        if self._fitted_weights not in (None, weights_digest(self.model)):
            kind = type(self).__name__
            raise ValueError(
                f"This `{kind}` was made at other weights than the model "
                f"'{self.model.name}' has now, and its scores would be of "
                f"neither. Make another `{kind}`, or give the model its "
                "weights back."
            )

    def _describe_checkpoints(self) -> list:
        return [
            [digest_of(checkpoint), rate]
            for checkpoint, rate in self.checkpoints.items()
            if checkpoint is not None
        ]


def _trainable_paths(model: keras.Model) -> list[str]:
    return sorted(weight.path for weight in model.trainable_weights)
