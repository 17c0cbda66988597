"""Model and losses that scores depend on: as JSON, and as numbers.

Synopsis:

    identity(engine)                      # layers, losses: as JSON
    numbers(engine, weights, test)        # outputs, losses, gradients
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_tracin.data.batches import Batch
from keras_tracin.engine.diagnosis import Suspect, explaining
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.fingerprint import (
    COUNT,
    examples_with,
    identify,
    spread_examples,
)
from keras_tracin.engine.measures import Numbers, measure
from keras_tracin.engine.steps import kind_of
from keras_tracin.engine.visits import Weights
from keras_tracin.gradients.sites import find_sites
from keras_tracin.projection import Projection
from keras_tracin.runs import run_weights
from keras_tracin.runs.manifest import architecture

More = Callable[[Batch, Numbers], Numbers]


def no_more(batch: Batch, numbers: Numbers) -> Numbers:
    """No further numbers."""
    return {}


def identity(engine: Engine) -> dict[str, Any]:
    """The model, layers and losses that scores depend on, as JSON."""
    known = engine.model._flatten_layers()
    with engine.updated.trainable():
        sites = find_sites(engine.model, engine.layers)
    weights = architecture(engine.model)["weights"]
    return {
        # Numbered, not named: Keras counts layers anew in each process.
        "model": [
            [f"weight {at}", shape, dtype]
            for at, (_, shape, dtype) in enumerate(weights)
        ],
        "layers": [
            next(i for i, layer in enumerate(known) if layer is site.layer)
            for site in sites
        ],
        **engine.losses,
    }


def numbers(
    engine: Engine,
    weights: Weights,
    test: Any = None,
    more: More = no_more,
    *,
    projection: Projection | None = None,
    ids: np.ndarray | None = None,
    as_queries: bool = False,
) -> Numbers:
    """Numbers of a few examples that scores are computed from.

    At the last checkpoint; see `keras_tracin.engine.fingerprint`. Training
    examples stand for queries where these have the same form.

    Args:
        engine: the model and its training examples.
        weights: the checkpoints that the scores are of.
        test: the queries, if there are any.
        more: makes more numbers that the scores depend on, of a few training
            examples and their numbers.
        projection: makes sketches, in place of the engine's own.
        ids: ids of the training examples to take; by default they are chosen.
        as_queries: whether there will be queries like training examples.

    Raises:
        ValueError: if there are no training examples of such ids.
    """
    checkpoint, position = list(weights)[-1], len(weights) - 1
    like = (projection or engine.projection, position)
    if ids is None:
        batch = spread_examples(engine.train)
    else:
        batch = examples_with(engine.train, ids)
    steps, queries, both = engine.train_steps, None, None
    if as_queries and not engine.same_loss:
        both, queries = engine.steps_like(engine.like), batch
    if test is not None:
        examples, both = engine.open_queries(test)
        queries = examples.first(COUNT)
        if kind_of(queries.data) == kind_of(engine.like.data):
            queries = None if engine.same_loss else batch
    model, loss, value = engine.model, engine.loss, engine.query_value
    with run_weights(model) as load:
        if checkpoint is not None:
            load(checkpoint)
        with explaining([Suspect("training", batch, steps)]):
            seen = measure(model, loss, steps, batch, *like)
            seen.update(more(batch, seen))
        seen.update(identify(batch))
        if queries is None or both is None:
            return seen
        steps = both.query
        with explaining([Suspect("query", queries, steps)]):
            own = measure(model, value, steps, queries, *like)
        own.update(identify(queries))
    return seen | {f"query {name}": own[name] for name in own}
