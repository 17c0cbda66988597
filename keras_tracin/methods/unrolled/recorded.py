"""A recorded training: its examples, its steps and its replay.

Synopsis:

    recorded = RecordedTraining(model, train, "runs/digits")
    recorded.held, recorded.steps       # examples and batches
    recorded.replay_error               # replays it and compares
    recorded.replay.last                # the state at its end
"""

from __future__ import annotations

import copy
import functools
import hashlib
import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch, content_digest
from keras_tracin.data.held import HeldExamples
from keras_tracin.engine.diagnosis import check_fits
from keras_tracin.engine.execution import Execution
from keras_tracin.engine.padding import open_padded
from keras_tracin.engine.steps import batch_spec
from keras_tracin.gradients.flat import nbytes, size_of
from keras_tracin.losses.per_example import per_example_loss
from keras_tracin.methods.unrolled.batches import training_steps
from keras_tracin.methods.unrolled.replay import Replay
from keras_tracin.methods.unrolled.training import (
    State,
    Training,
    check_can_be_unrolled,
)
from keras_tracin.methods.unrolled.updates import Update
from keras_tracin.models.descriptions import describe_loss, describe_optimizer
from keras_tracin.runs import (
    TrainingRun,
    check_checkpoint,
    initial_optimizer,
    run_weights,
)
from keras_tracin.runs import manifest as run_manifest
from keras_tracin.runs.seeds import seed_variables
from keras_tracin.storage.files import digest

_PADDED = (
    " Examples of several lengths are replayed padded to the longest, in which "
    "a layer such as Dropout draws other numbers than in training: record it "
    "with one length for all, `.padded_batch(..., padded_shapes=...)`."
)
# Examples × variables of a batch up to which queries are taken side by side.
_SIDE_BY_SIDE = 2**23


class RecordedTraining:
    """A training that can be replayed.

    The arguments are those of `UnrolledInfluence`.

    Attributes:
        model: the model that was trained.
        run: its run.
        examples: the opened training examples.
        held: the same in memory.
        steps: the batches and learning rates of the steps.
        execution: the memory limit.
    """

    def __init__(
        self,
        model: keras.Model,
        train: Any,
        run: TrainingRun | str | os.PathLike,
        *,
        batches: Any = None,
        class_weight: Mapping[int, float] | None = None,
        tolerance: float = 1e-3,
        memory_limit: int | None = None,
    ):
        check_can_be_unrolled(model)
        self._optimizer = model.optimizer
        self._update = Update(model.optimizer, model.trainable_variables)
        self.model = model
        self.run = run if isinstance(run, TrainingRun) else TrainingRun(run)
        _check_run(self.run)
        check_checkpoint(model, self.run[-1])
        loss = per_example_loss(model, None, class_weight)
        self.examples = open_padded(model, train, "train", loss)
        self.held = HeldExamples.read(self.examples)
        self.steps = training_steps(self.run, train, self.held, batches)
        check_fits(model, self.held.first(4), "train")
        self._class_weight = class_weight
        self._tolerance = tolerance
        self.execution = Execution(memory_limit=memory_limit)

    @property
    def memory_limit(self) -> int:
        """Number of bytes that may be used now."""
        return self.execution.memory

    def within(self, **limits: Any) -> RecordedTraining:
        """The same within other limits, as in `Execution.within`.

        What was replayed is replayed again, since limits tell how many states
        of the training are held.
        """
        recorded = copy.copy(self)
        recorded.execution = self.execution.within(**limits)
        for cached in ("replay", "replay_error"):
            vars(recorded).pop(cached, None)
        return recorded

    @property
    def bytes_of_state(self) -> int:
        """The size of the trainable weights and their optimizer slots."""
        weights = sum(nbytes(v.value) for v in self.model.trainable_variables)
        return weights * (1 + len(self._update.slots))

    @property
    def states_held(self) -> int:
        """Largest number of states that are held at a time."""
        return max(2, self.memory_limit // (2 * self.bytes_of_state))

    @functools.cached_property
    def replay_error(self) -> float:
        """The largest distance of replayed from recorded weights.

        Reading it replays the training; see `Replay.check`.
        """
        hint = _PADDED if self.examples.is_padded else ""
        return self.replay.check(self.model, self.run, self._tolerance, hint)

    @functools.cached_property
    def replay(self) -> Replay:
        """The replay, at the state before its first step.

        The model is lent the initial weights and gets its own back.
        """
        model, run = self.model, self.run
        if model.optimizer is not self._optimizer:
            raise ValueError(
                "`UnrolledInfluence` replays the steps of the optimizer that "
                "the model had when it was made, "
                f"{type(self._optimizer).__name__}. Received a model that was "
                f"compiled since, with {type(model.optimizer).__name__}. "
                "Compile the model as it was trained and make another one."
            )
        optimizer: Any = initial_optimizer(model, run)
        assert run.initial is not None
        with run_weights(model) as load:
            load(run.initial)
            weights, constants = (
                tuple(tf.identity(v.value) for v in variables)
                for variables in (
                    model.trainable_variables,
                    model.non_trainable_weights,
                )
            )
        slots = self._update.slots_of(optimizer)
        start = State(weights, slots, _seeds(model, run))
        size = sum(map(size_of, model.trainable_variables))
        largest = max(map(len, self.steps.rows))
        training = Training(
            model,
            self._update,
            batch_spec(self.held.first(1).data),
            start,
            constants,
            self._class_weight,
            side_by_side=largest * size <= _SIDE_BY_SIDE,
        )
        return Replay(
            training,
            self.steps,
            self.held,
            start,
            first=int(keras.ops.convert_to_numpy(optimizer.iterations)),
            room=self.states_held,
        )

    def describe(self) -> dict[str, Any]:
        """All that the replay depends on beside data and options, as JSON."""
        return {
            "objective": describe_loss(self.model),
            "optimizer": describe_optimizer(self.model.optimizer),
            "training": self.digest,
        }

    @functools.cached_property
    def digest(self) -> str:
        """A digest of the examples, batches, rates and recorded weights."""
        held = self.held
        examples = content_digest([Batch(held.ids, *held.data)])
        whole = hashlib.blake2b(examples.encode(), digest_size=16)
        whole.update(np.ascontiguousarray(self.steps.rates).tobytes())
        for rows in self.steps.rows:
            whole.update(np.asarray([len(rows), *rows], np.int64).tobytes())
        assert self.run.initial is not None
        whole.update(digest(self.run.initial).encode())
        for checkpoint in self.run:
            sha256 = checkpoint.sha256 or digest(checkpoint.path)
            whole.update(sha256.encode())
        return whole.hexdigest()


def _check_run(run: TrainingRun) -> None:
    """Raises ValueError unless a run records what a replay needs."""
    if run.initial is None or run.learning_rates is None:
        raise ValueError(
            "Unrolling needs the initial weights and the rate of every step. "
            "Received a run of adopted weight files; record the training with "
            "`kt.record_training` or `kt.TracInCheckpoint`."
        )
    if not len(run):
        raise ValueError(
            f"Unrolling ends at a run's last checkpoint. Received {run!r}."
        )


def _seeds(model: keras.Model, run: TrainingRun) -> tuple[tf.Tensor, ...]:
    """The states of random numbers before the first step."""
    variables = seed_variables(model)
    assert run.directory is not None
    recorded = run_manifest.read(run.directory)["initial"]
    seeds = recorded.get("seeds", [])
    if len(seeds) != len(variables):
        raise ValueError(
            "The model draws random numbers in training, and the run in "
            f"{run.directory} does not say in which state they "
            f"began: received {len(seeds)} states, expected "
            f"{len(variables)}. Record the training with this version."
        )
    return tuple(
        tf.constant(seed, v.dtype, shape=v.shape)
        for seed, v in zip(seeds, variables, strict=True)
    )
