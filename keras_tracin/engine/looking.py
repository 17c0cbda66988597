"""A first look at an engine's gradients, once for each kind of examples.

Synopsis:

    with run_weights(engine.model) as load:
        load(checkpoint)
        look(engine, queries)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch
from keras_tracin.engine.diagnosis import Suspect, explaining
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.first_look import EXAMPLES, FirstLook
from keras_tracin.engine.queries import Queries
from keras_tracin.engine.spot_checks import SpotChecks
from keras_tracin.engine.steps import GradientFunctions, kind_of
from keras_tracin.gradients import factors as algebra


def look(
    engine: Engine, queries: Queries | None = None, size: int | None = None
) -> None:
    """Looks, once, whether gradients are what plain TensorFlow computes.

    To be called with the weights of a checkpoint in the model.

    Args:
        engine: the model and its training examples.
        queries: the queries that are scored, if any; with a loss or in a form
            of their own, they are looked at as well.
        size: number of examples in all batches, where XLA compiles for each
            size.

    Raises:
        ValueError: if gradients differ, or examples of a batch interact,
            naming the layer. A model that is random in inference mode is only
            warned of.
    """
    steps = engine.steps_like(engine.like) if queries is None else queries.steps
    if "training" not in engine.looked:
        _look_at(steps.train, engine.train.sample(EXAMPLES), size, "training")
        engine.looked.add("training")
    if queries is None or steps.query is steps.train:
        return
    batch = queries.batches[0]
    kind = kind_of(batch.data)
    if kind not in engine.looked:
        jit_compile = engine.execution.jit_compile
        _look_at(
            steps.query, batch, len(batch) if jit_compile else None, "query"
        )
        if not jit_compile and len(batch) > EXAMPLES:
            _look_at_whole(engine, steps.query, batch)
        engine.looked.add(kind)


def _look_at(
    functions: GradientFunctions, batch: Batch, size: int | None, role: str
) -> None:
    with explaining([Suspect(role, batch, functions)]):
        complaint = FirstLook(functions, batch, size, role).complaint()
    if complaint is not None:
        raise ValueError(complaint)


def _look_at_whole(
    engine: Engine, functions: GradientFunctions, batch: Batch
) -> None:
    """Compares queries of a batch of full size with themselves alone."""
    position = () if engine.projection is None else (np.int32(0),)

    def measure_lengths(data: Any) -> np.ndarray:
        factors = functions.query_factors(data, *position)
        squares = tf.add_n(list(map(algebra.squared_norm, factors)))
        return np.sqrt(squares.numpy())

    spots = SpotChecks(engine.model, functions.loss, role="query")
    spots.look(0, batch, measure_lengths(batch.data), measure_lengths)
