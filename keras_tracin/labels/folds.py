"""How models see training examples that they were not trained on.

The examples are cut into folds. For each, a copy of the model is trained on all
others, and all examples are looked at after every epoch: the fold as new ones,
the others by one more model that was trained on them. What is measured is one
file for each fold, so an interrupted call goes on with the next.

Synopsis:

    def fit(model, train, callbacks):
        model.fit(*train, epochs=10, batch_size=32, callbacks=callbacks)

    folds = Folds(3, fit, directory="folds/digits")
    copies = folds.measure(model, train)     # FoldDynamics
    copies.out_of_fold.mean_probabilities    # [n, classes]
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import numbers
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_tracin.data.batches import Batch, content_digest
from keras_tracin.data.ids import check_unique
from keras_tracin.data.labels import label_values
from keras_tracin.engine.call import Call
from keras_tracin.engine.chunks import Sink
from keras_tracin.engine.forward import ForwardEngine
from keras_tracin.engine.sweep import sweep
from keras_tracin.engine.visits import PRESENT_WEIGHTS
from keras_tracin.evaluation.retraining import Data, read_whole
from keras_tracin.labels.columns import Columns
from keras_tracin.labels.copies import training_of, untrained_copy
from keras_tracin.labels.dynamics import EARLY, TrainingDynamics
from keras_tracin.labels.fold_dynamics import FoldDynamics
from keras_tracin.losses.output_statistics import (
    OutputStatistics,
    output_statistics,
)
from keras_tracin.models.descriptions import (
    describe_layers,
    describe_loss,
    describe_optimizer,
)
from keras_tracin.runs import TrainingRun
from keras_tracin.storage.arrays import load_arrays, save_arrays

Fit = Callable[[keras.Model, Any, list], Any]

_REMEDY = "Delete it and call again: only this fold is trained again."


@dataclasses.dataclass(frozen=True)
class Folds:
    """Trainings on all but a fold of the examples each.

    Attributes:
        count: number of folds, 2 or more.
        fit: trains the model that it is given on `(x, y[, sample_weight])`, as
            arrays, and passes the callbacks on to `model.fit`; or a model of
            its own, on the same and with them.
        run: a run of the model. Copies begin with its initial weights and,
            without a `fit`, train for as many epochs in batches of its size.
        directory: where finished folds are kept.
        seed: seed of the choice of folds.
        loss: used in place of the compiled loss to measure.

    Raises:
        ValueError: if there are fewer than two folds, or nothing says how to
            train.
    """

    count: int
    fit: Fit | None = None
    run: TrainingRun | None = None
    directory: str | os.PathLike | None = None
    seed: int = 0
    loss: Any = None

    def __post_init__(self):
        is_number = isinstance(self.count, numbers.Integral)
        if not is_number or isinstance(self.count, bool) or self.count < 2:
            raise ValueError(
                "`folds` should be 2 or more, or 0 for none. Received: "
                f"{self.count!r}."
            )
        if self.fit is not None and not callable(self.fit):
            raise ValueError(
                "`fit` should be a function of a model, training examples and "
                f"callbacks. Received: {self.fit!r}."
            )
        if self.fit is None and (self.run is None or self.run.initial is None):
            raise ValueError(
                "Folds are trained as the model was. Received neither a run "
                "that `TracInCheckpoint` recorded, which knows the initial "
                "weights, epochs and batches, nor `fit=`. Pass a function "
                "`fit(model, train, callbacks)` that calls "
                "`model.fit(*train, ..., callbacks=callbacks)`."
            )

    def measure(
        self, model: keras.Model, train: Any, verbose: int = 0
    ) -> FoldDynamics:
        """The dynamics of all examples in each training.

        Args:
            model: the compiled model, which stays as it is.
            train: the training examples; they are read into memory.
            verbose: 0 for silence; else a progress bar counts the trainings.

        Returns:
            The dynamics, in the order of the ids.

        Raises:
            ValueError: if there are fewer examples than folds, if the model
                cannot be copied, if `fit` does not use the callbacks, or as
                `training_dynamics`.
        """
        data = _sorted(read_whole(train, "train"))
        if len(data.ids) < self.count:
            raise ValueError(
                f"`folds` should be at most the number of examples. Received: "
                f"{self.count} for {len(data.ids)}."
            )
        fold_of = _assign(data, self.count, self.seed)
        bar = keras.utils.Progbar(self.count, unit_name="fold", verbose=verbose)
        copies = []
        for fold in range(self.count):
            path = self._path(model, data, fold)
            if path is None or not path.is_file():
                part = self._train(model, data, fold_of == fold)
                if path is not None:
                    save_arrays(path, part, unique=True)
            else:
                part = load_arrays(path, _REMEDY)
            kind = part.pop("kind").item()
            losses = part["loss"][:, fold_of == fold].mean(axis=1)
            copies.append(
                TrainingDynamics(
                    ids=data.ids, kind=kind, held_out_loss=losses, **part
                )
            )
            if verbose:
                bar.add(1)
        return FoldDynamics(tuple(copies), fold_of)

    def _path(self, model: keras.Model, data: Data, fold: int) -> Path | None:
        """The file of a fold, by a digest of all that it depends on."""
        if self.directory is None:
            return None
        optimizer = getattr(model, "optimizer", None)
        epochs = None
        if self.fit is None and self.run is not None:
            epochs = self.run.epochs
        job = {
            "data": data.digest,
            "folds": [self.count, fold, self.seed],
            "layers": describe_layers(model),
            "loss": [describe_loss(model), describe_loss(model, self.loss)],
            "optimizer": optimizer and describe_optimizer(optimizer),
            "epochs": epochs,
        }
        text = json.dumps(job, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        place = f"fold-{fold + 1}-of-{self.count}"
        return Path(self.directory, f"{place}-{name}.npz")

    def _train(
        self, model: keras.Model, data: Data, held_out: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Trains on all but some examples, and measures all."""
        observer = _Observer(data.arrays, self.loss)
        copy = self._copy(model)
        rows = np.flatnonzero(~held_out)
        train = data.rows(rows)
        if self.fit is not None:
            self.fit(copy, train, [observer])
        else:
            x, y, weight = keras.utils.unpack_x_y_sample_weight(train)
            assert self.run is not None
            training = training_of(self.run, copy, len(data.ids), len(rows))
            copy.fit(
                *(x, y, training.batch_size, training.epochs, 0),
                callbacks=[observer, *training.callbacks],
                sample_weight=weight,
            )
        return observer.results()

    def _copy(self, model: keras.Model) -> keras.Model:
        """An untrained copy of a model, with the run's initial weights."""
        try:
            return untrained_copy(model, self.run)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ValueError(
                f"The model '{model.name}' could not be copied to be trained "
                "on a part of the data. Give its class and layers a "
                "`get_config`, or let `fit(model, train, callbacks)` train a "
                f"model of its own. The reason: {error}"
            ) from error


class _Observer(keras.callbacks.Callback):
    """Measures examples after each epoch.

    Args:
        examples: `(x, y[, sample_weight])`.
        loss: used in place of the compiled loss.
    """

    def __init__(self, examples: Any, loss: Any):
        super().__init__()
        self._examples, self._loss = examples, loss
        self._engine: ForwardEngine[OutputStatistics] | None = None
        self._rows: dict[str, list[np.ndarray]] = {}
        self._given: np.ndarray | None = None
        self._early = self._total = np.zeros(())  # of probabilities
        self._epochs = 0

    def on_epoch_end(self, epoch, logs=None):
        if self._engine is None:
            self._engine = self._make_engine()
        names = self._engine.measure.names
        columns = Columns({name: {name: 1} for name in names}, 1)
        work = self._engine.forward_pass(
            "Examples in an epoch", PRESENT_WEIGHTS, columns.gather
        )
        sweep(self._engine, work, Sink(columns.add), Call(verbose=0))
        arrays = columns.arrays()
        self._epochs += 1
        self._given = arrays.pop("given", None)
        if "probabilities" in arrays:
            self._total = self._total + arrays.pop("probabilities")
            if self._epochs <= EARLY:
                self._early = self._total / self._epochs
        for name, array in arrays.items():
            self._rows.setdefault(name, []).append(array)

    def _make_engine(self) -> ForwardEngine[OutputStatistics]:
        model = self.model
        assert model is not None

        def make_measure(batch: Batch) -> OutputStatistics:
            return output_statistics(model, batch.x, batch.y, self._loss)

        return ForwardEngine(
            model, self._examples, make_measure, loss=self._loss
        )

    def results(self) -> dict[str, np.ndarray]:
        """The fields of `TrainingDynamics` but for the ids, by name."""
        if self._engine is None:
            raise ValueError(
                "`fit` should pass the callbacks on to `model.fit`, and train "
                "for an epoch or more. Received a `fit` that ended no epoch "
                "with them."
            )
        fields = {name: np.stack(rows) for name, rows in self._rows.items()}
        if self._given is not None:
            fields["given_labels"] = np.moveaxis(self._given, -1, 0)
        if self._total.ndim:
            means = self._total / self._epochs
            fields["mean_probabilities"] = np.moveaxis(means, -1, 0)
            fields["early_probabilities"] = np.moveaxis(self._early, -1, 0)
        fields["kind"] = np.asarray(self._engine.measure.kind)
        return {"epochs": np.arange(1, self._epochs + 1), **fields}


def _sorted(data: Data) -> Data:
    """The examples by their ids: their order may differ at each reading."""
    check_unique(data.ids, "train")
    order = np.argsort(data.ids, kind="stable")
    arrays = data.rows(order)
    batch = Batch(data.ids[order], *arrays)
    return Data(batch.ids, arrays, content_digest([batch]))


def _assign(data: Data, count: int, seed: int) -> np.ndarray:
    """The fold of each example, with about as many of each label in all."""
    drawn = np.random.default_rng(seed).permutation(len(data.ids))
    if len(data.arrays) > 1:
        labels = label_values(data.arrays[1])
        drawn = drawn[np.argsort(labels[drawn], kind="stable")]
    folds = np.empty(len(drawn), int)
    folds[drawn] = np.arange(len(drawn)) % count
    return folds
