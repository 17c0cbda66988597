"""Keras's own recurrent cells, whose weights are products before the gates.

Given the states before each step, the gates of all steps come from two matrix
products, `x W + b` and `h R`. So the gradients factor as those of dense layers
do, with the steps of an example as its positions.

Synopsis:

    kind = kind_of(layer.cell)          # None for other cells
    if kind is not None:
        outputs, entered = kind.step(cell, inputs, probes, states)
        parts = kind.parts(cell, sequence, entered, grads)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.gradients.factors import DenseGradients, OuterFactors
from keras_tracin.gradients.rules.registry import Part, overrides_computation

Tensors = list[tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of cell.

    Attributes:
        step: `(cell, inputs, probes, states) -> (outputs, entered)`: what the
            cell returns, flattened, and what enters its products with `R`,
            `[m, u]` each. `inputs` are `x W + b`, `[m, g]`; probes are added
            to the products with `R`.
        widths: `cell -> [...]`, the widths of the probes. Without any, the
            product with `R` is added to `inputs`, and its gradient is theirs.
        parts: `(cell, sequence, entered, grads) -> factors`, of a sequence
            `[n, t, i]`, of what entered the products with `R`, `[n, t, u]`,
            and of gradients at `inputs` and at the probes, `[n, t, ...]`.
    """

    step: Callable[[Any, tf.Tensor, Tensors, Tensors], tuple[Tensors, Tensors]]
    widths: Callable[[Any], list[int]]
    parts: Callable[[Any, tf.Tensor, Tensors, Tensors], list[Part]]


def kind_of(cell: Any) -> Kind | None:
    """The kind of one of Keras's own cells; None if it computes otherwise."""
    kind = _KINDS.get(type(cell))
    if kind is None or overrides_computation(cell, type(cell)):
        return None
    if type(cell) is keras.layers.GRUCell and cell.reset_after:
        return _RESET_AFTER
    return kind


def of_inputs(cell, inputs: tf.Tensor) -> tf.Tensor:
    """`x W + b` for inputs `[m, i]`, with the bias that belongs to `x`."""
    product = tf.matmul(inputs, _value(cell.kernel, inputs))
    if cell.bias is None:
        return product
    bias = _value(cell.bias, inputs)
    return product + (bias if bias.shape.rank == 1 else bias[0])


def recurrent_kernel(cell, like: tf.Tensor) -> tf.Tensor:
    """The values of `R` in the type of a tensor."""
    return _value(cell.recurrent_kernel, like)


def flat_steps(steps: tf.Tensor) -> tf.Tensor:
    """`[n, t, c]` as `[n·t, c]`."""
    return tf.reshape(steps, [-1, steps.shape[-1]])


def like_steps(flat: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
    """`[n·t, c]` as `[n, t, c]`, with `n` and `t` those of `steps`."""
    sizes = tf.concat([tf.shape(steps)[:2], [flat.shape[-1]]], axis=0)
    return tf.ensure_shape(
        tf.reshape(flat, sizes), [*steps.shape[:2], flat.shape[-1]]
    )


def _simple(cell, inputs, probes: Tensors, states: Tensors):
    gate = inputs + tf.matmul(states[0], recurrent_kernel(cell, inputs))
    output = gate if cell.activation is None else cell.activation(gate)
    return [output, output], states


def _lstm(cell, inputs, probes: Tensors, states: Tensors):
    state, carry = states
    gates = inputs + tf.matmul(state, recurrent_kernel(cell, inputs))
    update, forget, new, out = tf.split(gates, 4, axis=1)
    sigmoid, activation = cell.recurrent_activation, cell.activation
    carry = sigmoid(forget) * carry + sigmoid(update) * activation(new)
    output = sigmoid(out) * activation(carry)
    return [output, output, carry], [state]


def _gru(cell, inputs, probes: Tensors, states: Tensors):
    """A GRU whose reset gate comes before its product with `R`."""
    (state,) = states
    width = 2 * cell.units
    kernel = recurrent_kernel(cell, inputs)
    of_state = tf.matmul(state, kernel[:, :width]) + probes[0]
    gates = cell.recurrent_activation(inputs[:, :width] + of_state)
    update, reset = tf.split(gates, 2, axis=1)
    kept = reset * state
    of_kept = tf.matmul(kept, kernel[:, width:]) + probes[1]
    new = cell.activation(inputs[:, width:] + of_kept)
    return _between(update, state, new), [state, kept]


def _reset_after(cell, inputs, probes: Tensors, states: Tensors):
    """A GRU whose reset gate comes after the product, which has a bias."""
    (state,) = states
    of_state = tf.matmul(state, recurrent_kernel(cell, inputs)) + probes[0]
    if cell.bias is not None:
        of_state += _value(cell.bias, inputs)[1]
    left, right = (tf.split(x, 3, axis=1) for x in (inputs, of_state))
    update, reset = (
        cell.recurrent_activation(left[gate] + right[gate]) for gate in (0, 1)
    )
    new = cell.activation(left[2] + reset * right[2])
    return _between(update, state, new), [state]


def _between(update, state, new) -> Tensors:
    output = update * state + (1.0 - update) * new
    return [output, output]


def _parts(cell, sequence, entered: Tensors, grads: Tensors) -> list[Part]:
    (grad,) = grads
    return [_of_kernel(cell, sequence, grad), _of_state(cell, entered[0], grad)]


def _parts_of_gru(cell, sequence, entered: Tensors, grads) -> list[Part]:
    at_inputs, at_gates, at_new = grads
    # Two uses of `R`: of its left columns and of its right ones.
    rest = [0, 0], [0, 0]
    at_left = tf.pad(at_gates, [*rest, [0, cell.units]])
    at_right = tf.pad(at_new, [*rest, [2 * cell.units, 0]])
    uses = tf.concat(entered, axis=1), tf.concat([at_left, at_right], axis=1)
    return [_of_kernel(cell, sequence, at_inputs), _of_state(cell, *uses)]


def _parts_reset_after(cell, sequence, entered: Tensors, grads) -> list[Part]:
    at_inputs, at_state = grads
    result: list[Part] = [
        ((cell.kernel,), OuterFactors(sequence, at_inputs)),
        _of_state(cell, entered[0], at_state),
    ]
    if cell.bias is not None:
        both = tf.concat(grads, axis=-1)
        biases = DenseGradients((tf.reduce_sum(both, axis=1),))
        result.append(((cell.bias,), biases))
    return result


def _of_kernel(cell, sequence: tf.Tensor, grads: tf.Tensor) -> Part:
    if cell.bias is None:
        return (cell.kernel,), OuterFactors(sequence, grads)
    return (cell.kernel, cell.bias), OuterFactors(sequence, grads, True)


def _of_state(cell, entered: tf.Tensor, grads: tf.Tensor) -> Part:
    return (cell.recurrent_kernel,), OuterFactors(entered, grads)


def _value(variable: keras.Variable, like: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.convert_to_tensor(variable), like.dtype)


_KINDS = {
    keras.layers.SimpleRNNCell: Kind(_simple, lambda cell: [], _parts),
    keras.layers.LSTMCell: Kind(_lstm, lambda cell: [], _parts),
    keras.layers.GRUCell: Kind(
        _gru, lambda cell: [2 * cell.units, cell.units], _parts_of_gru
    ),
}
_RESET_AFTER = Kind(
    _reset_after, lambda cell: [3 * cell.units], _parts_reset_after
)
