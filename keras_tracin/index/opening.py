"""Opening an index: by its method, or by what its files say.

Synopsis:

    recipe = recipe_of(tracin, kt.TensorSketch(1024), directory)
    check_model(store.manifest, model)
    known = recipe_in(store, model, tracin, None)       # None without a method
    resident = open_resident(store, model, known, None, run)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import keras

from keras_tracin.data.batches import Batch
from keras_tracin.engine.distribution import Strategy, worker_of
from keras_tracin.engine.fingerprint import FILE_NAME as FINGERPRINT
from keras_tracin.engine.fingerprint import agree, load_numbers, tolerance
from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.engine.visits import digest_of
from keras_tracin.gradients.capture import LossAndNumbers
from keras_tracin.gradients.rules.recurrent_cells import kind_of
from keras_tracin.index.manifest import (
    FILE_NAME,
    REMEDY,
    Manifest,
    wait_for_index,
)
from keras_tracin.index.resident import Resident
from keras_tracin.index.store import Store
from keras_tracin.losses.model_outputs import HELP, model_output
from keras_tracin.losses.per_example import PerExampleLoss
from keras_tracin.losses.query_losses import query_value
from keras_tracin.methods.index_files import (
    described_projection,
    query_projection,
)
from keras_tracin.methods.indexable import Indexable, RowRecipe
from keras_tracin.models.descriptions import (
    describe_layers,
    describe_loss,
    difference,
)
from keras_tracin.projection import Projection
from keras_tracin.runs import Checkpoint, TrainingRun
from keras_tracin.runs.manifest import first_mismatch, weights_digest

_ONE = (TrainingRun, str, os.PathLike)
Run: TypeAlias = TrainingRun | str | os.PathLike
Runs: TypeAlias = Run | Sequence[Run]


def recipe_of(
    method: Indexable, projection: Projection | None, directory: Path
) -> RowRecipe:
    """How a method's rows and query vectors are made.

    Args:
        method: the method to be indexed.
        projection: sketches gradients; None for the method's own.
        directory: directory of the index, where a method may keep files.

    Raises:
        TypeError: if there is no index of such a method.
        ValueError: if method and projection do not go together.
    """

    def keep(
        name: str, save: Callable[[Path], None], strategy: Strategy | None
    ) -> Path:
        wait_for_index(directory, worker_of(strategy))
        if not (directory / FILE_NAME).is_file():
            directory.mkdir(parents=True, exist_ok=True)
            save(directory / name)
        return directory / name

    if isinstance(method, type) or not isinstance(method, Indexable):
        raise TypeError(
            "An index is built from a `kt.TracIn`, `kt.TRAK` or "
            "`kt.InfluenceFunctions`. Received: "
            f"{type(method).__name__}."
        )
    return method.index_rows(projection, keep)


def recipe_in(
    store: Store,
    model: keras.Model,
    method: Indexable | None,
    projection: Projection | None,
) -> RowRecipe | None:
    """How the rows of an index are made, by its method; None without one.

    Args:
        store: the index.
        model: the trained model.
        method: the method the index was built from, if it is given.
        projection: the projection it was built with, if it is given.

    Raises:
        ValueError: if the method, or without one the model, is not that of
            the index, or if the index cannot be opened without its method.
    """
    identity = store.manifest.identity
    if method is not None:
        if projection is None:
            projection = described_projection(identity)
        recipe = recipe_of(method, projection, store.directory)
        store.manifest.check({**recipe.identity, "dtype": identity["dtype"]})
        if store.manifest.knows_numbers:
            check_numbers(store, recipe)
        return recipe
    known = identity["query_loss"] in ("loss", "logit", "margin")
    if identity["loss"] != "compiled" or not known:
        raise ValueError(
            f"The index in {store.directory} was built with a loss of the "
            "user's own, which files do not hold. Pass the method it was "
            "built from as `method=`."
        )
    if store.manifest.knows_numbers:
        _check_configuration(store.manifest, model)
    return None


def check_numbers(store: Store, recipe: RowRecipe) -> None:
    """Compares what rows are made with, by numbers, or notes the numbers.

    See `keras_tracin.engine.fingerprint`.

    Raises:
        ValueError: if the rows were made with something else, or by a version
            that does not say with what.
    """
    path = store.directory / FINGERPRINT
    if not store.manifest.knows_numbers:
        raise ValueError(
            f"The index in {store.directory} was begun by an earlier "
            "version of keras_tracin, which does not say what losses and "
            "layers its rows are made with: nothing can be added to it. "
            "It can be opened and queried once it is finished; build "
            "another one, in another directory, to go on."
        )
    # In this order: another process writes its rows after its numbers.
    begun = store.manifest.entries or any(store.directory.glob("rows/[0-9]*"))
    ids = None
    if path.is_file():
        ids = load_numbers(path)["ids"]
    elif begun:
        raise ValueError(
            f"{path} is missing, which says what rows are made with. {REMEDY}"
        )
    share = tolerance(recipe.engine.model)
    remedy = "Use what the index was built with"
    agree(path, recipe.numbers(ids), share, remedy)


def check_sketches(manifest: Manifest, model: keras.Model) -> None:
    """Raises ValueError if an earlier version made rows in another way."""
    if manifest.factors_recurrences:
        return
    for layer in model._flatten_layers():
        if kind_of(getattr(layer, "cell", None)) is not None:
            raise ValueError(
                f"The index in {manifest.directory} was built by an earlier "
                "version of keras_tracin, which sketched recurrent layers as "
                f"'{layer.name}' in another way. Build the index anew."
            )


def check_model(manifest: Manifest, model: keras.Model) -> None:
    """Raises ValueError unless the rows are those of such a model."""
    check_sketches(manifest, model)
    mismatch = first_mismatch(manifest.identity["model"], model)
    if mismatch:
        raise ValueError(
            f"The model '{model.name}' is not the one whose index is in "
            f"{manifest.directory}: {mismatch}."
        )
    digest = manifest.identity.get("weights")
    if digest not in (None, weights_digest(model)):
        raise ValueError(
            f"The weights of the model '{model.name}' are not those that the "
            f"index in {manifest.directory} was built at: influence functions "
            "hold at one set of weights. Load these, or build an index anew."
        )


def _check_configuration(manifest: Manifest, model: keras.Model) -> None:
    """Raises ValueError if layers or loss are not those of the index.

    Without the method, numbers cannot be compared: there are no examples.
    """
    identity = manifest.identity
    layers = json.loads(json.dumps(describe_layers(model)))
    recorded_layers = manifest.get("layers")
    pairs: list[tuple[str, Any, Any]] = [
        ("number of layers", len(layers), len(recorded_layers)),
        *(
            (f"layer {at}", *pair)
            for at, pair in enumerate(
                zip(layers, recorded_layers, strict=False)
            )
        ),
    ]
    if identity["query_loss"] == "loss":
        received = json.loads(json.dumps(describe_loss(model)))
        recorded = dict(identity["objective"])
        del recorded["query_loss"]
        pairs.append(("compiled", received, recorded))
    for name, received, expected in pairs:
        mismatch = difference(received, expected, name)
        if mismatch is not None:
            entry, new, old = mismatch
            raise ValueError(
                f"The model '{model.name}' is not the one whose index is in "
                f"{manifest.directory}: received {entry}={new!r}, expected "
                f"{old!r}. Build and compile the model by the same code; if "
                "it computes the same all the same, pass the method as "
                "`method=`, and its numbers are compared."
            )


def open_resident(
    store: Store,
    model: keras.Model,
    recipe: RowRecipe | None,
    projection: Projection | None,
    run: Runs | None,
) -> Resident:
    """The maker of queries' vectors, by the method or by the files.

    Args:
        store: the index.
        model: the trained model.
        recipe: how rows are made, if the method is given.
        projection: the projection the index was built with, if it is given.
        run: the training run, or the runs, if they have been moved.

    Raises:
        ValueError: if checkpoints, or a projection, are missing.
    """
    identity = store.manifest.identity
    checkpoints = identity["checkpoints"]
    paths: Sequence[Path] = []
    if recipe is not None:
        paths = [c.path for c in recipe.checkpoints if c is not None]
        projection = recipe.query_projection
    else:
        projection = query_projection(identity, store.directory, projection)
        if checkpoints:
            paths = _locate_checkpoints(store.manifest, run)

    def value_like(batch: Batch) -> PerExampleLoss:
        if recipe is not None:
            return recipe.engine.query_value
        if "output" in identity:
            output = model_output(model, None, identity["output"], batch.x)
            return LossAndNumbers(output.value, output.numbers)
        return query_value(model, identity["query_loss"], x=batch.x)

    def functions_like(batch: Batch) -> GradientFunctions:
        if recipe is not None:
            return recipe.engine.steps_like(batch).query
        value = value_like(batch)
        known = model._flatten_layers()
        layers = [known[position] for position in identity["layers"]]
        return GradientFunctions(model, value, batch.data, layers)

    digests = [checkpoint["sha256"] for checkpoint in checkpoints]
    return Resident(
        model,
        projection,
        list(zip(paths, digests, strict=True)),
        [checkpoint["rate"] for checkpoint in checkpoints] or [1.0],
        functions_like,
        value_like,
        HELP if "output" in identity else None,
    )


def relative_paths(
    checkpoints: Iterable[Checkpoint | None], directory: Path
) -> list[str]:
    """The checkpoints' files, as seen from a directory."""
    return [
        Path(os.path.relpath(checkpoint.path, directory)).as_posix()
        for checkpoint in checkpoints
        if checkpoint is not None
    ]


def _locate_checkpoints(manifest: Manifest, run: Runs | None) -> list[Path]:
    """The weights files that an index was built from.

    Args:
        manifest: list of the index's files.
        run: the run, or the runs, if they have been moved.

    Raises:
        ValueError: if a file is not there.
    """
    directory, checkpoints = (
        manifest.directory,
        manifest.identity["checkpoints"],
    )
    if run is None:
        paths = [
            Path(os.path.normpath(directory / place))
            for place in manifest.get("checkpoints")
        ]
        missing = [str(path) for path in paths if not path.is_file()]
        if missing:
            raise ValueError(
                f"The index in {directory} was built from a run that is not "
                f"where it was: {missing} missing. Pass the run, or its "
                "directory, as `run=`."
            )
        return paths
    given = [run] if isinstance(run, _ONE) else list(run)
    runs = [r if isinstance(r, TrainingRun) else TrainingRun(r) for r in given]
    known = {digest_of(c): c.path for run in runs for c in run}
    lost = [c["epoch"] for c in checkpoints if c["sha256"] not in known]
    if lost:
        raise ValueError(
            f"{given} is not the run that the index in {directory} was built "
            f"from: it lacks the checkpoints of epochs {lost}. Pass that run "
            "as `run=`."
        )
    return [known[checkpoint["sha256"]] for checkpoint in checkpoints]
