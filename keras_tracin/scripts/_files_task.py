"""A model and its data as files, in the place of a task.

Synopsis:

    task = FilesTask(values)             # --model, --data and what goes with
    model = task.model()
    task.settle()                        # the scale, by the run's losses
    task.train(), task.test(), task.option("class_names")
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from keras_tracin.data.with_ids import with_ids
from keras_tracin.models.errors import brief
from keras_tracin.runs import TrainingRun
from keras_tracin.scripts import _data_flags
from keras_tracin.scripts._broken_images import broken_image
from keras_tracin.scripts._model_file import (
    FilesError,
    ModelForm,
    load_model,
)
from keras_tracin.scripts._program import Note, UsageError
from keras_tracin.scripts._reading import Reading
from keras_tracin.scripts._scaling import (
    OF_PIXELS,
    Evidence,
    Record,
    Scaling,
    choose,
)
from keras_tracin.scripts._sources import (
    Source,
    check_exists,
    no_source,
    open_folder,
    open_tfds,
)
from keras_tracin.scripts._tables import open_csv, open_npz

_BATCH = 256
_LITTLE = 0.8  # of the loss of guessing, above which losses tell little


class FilesTask:
    """The task that `--model`, `--data` and `--test_data` describe.

    Args:
        values: parsed flags.

    Raises:
        UsageError: if flags are missing.
    """

    def __init__(self, values: flags.FlagValues):
        self._values = values
        self._scaling: Scaling | None = None
        if values.model is None:
            raise UsageError("--data needs the --model that it trained.")
        if values.data is None and values.test_data is None:
            raise UsageError("--model needs the --data that it was trained on.")
        if values.scale == 0:
            raise UsageError("--scale divides: it should not be 0.")
        if values.offset and values.scale is None:
            raise UsageError("--offset is added after --scale: give both.")
        if len({*(values.class_names or ())}) < len(values.class_names or ()):
            raise UsageError(
                "--class_names should be distinct. Received: "
                f"{', '.join(values.class_names)}."
            )

    def model(self) -> keras.Model:
        """The model.

        Raises:
            FilesError: if it cannot be loaded.
        """
        return self._model

    def train(self) -> Any:
        """The training data, as the model takes them.

        Raises:
            UsageError: if there are none.
            FilesError: if they are not what the model takes.
        """
        return self._prepared("data")

    def test(self) -> Any:
        """The queries, as the model takes them.

        Raises:
            UsageError: if there are none.
            FilesError: if they are not what the model takes.
        """
        return self._prepared("test_data")

    def shown(self, name: str) -> Any:
        """The examples of "train" or "test" in readable form."""
        source = self._source("data" if name == "train" else "test_data")
        if not source.pixels:
            return self.train() if name == "train" else self.test()
        return self._transformed(source, lambda pixels: pixels)

    def has(self, name: str) -> bool:
        """Whether there is such data."""
        flag = {"train": "data", "test": "test_data"}.get(name)
        return flag is not None and self._values[flag].value is not None

    def option(self, name: str) -> Any:
        """The names of classes or features, if they are known."""
        if name == "feature_names":
            flag = "data" if self._is("data") else "test_data"
            columns = self._source(flag).columns
            # Inputs of their own names, and texts, need no other.
            is_known = columns is not None and not self._has_no_scale
            return list(columns or ()) if is_known else None
        names = self._class_names if name == "class_names" else None
        # Names such as "7" of the class 7 say no more than their numbers.
        plain = names == [str(at) for at in range(len(names or ()))]
        return None if plain else names

    @property
    def reading(self) -> Reading:
        """How the data were read, or the queries where there are no data."""
        assert self._scaling is not None, "`settle` comes first"
        source = self._source("data" if self._is("data") else "test_data")
        return Reading(
            None if self._has_no_scale else self._scaling.scale,
            self._scaling.offset,
            self._class_names or source.class_names,
            None if source.columns is None else list(source.columns),
            source.pixels,
        )

    @property
    def _has_no_scale(self) -> bool:
        return self._form.nested is not None or self._form.only_input.is_text

    def settle(self, compare: bool = True) -> None:
        """Settles the scale of the inputs, and compares losses with the run's.

        Args:
            compare: whether data of other losses are refused.

        Raises:
            UsageError: if nothing tells the scale of pixels.
            FilesError: if the data are not those of the run.
        """
        compare = compare and self._values.compare_losses
        present = [flag for flag in ("data", "test_data") if self._is(flag)]
        sources = [self._source(flag) for flag in present]
        self._check_kinds(sources)
        scalings = [Scaling(self._values.scale or 1.0, self._values.offset)]
        if self._values.scale is None and sources[0].pixels:
            scalings = list(OF_PIXELS)
        evidence: dict[Scaling, Evidence | None] = dict.fromkeys(scalings)
        if self._is("data") and (compare or len(scalings) > 1):
            evidence = self._compare(sources[0], scalings)
        self._scaling = scalings[0]
        if len(scalings) > 1:
            self._scaling = self._choose(evidence, sources[0])
        if compare and self._is("data"):
            self._judge(evidence[self._scaling], sources[0])
        for flag, source in zip(present, sources, strict=True):
            self._note(f"--{flag} is {source.where}{source.about}.")
        names = self.option("class_names")
        if names is not None and sources[0].classes:
            listed = ", ".join(f"{at} {name}" for at, name in enumerate(names))
            self._note(f"the classes are {listed}.")

    def _judge(self, evidence: Evidence | None, source: Source) -> None:
        """Refuses training data that have other losses than the run.

        Raises:
            FilesError: saying what was compared.
        """
        if evidence is None:
            self._note(
                "nothing that a run recorded tells whether --data are what "
                "the model was trained on."
            )
        elif evidence.agrees:
            self._note(evidence.words)
            chance = math.log(max(1, self._form.labels.classes))
            if evidence.recorded > _LITTLE * chance > 0:
                warnings.warn(
                    f"the model has learnt little: `fit` reported a loss of "
                    f"{evidence.recorded:.4g} at last, and guessing has "
                    f"{chance:.4g}. Other data, another --scale or order of "
                    "classes may agree with it as well.",
                    stacklevel=2,
                )
        elif evidence.differs:
            assert self._scaling is not None
            raise FilesError(
                f"{evidence.words} Received: {source.where}, "
                f"{self._scaling.flags}. If training itself differed, by "
                "augmentation or weights of examples: --nocompare_losses."
            )
        else:
            warnings.warn(evidence.words, stacklevel=2)

    @functools.cached_property
    def _model(self) -> keras.Model:
        return load_model(self._values.model)

    @functools.cached_property
    def _form(self) -> ModelForm:
        return ModelForm.of(self._model)

    @functools.cached_property
    def _train_source(self) -> Source:
        return self._open("data", self._values.class_names)

    @functools.cached_property
    def _test_source(self) -> Source:
        # Classes that no query has are classes all the same.
        return self._open("test_data", self._class_names)

    @property
    def _class_names(self) -> list[str] | None:
        if self._values.class_names is not None or not self._is("data"):
            return self._values.class_names
        return self._train_source.class_names

    def _is(self, flag: str) -> bool:
        return self._values[flag].value is not None

    def _source(self, flag: str) -> Source:
        return self._train_source if flag == "data" else self._test_source

    def _open(self, flag: str, class_names: list[str] | None) -> Source:
        spec = str(self._values[flag].value)
        path = Path(spec)
        open_: Callable[..., Source]
        if spec.startswith("tfds:"):
            open_ = open_tfds
        else:
            check_exists(path, flag)
            kinds = {".npz": open_npz, ".csv": open_csv}
            if path.is_dir():
                open_ = open_folder
            elif path.suffix in kinds:
                open_ = kinds[path.suffix]
            else:
                raise no_source(path, flag)
        return open_(self._values, flag, self._form, class_names)

    def _check_kinds(self, sources: list[Source]) -> None:
        if len({source.pixels for source in sources}) > 1:
            raise FilesError(
                "--data and --test_data should hold inputs of one kind. "
                f"Received: {sources[0].where} and {sources[1].where}, of "
                "which one has pixels from 0 to 255 and the other has not, so "
                "that no --scale is right for both. Write both in one form."
            )
        columns = [source.columns for source in sources if source.columns]
        if len(columns) > 1 and columns[0] != columns[1]:
            raise FilesError(
                f"The columns of {sources[1].where} that go in should be those "
                f"of {sources[0].where}, in the same order. Received: "
                f"{', '.join(columns[1])}, expected {', '.join(columns[0])}. "
                "--feature_columns names them for both."
            )
        if self._has_no_scale and self._values.scale is not None:
            raise UsageError("--scale is for one input of numbers.")

    def _compare(
        self, source: Source, scalings: list[Scaling]
    ) -> dict[Scaling, Evidence | None]:
        """What the losses that the run recorded say of each scale."""
        if self._values.run is None:
            return dict.fromkeys(scalings)
        data = self._transformed(source, lambda x: x)
        try:
            record = Record(self._model, data, TrainingRun(self._values.run))
            return {
                scaling: record.compare(self._fit(source, scaling))
                for scaling in scalings
            }
        except tf.errors.InvalidArgumentError as error:
            raise FilesError(
                broken_image("data", str(self._values.data))
                or f"TensorFlow cannot compute losses of {source.where}: "
                f"{brief(error)} Expected the data that the model was trained "
                "on."
            ) from error

    def _choose(
        self, evidence: dict[Scaling, Evidence | None], source: Source
    ) -> Scaling:
        """The only scale of pixels that agrees with the run."""
        known = {at: found for at, found in evidence.items() if found}
        scaling = choose(known)
        if scaling is not None:
            self._note(
                f"{scaling.flags}, by which alone the losses of --data are "
                "those that the run recorded."
            )
            return scaling
        possible = [
            at.flags for at, found in known.items() if not found.differs
        ]
        reason = (
            "There is nothing on record to compare losses with."
            if not known
            else "The losses that the run recorded do not tell; possible: "
            f"{', or '.join(possible) or 'none of these'}."
        )
        raise UsageError(
            f"The pixels of {source.where} are from 0 to 255; --scale should "
            "say what the model was trained on: --scale=1 for pixels as they "
            "are (a model that has a Rescaling layer takes these), --scale=255 "
            "for 0 to 1, --scale=127.5 --offset=-1 for -1 to 1. Received: no "
            f"--scale. {reason}"
        )

    def _prepared(self, flag: str) -> Any:
        if not self._is(flag):
            what = {"data": "training data", "test_data": "queries"}[flag]
            raise UsageError(f"There are no {what}: --{flag} names them.")
        source = self._source(flag)
        assert self._scaling is not None, "`settle` comes first"
        return self._transformed(source, self._fit(source, self._scaling))

    def _fit(self, source: Source, scaling: Scaling) -> Callable[[Any], Any]:
        """What makes inputs of a source what the model takes."""
        if self._form.nested is not None:
            return lambda x: x
        return lambda x: self._form.fit(scaling.apply(x), source.where)

    def _transformed(self, source: Source, change: Callable[[Any], Any]) -> Any:
        """The examples with their inputs changed, and labels as the loss's."""

        def transform(x, y, *weights):
            if source.classes:
                y = self._form.labels.encode(y)
            return (change(x), y, *weights)

        if isinstance(source.data, tf.data.Dataset):
            return source.data.map(
                transform, num_parallel_calls=tf.data.AUTOTUNE
            )
        data = tf.nest.map_structure(np.asarray, transform(*source.data))
        if source.ids is None:
            return data
        return with_ids(data, source.ids).batch(_BATCH)

    def _note(self, message: str) -> None:
        values = self._values
        if not (values["quiet"].present and values.quiet):
            warnings.warn(message, Note, stacklevel=2)


def given_files(values: flags.FlagValues) -> list[str]:
    """The flags of files that were given."""
    return [f"--{name}" for name in _data_flags.NAMES if values[name].present]
