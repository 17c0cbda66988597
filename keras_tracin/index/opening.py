"""From a method, or from what its files say, to what sketches queries.

Synopsis:

    check_model(store, model)
    source = source_in(store, model, method, projection)  # None: no method
    resident = resident_in(store, model, source, projection, run)
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from keras_tracin.curvature.solvers.randomized_sketch import InverseSketch
from keras_tracin.data.batches import Batch
from keras_tracin.engine.fingerprint import tolerance
from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.index.resident import Resident
from keras_tracin.index.sketched_inverse import (
    INVERSE,
    sides,
    source_of_influence,
)
from keras_tracin.index.source import (
    Source,
    layers_at,
    located,
    made_again,
    source_of_tracin,
)
from keras_tracin.index.store import Store
from keras_tracin.losses.query_losses import query_value
from keras_tracin.methods.influence import InfluenceFunctions
from keras_tracin.methods.tracin import TracIn
from keras_tracin.models.descriptions import (
    describe_layers,
    describe_loss,
    difference,
)
from keras_tracin.projection import Projection
from keras_tracin.runs import TrainingRun
from keras_tracin.runs.manifest import first_mismatch, weights_digest


def source_of(
    method: TracIn | InfluenceFunctions,
    projection: Projection | None,
    directory: Path,
) -> Source:
    """What an index needs of a method.

    Args:
        method: what is to be indexed.
        projection: what makes TracIn's sketches, `TensorSketch(1024)` by
            default.
        directory: that of the index, where a sketched inverse is kept.

    Raises:
        TypeError: if nothing can be indexed by such a method or projection.
        ValueError: if the two do not go together.
    """
    if isinstance(method, TracIn):
        return source_of_tracin(method, projection)
    if isinstance(method, InfluenceFunctions):
        return source_of_influence(method, projection, directory)
    raise TypeError(
        "An index is built from a `kt.TracIn` or from "
        "`kt.InfluenceFunctions`. Received: "
        f"{type(method).__name__}."
    )


def check_model(store: Store, model: keras.Model) -> None:
    """Raises ValueError unless the rows are of such a model."""
    mismatch = first_mismatch(store.identity["model"], model)
    if mismatch:
        raise ValueError(
            f"The model '{model.name}' is not the one whose index is in "
            f"{store.directory}: {mismatch}."
        )
    digest = store.identity.get("weights")
    if digest not in (None, weights_digest(model)):
        raise ValueError(
            f"The weights of the model '{model.name}' are not those that the "
            f"index in {store.directory} was built at: influence functions "
            "hold at one set of weights. Load these, or build an index anew."
        )


def source_in(
    store: Store,
    model: keras.Model,
    method: TracIn | InfluenceFunctions | None,
    projection: Projection | None,
) -> Source | None:
    """What the method gives, which has to be that of the rows."""
    identity = store.identity
    if method is not None:
        if projection is None and "projection" in identity:
            projection = made_again(identity["projection"])
        source = source_of(method, projection, store.directory)
        store.check({**source.identity, "dtype": identity["dtype"]})
        if store.knows_numbers:
            store.made_of(source.numbers, tolerance(source.engine.model))
        return source
    known = identity["query_loss"] in ("loss", "logit", "margin")
    if identity["loss"] != "compiled" or not known:
        raise ValueError(
            f"The index in {store.directory} was built with a loss of the "
            "user's own, which files do not hold. Pass the method it was "
            "built from as `method=`."
        )
    if store.knows_numbers:
        _check_configuration(store, model)
    return None


def _check_configuration(store: Store, model: keras.Model) -> None:
    """Raises ValueError if layers or loss are not those of the index.

    Without the method, numbers cannot be compared: there are no examples.
    """
    layers = json.loads(json.dumps(describe_layers(model)))
    recorded_layers = store.noted("layers")
    pairs: list[tuple[str, Any, Any]] = [
        ("number of layers", len(layers), len(recorded_layers)),
        *(
            (f"layer {at}", *pair)
            for at, pair in enumerate(
                zip(layers, recorded_layers, strict=False)
            )
        ),
    ]
    if store.identity["query_loss"] == "loss":
        received = json.loads(json.dumps(describe_loss(model)))
        recorded = dict(store.identity["objective"])
        del recorded["query_loss"]
        pairs.append(("compiled", received, recorded))
    for name, received, expected in pairs:
        found = difference(received, expected, name)
        if found is not None:
            entry, new, old = found
            raise ValueError(
                f"The model '{model.name}' is not the one whose index is in "
                f"{store.directory}: received {entry}={new!r}, expected "
                f"{old!r}. Build and compile the model by the same code; if "
                "it computes the same all the same, pass the method as "
                "`method=`, and its numbers are compared."
            )


def resident_in(
    store: Store,
    model: keras.Model,
    source: Source | None,
    projection: Projection | None,
    run: TrainingRun | str | os.PathLike | None,
) -> Resident:
    """What sketches queries, from the method or from what the files say."""
    identity = store.identity
    checkpoints = identity["checkpoints"]
    paths: Sequence[Path]
    if source is not None:
        paths = [each.path for each in source.rates if each is not None]
        projection = source.of_query
    elif checkpoints:
        places = store.noted("checkpoints")
        paths = located(identity, places, store.directory, run)
        projection = projection or made_again(identity["projection"])
    else:
        inverse = store.directory / INVERSE
        paths, (_, projection) = [], sides(InverseSketch.load(inverse))

    def functions_like(batch: Batch) -> GradientFunctions:
        if source is not None:
            return source.engine.steps_like(batch).query
        value = query_value(model, identity["query_loss"], x=batch.x)
        layers = layers_at(model, identity["layers"])
        return GradientFunctions(model, value, batch.data, layers)

    digests = [each["sha256"] for each in checkpoints]
    return Resident(
        model,
        projection,
        list(zip(paths, digests, strict=True)),
        [each["rate"] for each in checkpoints] or [1.0],
        functions_like,
    )
