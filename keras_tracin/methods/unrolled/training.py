"""One step of a training as a function of its state, forwards and backwards.

With `c_i` the count of example i, a factor of its loss (1 in the training as it
was), a step is

    g_t = Σ_i c_i b_i ∇ℓ(w_t, z_i) + ∇R(w_t),   (w, s)_{t+1} = update(w, s, g)_t

where b_i is the weight of i in its batch's loss and R are the regularisers.
Backwards, an adjoint (λ_w, λ_s)_{t+1} of weights and slots gives first those of
w, s and g in the update alone, a_w, a_s and a_g, and then

    λ_w,t = a_w + H_t a_g,   λ_s,t = a_s,   score(z_i) -= b_i ∇ℓ(w_t, z_i)·a_g.

Both products are derivatives of `g_t · a_g`, by w and by c, so the examples'
scores come with the Hessian's product at no further cost.

The model computes with weights that it is lent: its own are neither used nor
changed. It is in training mode; the seeds of Dropout are part of the state.

Synopsis:

    training = Training(model, update, spec, like=state, constants=[])
    state = training.forward(state, data, counts, rate, number)
    adjoint, scores = training.backward(state, data, rate, number, adjoint)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_tracin.gradients.compiling import compile_step
from keras_tracin.losses.per_example import PerExampleLoss, batch_shares
from keras_tracin.methods.unrolled.updates import (
    Tensors,
    Update,
    values_of,
    with_values,
)
from keras_tracin.runs.seeds import seed_variables

_ZEROS: dict[str, Any] = {"unconnected_gradients": tf.UnconnectedGradients.ZERO}
_PERSISTENT = {"persistent": True, "watch_accessed_variables": False}
_SCALARS = tf.TensorSpec([], tf.float64), tf.TensorSpec([], tf.int64)


class State(NamedTuple):
    """The state of a training between two steps.

    Attributes:
        weights: values of the trainable variables.
        slots: the optimizer's slots: for each name, a tensor for each variable.
        seeds: states of random numbers.
    """

    weights: Tensors
    slots: tuple[Tensors, ...]
    seeds: Tensors


class Adjoint(NamedTuple):
    """Derivatives of `m` queries' values by a state, all `[m, ...]`."""

    weights: Tensors
    slots: tuple[Tensors, ...]


class Training:
    """The steps of one model's training.

    Args:
        model: a built and compiled model.
        update: the update of its optimizer.
        spec: the types of a batch's parts, its size left open.
        like: a state, for its shapes.
        constants: the values of the weights that are not trained.
        class_weight: the `class_weight` given to `fit`.
        side_by_side: whether queries are carried back all at once, which
            suits small models, or one after another.

    Raises:
        ValueError: if the model is not compiled, computes its loss by a
            `compute_loss` of its own, or has layers that steps of training
            mode cannot be differentiated in.
    """

    def __init__(
        self,
        model: keras.Model,
        update: Update,
        spec: Any,
        like: State,
        constants: Sequence[tf.Tensor],
        class_weight: Mapping[int, float] | None = None,
        side_by_side: bool = True,
    ):
        check_can_be_unrolled(model)
        self._model, self._update = model, update
        self._spec, self._like = spec, like
        self._state_spec = tf.nest.map_structure(
            lambda t: tf.TensorSpec(t.shape, t.dtype), like
        )
        self._shares = batch_shares(model, class_weight=class_weight)
        self._constants = tuple(constants)
        self._side_by_side = side_by_side

    @functools.cached_property
    def forward(self):
        """`(state, data, counts [b], rate, number) -> state`."""

        def step(state, data, counts, rate, number):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(state.weights)
                total, seeds = self._total(state, data, counts)
            grads = tape.gradient(total, state.weights, **_ZEROS)
            weights, slots = self._update(
                state.weights, state.slots, grads, rate, number
            )
            return State(weights, slots, seeds)

        counts = tf.TensorSpec([None], self._like.weights[0].dtype)
        signature = self._state_spec, self._spec, counts, *_SCALARS
        return compile_step(step, signature)

    @functools.cached_property
    def backward(self):
        """`(state, data, rate, number, adjoint) -> adjoint, scores [m, b]`.

        The adjoint given is of the state after the step, the one returned of
        `state`, the one before it.
        """

        def step(state, data, rate, number, adjoint):
            weights = state.weights
            size = tf.shape(tf.nest.flatten(data)[0])[0]
            counts = tf.ones([size], weights[0].dtype)
            with tf.GradientTape(**_PERSISTENT) as outer:
                outer.watch((weights, counts))
                with tf.GradientTape(watch_accessed_variables=False) as inner:
                    inner.watch(weights)
                    total, _ = self._total(state, data, counts)
                grads = inner.gradient(total, weights, **_ZEROS)
                numbers = [values_of(grad) for grad in grads]
            pull = self._update_adjoint(state, grads, rate, number)

            def carry_back(later: Adjoint):
                direct, slots, along = pull(later)
                curved, products = outer.gradient(
                    numbers, (weights, counts), output_gradients=along, **_ZEROS
                )
                both = zip(direct, curved, strict=True)
                earlier = Adjoint(tuple(a + b for a, b in both), slots)
                return earlier, -products  # [b]

            return over(carry_back, adjoint, (adjoint, counts[tf.newaxis]))

        # `tf.vectorized_map` cannot take second derivatives of a loop.
        together = self._side_by_side and not self._has_loops
        over = _at_once if together else _one_by_one
        rows = tf.nest.map_structure(
            lambda t: tf.TensorSpec([None, *t.shape], t.dtype),
            Adjoint(self._like.weights, self._like.slots),
        )
        signature = self._state_spec, self._spec, *_SCALARS, rows
        return compile_step(step, signature)

    @property
    def _has_loops(self) -> bool:
        """Whether something in the model loops, as recurrent layers do."""
        graph = self.forward.get_concrete_function().graph.as_graph_def()
        inner = [node for f in graph.library.function for node in f.node_def]
        return any(op.op.endswith("While") for op in [*graph.node, *inner])

    def _update_adjoint(self, state: State, grads, rate, number) -> Callable:
        """The function that takes an adjoint back through the update alone."""
        numbers = [values_of(grad) for grad in grads]
        leaves = state.weights, state.slots, numbers
        with tf.GradientTape(**_PERSISTENT) as tape:
            tape.watch(leaves)
            watched = [
                with_values(*pair) for pair in zip(grads, numbers, strict=True)
            ]
            updated = self._update(
                state.weights, state.slots, watched, rate, number
            )
        ends = tf.nest.flatten(updated)

        def pull(later: Adjoint):
            return tape.gradient(
                ends,
                leaves,
                output_gradients=tf.nest.flatten(later),
                **_ZEROS,
            )

        return pull

    def values(self, value: PerExampleLoss, state: State, data: Any):
        """The queries' values, `[m]`, as `adjoint` differentiates them."""
        x, y, *weight = data
        with self._lent(state):
            y_pred = self._model(x, training=False)
            return value(y, y_pred, weight[0] if weight else None)

    def adjoint(self, value: PerExampleLoss, state: State, data: Any):
        """The derivatives of queries' values by the last state.

        Args:
            value: `(y, y_pred, sample_weight) -> [m]`, in inference mode.
            state: the last one.
            data: the queries.

        Returns:
            `[m]` values, and an `Adjoint`.
        """
        with tf.GradientTape(**_PERSISTENT) as tape:
            tape.watch(state.weights)
            values = self.values(value, state, data)

        def differentiate(selection):
            gradients = tape.gradient(
                values, state.weights, output_gradients=selection, **_ZEROS
            )
            return tuple(map(tf.convert_to_tensor, gradients))

        selections = tf.eye(tf.shape(values)[0], dtype=values.dtype)
        rows = [w[tf.newaxis] for w in state.weights]
        weights = _one_by_one(differentiate, selections, tuple(rows))
        slots = tf.nest.map_structure(
            lambda slot: tf.zeros(
                [tf.shape(values)[0], *slot.shape], slot.dtype
            ),
            state.slots,
        )
        return values, Adjoint(weights, slots)

    def _total(self, state: State, data, counts):
        """The batch's loss for these counts, and the seeds after the step."""
        x, y, *weight = data
        with self._lent(state) as scope:
            y_pred = self._model(x, training=True)
            shares = self._shares(y, y_pred, weight[0] if weight else None)
            if scope.losses:
                raise ValueError(_refusal_of_added_losses(self._model))
            seeds = tuple(
                tf.convert_to_tensor(scope.get_current_value(v))
                for v in seed_variables(self._model)
            )
        total = tf.reduce_sum(shares * tf.cast(counts, shares.dtype))
        for variable, value in zip(
            self._model.trainable_variables, state.weights, strict=True
        ):
            if getattr(variable, "regularizer", None) is not None:
                total += tf.cast(variable.regularizer(value), total.dtype)
        return total, seeds

    def _lent(self, state: State) -> keras.StatelessScope:
        model = self._model
        fixed = model.non_trainable_weights
        mapping = [
            *zip(model.trainable_variables, state.weights, strict=True),
            *zip(fixed, self._constants, strict=True),
            *zip(seed_variables(model), state.seeds, strict=True),
        ]
        return keras.StatelessScope(state_mapping=mapping, collect_losses=True)


def check_can_be_unrolled(model: keras.Model) -> None:
    """Raises ValueError unless training's steps can be differentiated."""
    if not model.built or getattr(model, "optimizer", None) is None:
        raise ValueError(
            "Unrolling follows the optimizer's steps. Received the model "
            f"{model.name!r}, which is not built or not compiled; compile it "
            "as for training."
        )
    layers = model._flatten_layers()
    mixing = [
        layer.name
        for layer in layers
        if layer._non_trainable_variables
        and layer._call_has_training_arg
        and layer.trainable
    ]
    if mixing:
        raise ValueError(
            f"In training, layers {mixing} keep statistics of each batch, "
            "through which every example moves every other's output; leaving "
            "one out is then no matter of its weight. Train with "
            "LayerNormalization or GroupNormalization, or with these layers "
            "frozen (`layer.trainable = False`)."
        )
    narrow = [
        layer.name
        for layer in layers
        if layer.compute_dtype in ("float16", "bfloat16")
    ]
    if narrow:
        raise ValueError(
            "Second derivatives need float32 or wider. Received a model with "
            f"layers that compute in half precision, {narrow[:5]}; train it "
            "with dtype='float32'."
        )
    replicas = model.distribute_strategy.num_replicas_in_sync
    if replicas > 1:
        raise ValueError(
            "Unrolling needs the whole of each batch on one device. Received "
            f"a model built under a strategy of {replicas} replicas; train it "
            "outside of the strategy."
        )


def _refusal_of_added_losses(model: keras.Model) -> str:
    layers = [
        layer.name
        for layer in model._flatten_layers()
        if getattr(layer, "activity_regularizer", None) is not None
        or layer._loss_ids
    ]
    return (
        f"Layers {layers} add losses computed from their inputs (`add_loss` or "
        "`activity_regularizer`), which cannot be split into examples. Train "
        "without them."
    )


def _one_by_one(function: Callable, rows: Any, like: Any) -> Any:
    """Like `_at_once`, but one row after another."""
    signature = tf.nest.map_structure(
        lambda t: tf.TensorSpec(t.shape[1:], t.dtype), like
    )
    return tf.map_fn(
        function, rows, fn_output_signature=signature, parallel_iterations=1
    )


def _at_once(function: Callable, rows: Any, like: Any) -> Any:
    """The results of a function for all rows `[m, ...]`, side by side.

    Args:
        function: a function of one row.
        rows: a structure of tensors.
        like: tensors with the shapes and types of the results, but for the
            number of rows.
    """
    return tf.vectorized_map(function, rows)
