"""One step of training on the strongest proponents, and what it does.

A training again on subsets takes hours where models are large; a step takes
none. It asks less: whether more training on what is called a proponent does
lower the query's loss now (Chang et al. 2024, "tail-patch").

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

from keras_tracin.evaluation.training_again import (
    Data,
    check_same,
    query_values,
    read_whole,
)
from keras_tracin.losses.output_kinds import SAMPLE
from keras_tracin.losses.per_example import per_example_loss
from keras_tracin.models.exclusive import exclusively
from keras_tracin.results import Attribution, TopK
from keras_tracin.runs import run_weights


@dataclasses.dataclass(frozen=True)
class TailPatch:
    """What a step on a query's proponents did to it.

    Attributes:
        query_ids: `[m]`.
        gain: `[m]`, the query's loss before a step on its `k` strongest
            proponents minus that after it: positive where they helped.
        random_gain: `[m]`, the same of a step on `k` random examples.
    """

    query_ids: np.ndarray
    gain: np.ndarray
    random_gain: np.ndarray

    @property
    def mean(self) -> float:
        """The mean gain over queries beyond that of random examples."""
        return float(np.mean(self.gain - self.random_gain))


@exclusively
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
    """Takes one step on each query's proponents, and measures the query.

    A step is one of plain gradient descent on the proponents' mean loss, in
    inference mode, from the weights that the model has; it has them back
    afterwards, and its optimizer is not touched.

    Args:
        scores: of these queries; a `TopK` has to hold `k` proponents.
        model: the trained model, compiled with its loss.
        train: what the scores were made with. It is read into memory.
        test: the queries.
        k: how many proponents a step is made of.
        learning_rate: of the step; by default the optimizer's present one.
        query_loss: what to measure on the queries, as in `TracIn`.
        loss: used in place of the compiled loss.
        seed: that of the random examples.

    Returns:
        A `TailPatch`.

    Raises:
        ValueError: if the scores are of other queries or examples, there are
            fewer than `k`, or the learning rate is not above zero.
    """
    data = read_whole(train, "train", model)
    asked = read_whole(test, "test")
    check_same("queries", scores.query_ids, asked.ids)
    rows = _proponents(scores, data, k)
    rate = _rate(model, learning_rate)
    sample = asked.rows(slice(SAMPLE))
    rng = np.random.default_rng(seed)
    losses = per_example_loss(model, loss)
    variables = model.trainable_variables

    @tf.function(reduce_retracing=True)
    def gradients(batch):
        x, y, *weight = batch
        with tf.GradientTape() as tape:
            found = losses(
                y, model(x, training=False), weight[0] if weight else None
            )
            mean = tf.reduce_mean(found)
        return tape.gradient(mean, [v.value for v in variables])

    def after(chosen: np.ndarray, one: Any) -> float:
        found = gradients(data.rows(chosen))
        for variable, change in zip(variables, found, strict=True):
            if change is not None:
                step = tf.convert_to_tensor(change)
                variable.assign(variable - rate * step)
        return query_values(model, one, query_loss, loss, sample)[0]

    gains = np.zeros([2, len(asked.ids)])
    with run_weights(model):
        start = [keras.ops.convert_to_numpy(v) for v in variables]
        for at in range(len(asked.ids)):
            one = asked.rows(np.arange(at, at + 1))
            before = query_values(model, one, query_loss, loss, sample)[0]
            random = rng.choice(len(data.ids), k, replace=False)
            for side, chosen in enumerate((rows[at], random)):
                gains[side, at] = before - after(chosen, one)
                for variable, value in zip(variables, start, strict=True):
                    variable.assign(value)
    return TailPatch(asked.ids, gains[0], gains[1])


def _proponents(scores: Attribution | TopK, data: Data, k: int) -> np.ndarray:
    """Where each query's proponents are among the examples, `[m, k]`."""
    if isinstance(scores, Attribution):
        check_same("training examples", scores.train_ids, data.ids)
        scores = scores.top_k(k)
    ids = scores.proponents.ids
    if not 1 <= k <= ids.shape[1]:
        raise ValueError(
            f"`k` should be from 1 to {ids.shape[1]}, the proponents that "
            f"`scores` holds for a query. Received: {k!r}."
        )
    known = {one: at for at, one in enumerate(data.ids.tolist())}
    wanted = ids[:, :k].tolist()
    unknown = [one for row in wanted for one in row if one not in known]
    if unknown:
        raise ValueError(
            "`scores` should be of these training examples. Received ids that "
            f"are not among them: {unknown[:5]}."
        )
    return np.array([[known[one] for one in row] for row in wanted])


def _rate(model: keras.Model, given: float | None) -> float:
    if given is None:
        optimizer = getattr(model, "optimizer", None)
        if optimizer is None:
            raise ValueError(
                "The model has no optimizer whose learning rate could be "
                "taken. Pass `learning_rate=`."
            )
        given = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
    if not given > 0:
        raise ValueError(
            f"`learning_rate` should be above zero. Received: {given!r}."
        )
    return given
