"""Trains one step on the strongest proponents and measures the query.

Retraining a large model on subsets takes hours; a step takes seconds. It
answers a smaller question: whether more training on the proponents lowers the
query's loss now (Chang et al. 2024, "tail-patch").

Synopsis:

    patch = kt.evaluation.tail_patch(top, model, train, test, k=10)
    patch.gain.mean(), patch.random_gain.mean()
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.evaluation.retraining import (
    Data,
    check_same,
    query_values,
    read_whole,
)
from keras_tracin.losses.output_kinds import SAMPLE
from keras_tracin.losses.per_example import per_example_loss
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.results import Attribution, TopK
from keras_tracin.runs import run_weights


@dataclasses.dataclass(frozen=True)
class TailPatch:
    """Changes of queries' losses by a step on their proponents.

    Attributes:
        query_ids: ids of the queries, `[m]`.
        gain: loss of the query before a step on its `k` strongest proponents
            minus its loss after the step, `[m]`: positive if they helped.
        random_gain: the same for a step on `k` random examples, `[m]`.
    """

    query_ids: np.ndarray
    gain: np.ndarray
    random_gain: np.ndarray

    @property
    def mean(self) -> float:
        """Mean over queries of `gain - random_gain`."""
        return float(np.mean(self.gain - self.random_gain))


@exclusive_access
def tail_patch(
    scores: Attribution | TopK,
    model: keras.Model,
    train: Any,
    test: Any,
    *,
    k: int = 10,
    learning_rate: float | None = None,
    query_loss: Any = "loss",
    loss: Any = None,
    seed: int = 0,
) -> TailPatch:
    """Trains one step on each query's proponents, and measures the query.

    It is a step of gradient descent on the proponents' mean loss, in inference
    mode, from the present weights of the model. The weights are restored
    afterwards, and the optimizer is not used.

    Args:
        scores: scores of the queries; a `TopK` must hold at least `k`
            proponents.
        model: the trained model, compiled with its loss.
        train: training examples that were scored. They are read into memory.
        test: the queries.
        k: number of proponents in a step.
        learning_rate: learning rate of the step; by default the present one
            of the optimizer.
        query_loss: quantity to measure on the queries, as in `TracIn`.
        loss: loss to use in place of the compiled one.
        seed: seed of the random examples.

    Returns:
        A `TailPatch`.

    Raises:
        ValueError: if the scores are of other queries or examples, there are
            fewer than `k`, or the learning rate is not above zero.
    """
    data = read_whole(train, "train", model)
    queries = read_whole(test, "test")
    check_same("queries", scores.query_ids, queries.ids)
    rows = _proponents(scores, data, k)
    rate = _learning_rate(model, learning_rate)
    sample = queries.rows(slice(SAMPLE))
    rng = np.random.default_rng(seed)
    losses = per_example_loss(model, loss)
    variables = model.trainable_variables

    @tf.function(reduce_retracing=True)
    def gradients(batch):
        x, y, *weight = batch
        with tf.GradientTape() as tape:
            values = losses(
                y, model(x, training=False), weight[0] if weight else None
            )
            mean = tf.reduce_mean(values)
        return tape.gradient(mean, [v.value for v in variables])

    def measure_after_step(members: np.ndarray, query: Any) -> float:
        grads = gradients(data.rows(members))
        for variable, grad in zip(variables, grads, strict=True):
            if grad is not None:
                step = rate * tf.convert_to_tensor(grad)
                variable.assign(variable - step)
        return query_values(model, query, query_loss, loss, sample)[0]

    gains = np.zeros([2, len(queries.ids)])
    with run_weights(model):
        start = [keras.ops.convert_to_numpy(v) for v in variables]
        for i in range(len(queries.ids)):
            query = queries.rows(np.arange(i, i + 1))
            before = query_values(model, query, query_loss, loss, sample)[0]
            random = rng.choice(len(data.ids), k, replace=False)
            for side, members in enumerate((rows[i], random)):
                after = measure_after_step(members, query)
                gains[side, i] = before - after
                for variable, value in zip(variables, start, strict=True):
                    variable.assign(value)
    return TailPatch(queries.ids, gains[0], gains[1])


def _proponents(scores: Attribution | TopK, data: Data, k: int) -> np.ndarray:
    """Positions of each query's proponents among the examples, `[m, k]`."""
    if isinstance(scores, Attribution):
        check_same("training examples", scores.train_ids, data.ids)
        scores = scores.top_k(k)
    ids = scores.proponents.ids
    if not 1 <= k <= ids.shape[1]:
        raise ValueError(
            f"`k` should be from 1 to {ids.shape[1]}, the proponents that "
            f"`scores` holds for a query. Received: {k!r}."
        )
    position_of = {id_: i for i, id_ in enumerate(data.ids.tolist())}
    proponents = ids[:, :k].tolist()
    unknown = [
        id_ for row in proponents for id_ in row if id_ not in position_of
    ]
    if unknown:
        raise ValueError(
            "`scores` should be of these training examples. Received ids that "
            f"are not among them: {unknown[:5]}."
        )
    return np.array([[position_of[id_] for id_ in row] for row in proponents])


def _learning_rate(model: keras.Model, rate: float | None) -> float:
    if rate is None:
        optimizer = getattr(model, "optimizer", None)
        if optimizer is None:
            raise ValueError(
                "The model has no optimizer whose learning rate could be "
                "taken. Pass `learning_rate=`."
            )
        rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
    if not rate > 0:
        raise ValueError(
            f"`learning_rate` should be above zero. Received: {rate!r}."
        )
    return rate
