"""Spreads work over the devices of a `tf.distribute.Strategy`.

The only module that names `tf.distribute`. A compiled step takes a batch and
returns something for each of its examples; spread over a strategy it takes and
returns the same, but each replica has worked on a share of the batch. Results
do not depend on the number of replicas. Processes of one cluster do not talk to
each other in a step: each has parts of the work of its own (`worker_of`).

Synopsis:

    check_built_under(strategy, model)
    step = spread(step, strategy, axis=0)
    step(data, queries)  # as before
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import keras
import tensorflow as tf

Strategy: TypeAlias = tf.distribute.Strategy


NAMED: dict[str, Callable[[], Strategy]] = {
    "mirrored": tf.distribute.MirroredStrategy,
    "one_device": lambda: tf.distribute.OneDeviceStrategy(
        "/gpu:0" if tf.config.list_logical_devices("GPU") else "/cpu:0"
    ),
}


def check_built_under(strategy: Strategy | None, model: keras.Model) -> None:
    """Refuses a model whose variables were made outside of the strategy.

    Such a model would run, and silently, with all replicas on the variables
    of one device.

    Raises:
        TypeError: if `strategy` is not a `tf.distribute.Strategy`.
        ValueError: if a variable was not made under it.
    """
    if strategy is None:
        return
    if not isinstance(strategy, tf.distribute.Strategy):
        raise TypeError(
            "`strategy` should be a `tf.distribute.Strategy`. Received: "
            f"{strategy!r}."
        )
    outside = [
        variable.path
        for variable in model.variables
        if not strategy.extended.variable_created_in_scope(variable.value)
    ]
    if outside:
        raise ValueError(
            f"The model '{model.name}' was not built under the strategy it is "
            f"to be scored with, {type(strategy).__name__}: received "
            f"{len(outside)} of {len(model.variables)} variables from outside "
            f"of it, '{outside[0]}' for one. Build the model within `with "
            "strategy.scope():` and load its weights there, or leave out "
            "`strategy=`."
        )


def worker_of(strategy: Strategy | None) -> tuple[int, int]:
    """The index of this process in its cluster, and the cluster's size.

    The cluster is that of the strategy or, without one, of `TF_CONFIG`.
    """
    resolver: Any = getattr(strategy, "cluster_resolver", None)
    if strategy is None:
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    cluster = None if resolver is None else resolver.cluster_spec()
    if not cluster or not cluster.jobs:
        return 0, 1
    # The chief comes first: it has the parts that all others wait for.
    jobs = [name for name in ("chief", "worker") if name in cluster.jobs]
    order = [
        (name, task) for name in jobs for task in cluster.task_indices(name)
    ]
    here = (resolver.task_type, resolver.task_id)
    return (order.index(here), len(order)) if here in order else (0, 1)


def check_alone(strategy: Strategy | None) -> None:
    """Raises ValueError if the strategy has work for other processes too."""
    _, workers = (0, 1) if strategy is None else worker_of(strategy)
    if workers > 1:
        raise ValueError(
            f"{workers} processes have the strategy "
            f"{type(strategy).__name__} in common, and need a place for what "
            "each has done. Pass `directory=`, the same for all of them."
        )


def check_first(strategy: Strategy | None, what: str) -> None:
    """Raises ValueError in any but the first process of a cluster.

    Args:
        strategy: the cluster's strategy; None for `TF_CONFIG`.
        what: the work that is not shared, in words.
    """
    index, workers = worker_of(strategy)
    if index:
        raise ValueError(
            f"{what} is the work of the first of {workers} processes. "
            f"Received a call in number {index}, counted from 0: call it in "
            "number 0 only, or outside of the cluster."
        )


def spread(step: Callable, strategy: Strategy | None, axis: int) -> Callable:
    """A step each of whose replicas works on a share of the batch.

    Args:
        step: `(data, *others) -> results`, where every tensor in `data` has
            the examples along its first axis and every result along `axis`.
        strategy: the strategy to run under; None returns `step` as it is.
        axis: the examples' axis in the results: 0 or -1.

    Returns:
        A function with the arguments and results of `step`, to be called
        inside a `tf.function`.
    """
    if strategy is None:
        return step
    replicas = _local_replicas(strategy)

    def whole(data, *others):
        examples = tf.shape(tf.nest.flatten(data)[0])[0]
        share = -(-examples // replicas)
        like: list[Any] = []  # a step's results, of any replica

        def on_replica(data, *others):
            first = share * _local_replica(replicas)
            # All shares are of one size: the last example stands in for
            # those that are missing.
            rows = tf.minimum(first + tf.range(share), examples - 1)
            results = step(_rows_of(data, rows), *others)
            like.append(results)
            return tf.nest.flatten(results)

        parts = strategy.run(on_replica, args=(data, *others))
        whole_results = [
            _first(
                tf.concat(strategy.experimental_local_results(part), axis),
                examples,
                axis,
            )
            for part in parts
        ]
        return tf.nest.pack_sequence_as(like[0], whole_results)

    return whole


def spread_sum(step: Callable, strategy: Strategy | None) -> Callable:
    """A step whose result is a sum over the examples, each on one replica.

    Args:
        step: `(data, real, *others) -> sum`, a tensor to which only examples
            with `real [n]` contribute: others make the shares equal.
        strategy: the strategy to run under; None runs on one device.

    Returns:
        `(data, *others) -> sum`, to be called inside a `tf.function`.
    """
    if strategy is None:

        def alone(data, *others):
            examples = tf.shape(tf.nest.flatten(data)[0])[0]
            return step(data, tf.fill([examples], True), *others)

        return alone
    replicas = _local_replicas(strategy)

    def whole(data, *others):
        examples = tf.shape(tf.nest.flatten(data)[0])[0]
        share = -(-examples // replicas)

        def on_replica(data, *others):
            rows = share * _local_replica(replicas) + tf.range(share)
            real = rows < examples
            rows = tf.minimum(rows, examples - 1)
            return step(_rows_of(data, rows), real, *others)

        sums = strategy.run(on_replica, args=(data, *others))
        return tf.add_n(strategy.experimental_local_results(sums))

    return whole


def _local_replicas(strategy: Strategy) -> int:
    """Number of replicas of this process, which sees the whole batch."""
    return len(strategy.extended.worker_devices)


def _local_replica(replicas: int) -> Any:
    context = tf.distribute.get_replica_context()
    return context.replica_id_in_sync_group % replicas


def _rows_of(data: Any, rows: tf.Tensor) -> Any:
    return tf.nest.map_structure(lambda leaf: tf.gather(leaf, rows), data)


def _first(tensor: tf.Tensor, count: tf.Tensor, axis: int) -> tf.Tensor:
    """The first `count` along the first or the last axis."""
    return tensor[:count] if axis == 0 else tensor[..., :count]
