"""An optimizer's update as a function that can be differentiated.

Keras's optimizers assign variables; here an update takes weights, slots (the
moments and the like) and gradients, and returns new weights and slots, with
the same operations in the same order:

    (w, s)_{t+1} = update(w_t, s_t, ∇J_t(w_t), η_t, t)

SGD with and without momentum (Nesterov's too), Adam, AdamW, RMSprop and
Adagrad, with gradient clipping and decoupled weight decay. Where a second
moment is zero, all gradients of that entry were, and its square root counts
as constant.

An embedding's gradient comes as `IndexedSlices`, a slice for each token that
was looked up. Keras squares and clips these slices one by one, before those of
the same token are summed, and so does this.

Synopsis:

    update = Update(optimizer, variables)
    slots = update.slots_of(optimizer)
    weights, slots = update(weights, slots, grads, rate, number)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

Tensors = tuple[tf.Tensor, ...]
Gradient = Any  # a tensor, or `tf.IndexedSlices`
# (optimizer, weight, slots, gradient, its square, rate, number)
# -> (weight, slots)
Rule = Callable[..., tuple[tf.Tensor, Tensors]]


class Update:
    """The update that one optimizer makes.

    Args:
        optimizer: a Keras optimizer; only its hyperparameters are used.
        variables: the variables that it updates.

    Attributes:
        slots: names of its slots, which hold a tensor for each variable.

    Raises:
        ValueError: if the optimizer is none of those above, or one whose
            steps depend on more than weights and slots.
    """

    def __init__(self, optimizer: Any, variables: Sequence[keras.Variable]):
        _check(optimizer, variables)
        self._optimizer = optimizer
        self._variables = tuple(variables)
        self._rule = _RULES[type(optimizer)]
        self.slots = _slots(optimizer)

    def __call__(
        self,
        weights: Tensors,
        slots: tuple[Tensors, ...],
        grads: Sequence[Gradient],
        rate: tf.Tensor,
        number: tf.Tensor,
    ) -> tuple[Tensors, tuple[Tensors, ...]]:
        """One update.

        Args:
            weights: the variables' values.
            slots: for each of `self.slots` a tensor for each variable.
            grads: the variables' gradients.
            rate: the learning rate, a scalar.
            number: number of updates before this one.
        """
        optimizer = self._optimizer
        new_weights, new_slots = [], []
        clipped = _clipped(optimizer, grads)
        for at, variable in enumerate(self._variables):
            weight, grad = weights[at], clipped[at]
            eta = tf.cast(rate, weight.dtype)
            if optimizer.weight_decay and optimizer._use_weight_decay(variable):
                decay = tf.cast(optimizer.weight_decay, weight.dtype)
                weight -= weight * decay * eta
            own = tuple(slot[at] for slot in slots)
            square = with_values(grad, tf.square(values_of(grad)))
            weight, own = self._rule(
                optimizer, weight, own, dense(grad), dense(square), eta, number
            )
            new_weights.append(weight)
            new_slots.append(own)
        return tuple(new_weights), tuple(zip(*new_slots, strict=True))

    def slots_of(self, optimizer: Any) -> tuple[Tensors, ...]:
        """The slots of an optimizer of the same kind, as they are now."""
        return tuple(
            tuple(tf.identity(slot.value) for slot in getattr(optimizer, name))
            for name in self.slots
        )


def _check(optimizer: Any, variables: Sequence[keras.Variable]) -> None:
    if type(optimizer) not in _RULES:
        raise ValueError(
            "Unrolling differentiates the optimizer's steps, and knows those "
            f"of {', '.join(kind.__name__ for kind in _RULES)}. Received the "
            f"optimizer {type(optimizer).__name__!r}; train with one of them."
        )
    refused = {
        "use_ema": optimizer.use_ema,
        "gradient_accumulation_steps": (
            optimizer.gradient_accumulation_steps not in (None, 1)
        ),
        "loss_scale_factor": optimizer.loss_scale_factor is not None,
    }
    names = [name for name, is_used in refused.items() if is_used]
    if names:
        raise ValueError(
            "Unrolling needs each batch to be one plain update of the "
            f"weights. Received {type(optimizer).__name__} with "
            f"{names[0]}={getattr(optimizer, names[0])}; train without it."
        )
    constrained = [v.path for v in variables if v.constraint is not None]
    if constrained:
        raise ValueError(
            "Unrolling does not differentiate weight constraints. Received "
            f"constraints on {constrained[:5]}; train without them."
        )


def values_of(gradient: Gradient) -> tf.Tensor:
    """The numbers of a gradient, as one tensor."""
    if isinstance(gradient, tf.IndexedSlices):
        return gradient.values
    return gradient


def with_values(gradient: Gradient, values: tf.Tensor) -> Gradient:
    """A gradient of the same form with other numbers."""
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    return values


def dense(gradient: Gradient) -> tf.Tensor:
    """One tensor of the variable's shape."""
    return tf.convert_to_tensor(gradient)


def _clipped(optimizer: Any, grads: Sequence[Gradient]) -> list[Gradient]:
    """Gradients as the optimizer clips them, by at most one rule."""
    values = [values_of(grad) for grad in grads]
    if optimizer.clipnorm:
        length = optimizer.clipnorm
        values = [_shortened(v, _square(v), length) for v in values]
    elif optimizer.global_clipnorm:
        length = optimizer.global_clipnorm
        whole = tf.add_n([_square(v) for v in values])
        values = [_shortened(v, whole, length) for v in values]
    elif most := optimizer.clipvalue:
        values = [tf.clip_by_value(v, -most, most) for v in values]
    return [with_values(*pair) for pair in zip(grads, values, strict=True)]


def _square(values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.square(values))


def _shortened(
    values: tf.Tensor, square: tf.Tensor, length: float
) -> tf.Tensor:
    limit = tf.cast(length, values.dtype)
    return values * limit / tf.maximum(_sqrt(square), limit)


def _sqrt(values: tf.Tensor) -> tf.Tensor:
    """The square root, taken as constant at zero."""
    positive = values > 0
    roots = tf.sqrt(tf.where(positive, values, tf.ones_like(values)))
    return tf.where(positive, roots, tf.zeros_like(values))


def _slots(optimizer: Any) -> tuple[str, ...]:
    kind = type(optimizer)
    if kind is keras.optimizers.SGD:
        return ("momentums",) if optimizer.momentum else ()
    if kind is keras.optimizers.Adagrad:
        return ("_accumulators",)
    if kind is keras.optimizers.RMSprop:
        return (
            "_velocities",
            *(("_momentums",) if optimizer.momentum > 0 else ()),
            *(("_average_gradients",) if optimizer.centered else ()),
        )
    largest = ("_velocity_hats",) if optimizer.amsgrad else ()
    return ("_momentums", "_velocities", *largest)


def _sgd(optimizer, weight, slots, grad, square, eta, number):
    if not slots:
        return weight - grad * eta, ()
    mu = tf.cast(optimizer.momentum, weight.dtype)
    moment = slots[0] * mu - grad * eta
    if optimizer.nesterov:
        return weight + (moment * mu - grad * eta), (moment,)
    return weight + moment, (moment,)


def _adam(optimizer, weight, slots, grad, square, eta, number):
    first, second, *largest = slots
    step = tf.cast(number + 1, weight.dtype)
    beta_1, beta_2 = optimizer.beta_1, optimizer.beta_2
    power_1 = tf.pow(tf.cast(beta_1, weight.dtype), step)
    power_2 = tf.pow(tf.cast(beta_2, weight.dtype), step)
    alpha = eta * tf.sqrt(1 - power_2) / (1 - power_1)
    first += (grad - first) * (1 - beta_1)
    second += (square - second) * (1 - beta_2)
    if largest:
        largest = [tf.maximum(largest[0], second)]
    moment = largest[0] if largest else second
    weight -= first * alpha / (_sqrt(moment) + optimizer.epsilon)
    return weight, (first, second, *largest)


def _rmsprop(optimizer, weight, slots, grad, square, eta, number):
    rho, rest = optimizer.rho, list(slots[1:])
    second = rho * slots[0] + (1 - rho) * square
    spread = second
    if optimizer.centered:
        mean = rho * rest[-1] + (1 - rho) * grad
        spread = second - tf.square(mean)
        rest[-1] = mean
    step = eta * grad / tf.sqrt(spread + optimizer.epsilon)
    if optimizer.momentum > 0:
        rest[0] = step = optimizer.momentum * rest[0] + step
    return weight - step, (second, *rest)


def _adagrad(optimizer, weight, slots, grad, square, eta, number):
    total = slots[0] + square
    return weight - eta * grad / tf.sqrt(total + optimizer.epsilon), (total,)


_RULES: dict[type, Rule] = {
    keras.optimizers.SGD: _sgd,
    keras.optimizers.Adam: _adam,
    keras.optimizers.AdamW: _adam,
    keras.optimizers.RMSprop: _rmsprop,
    keras.optimizers.Adagrad: _adagrad,
}
