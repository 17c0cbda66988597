"""What an index needs to know of a method, and what a file says of it.

Synopsis:

    source = source_of_tracin(tracin, kt.TensorSketch(1024))
    source.identity         # what has to be the same for rows to go together
    source.of_train.sketch  # makes rows
    source.of_query.sketch  # makes a query's vector
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_tracin.engine.engine import Engine
from keras_tracin.engine.identity import identity, numbers
from keras_tracin.engine.measures import Numbers
from keras_tracin.engine.updated import unequal_shares
from keras_tracin.engine.visits import Weights
from keras_tracin.methods.tracin import TracIn
from keras_tracin.projection import (
    FactoredProjection,
    GaussianProjection,
    Projection,
    TensorSketch,
    check_projection,
    describe,
)
from keras_tracin.runs import Checkpoint, TrainingRun
from keras_tracin.storage import files

INVERSE = "inverse.npz"

_KNOWN: dict[str, Any] = {
    kind.__name__: kind
    for kind in (TensorSketch, GaussianProjection, FactoredProjection)
}


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the rows and vectors of an index come from.

    Attributes:
        engine: the model with its training data and losses.
        rates: the weights to visit, and what each counts.
        of_train: makes a training example's share of a row.
        of_query: makes a query's share of a vector.
        identity: what has to be the same for rows and queries to go together.
    """

    engine: Engine
    rates: Weights
    of_train: Projection
    of_query: Projection
    identity: dict[str, Any]

    def numbers(self, ids: np.ndarray | None = None) -> Numbers:
        """What rows and vectors are made with, as numbers.

        Args:
            ids: of the training examples to take; by default they are chosen.
        """
        # A sketched inverse is a file that identity knows.
        projection = self.of_train if "projection" in self.identity else None
        return numbers(
            self.engine,
            self.rates,
            projection=projection,
            ids=ids,
            as_queries=True,
        )

    @property
    def width(self) -> int:
        """The length of a row."""
        return len(self.rates) * self.of_train.dim


def source_of_tracin(method: TracIn, projection: Projection | None) -> Source:
    """What an index needs to know of TracIn.

    Raises:
        TypeError: if nothing can be projected by such a projection.
        ValueError: if method and projection do not go together.
    """
    if projection is None:
        projection = TensorSketch(1024)
    check_projection(projection)
    if isinstance(projection, FactoredProjection) and not projection.joint:
        raise ValueError(
            "Neighbours can be searched among sketches only, not among "
            f"sides kept apart. Received: projection={projection!r}; leave "
            "out `joint=False`."
        )
    engine = method.engine
    if engine.projection is not None:
        raise ValueError(
            "An index is built from exact gradients. Received a TracIn with "
            f"projection={engine.projection!r}: leave it out there and give "
            "it to `build`."
        )
    if method.optimizer_aware:
        raise ValueError(
            "An index holds plain gradients. Received a TracIn with "
            "optimizer_aware=True; leave it out."
        )
    if engine.shares is not None:
        raise ValueError(unequal_shares("An index"))
    checkpoints = [
        {
            "step": checkpoint.step,
            "epoch": checkpoint.epoch,
            "sha256": checkpoint.sha256 or files.digest(checkpoint.path),
            "rate": rate,
        }
        for checkpoint, rate in method.checkpoints.items()
        if checkpoint is not None
    ]
    described = {
        **identity(engine),
        "method": "TracIn",
        "projection": describe(projection),
        "checkpoints": checkpoints,
        "run": _digest(checkpoints),
    }
    return Source(engine, method.checkpoints, projection, projection, described)


def _digest(content: Any) -> str:
    """Of anything that JSON can say."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def layers_at(model: keras.Model, places: Sequence[int]) -> list:
    """The layers that an identity has noted."""
    known = model._flatten_layers()
    return [known[place] for place in places]


def made_again(recorded: dict[str, Any]) -> Projection:
    """The projection that a file describes.

    Raises:
        ValueError: if it is of a class of the user's own.
    """
    fields = dict(recorded)
    kind = _KNOWN.get(fields.pop("class"))
    if kind is None:
        raise ValueError(
            "The index was built with a projection of the user's own, "
            f"{recorded}, which files do not hold. Pass it as `projection=`."
        )
    return kind(**fields)


def places_of(
    checkpoints: Iterable[Checkpoint | None], directory: Path
) -> list[str]:
    """Where checkpoints are, as seen from a directory."""
    return [
        Path(os.path.relpath(each.path, directory)).as_posix()
        for each in checkpoints
        if each is not None
    ]


def located(
    identity: dict[str, Any],
    places: Sequence[str],
    directory: Path,
    run: TrainingRun | str | os.PathLike | None,
) -> list[Path]:
    """The weights files that an index was built from.

    Args:
        identity: that of the index.
        places: where they were, as seen from its directory.
        directory: that of the index.
        run: the run, if it has been moved.

    Raises:
        ValueError: if one is not there.
    """
    expected = [each["sha256"] for each in identity["checkpoints"]]
    if run is None:
        paths = [Path(os.path.normpath(directory / at)) for at in places]
        missing = [str(path) for path in paths if not path.is_file()]
        if missing:
            raise ValueError(
                f"The index in {directory} was built from a run that is not "
                f"where it was: {missing} missing. Pass the run, or its "
                "directory, as `run=`."
            )
        return paths
    if not isinstance(run, TrainingRun):
        run = TrainingRun(run)
    known = {each.sha256 or files.digest(each.path): each.path for each in run}
    lost = [
        each["epoch"]
        for each in identity["checkpoints"]
        if each["sha256"] not in known
    ]
    if lost:
        raise ValueError(
            f"{run!r} is not the run that the index in {directory} was built "
            f"from: it lacks the checkpoints of epochs {lost}. Pass that run "
            "as `run=`."
        )
    return [known[sha256] for sha256 in expected]
