"""Recurrent layers: one cell, applied step after step.

The gradient of a cell's weights is the sum of what each step adds, and a step
needs only what went into the cell then and the loss's gradient at what came
out. So the layer's loop runs as it always does, but for two additions: it gives
out the states each step began with, and to whatever the cell returns it adds a
probe, zeros whose gradient is the loss's at that place. All steps of an example
are then independent of one another, and the cell's gradient is taken of them
together, without a loop.

No cell is known by name here: LSTM, GRU, stacked cells and a user's own are all
the same.
"""

from __future__ import annotations

import contextlib
import functools

import keras
import tensorflow as tf

from keras_tracin.gradients.rules.fallback import gradients_by_example
from keras_tracin.gradients.rules.registry import (
    LayerUse,
    Part,
    Watch,
    attributes,
    register,
)


@contextlib.contextmanager
def _watch_each_step(layer: keras.layers.RNN, watch: Watch):
    """Watches what the cell returns at each step, and the states before."""
    loop = functools.partial(_watched_loop, layer, watch)
    with attributes(layer, {"inner_loop": loop}), _without_dropout(layer):
        yield


@register(
    keras.layers.RNN,
    keras.layers.SimpleRNN,
    keras.layers.GRU,
    keras.layers.LSTM,
    keras.layers.ConvLSTM1D,
    keras.layers.ConvLSTM2D,
    keras.layers.ConvLSTM3D,
    variables=(),
    watching=_watch_each_step,
)
def recurrence(layer: keras.layers.RNN, use: LayerUse) -> list[Part]:
    """The rule of `keras.layers.RNN`, `LSTM`, `GRU`, … with any cell.

    Beside sequences `[n, t, i]` come the states `[n, t, u]` before each step,
    and gradients `[n, t, u]` of what the cell returned. The `t` steps of one
    example are a batch to the cell.
    """
    count = len(use.outputs) // 2  # states; the cell returns one more
    variables = tuple(layer.trainable_variables)
    structure = layer.get_initial_state(batch_size=1)

    def steps(inputs):
        sequence, *states = inputs
        return layer.cell(sequence, tf.nest.pack_sequence_as(structure, states))

    with _without_dropout(layer):
        found = gradients_by_example(
            layer,
            steps,
            [tf.convert_to_tensor(use.inputs), *use.outputs[-count:]],
            use.grads[:-count],
            variables,
        )
    return [(variables, found)]


def _watched_loop(layer, watch, sequences, initial_state, mask, training=False):
    """Stands in for the layer's `inner_loop`, and returns the same."""
    cell = layer.cell
    if isinstance(mask, list | tuple):
        mask = mask[0]
    # Called for the shapes, as Keras's own loop does before it starts.
    returned = tf.nest.flatten(cell(sequences[:, 0], initial_state))
    shapes = [tensor.shape[1:] for tensor in returned]
    probes = [watch(_zeros_beside(sequences, shape)) for shape in shapes]

    def probed(inputs, states):
        x, *zeros = _parted(inputs, [sequences.shape[2:], *shapes])
        result = cell(x, states)
        output, *new = _added(tf.nest.flatten(result), zeros)
        _, structure = result
        joined = _joined([output, *tf.nest.flatten(states)], 1)
        return joined, tf.nest.pack_sequence_as(structure, new)

    with attributes(layer, {"cell": probed, "return_sequences": True}):
        last, outputs, states = keras.layers.RNN.inner_loop(
            layer,
            _joined([sequences, *probes], 2),
            initial_state,
            mask,
            training,
        )
    outputs, *before = _parted(outputs, shapes)
    for states_before in before:
        # In the order of the input, as the probes are.
        watch(
            tf.reverse(states_before, [1])
            if layer.go_backwards
            else states_before
        )
    return _parted(last, shapes)[0], outputs, states


def _zeros_beside(sequences: tf.Tensor, shape) -> tf.Tensor:
    """Zeros `[n, t, *shape]` for sequences `[n, t, ...]`."""
    steps = tf.shape(sequences)[:2]
    zeros = tf.zeros(tf.concat([steps, shape], axis=0), sequences.dtype)
    return tf.ensure_shape(zeros, [*sequences.shape[:2], *shape])


def _added(returned: list, zeros: list) -> list:
    """What a cell returned with the probes added to it.

    A cell that returns one tensor as output and as state gets one probe for
    both: the gradients at the two places add up in it.
    """
    distinct = {}
    for tensor, zero in zip(returned, zeros, strict=True):
        if id(tensor) not in distinct:
            distinct[id(tensor)] = tensor + zero
    return [distinct[id(tensor)] for tensor in returned]


def _joined(tensors: list, leading: int) -> tf.Tensor:
    """Tensors alike in their leading axes side by side in one last axis."""
    flat = []
    for tensor in tensors:
        width = tensor.shape[leading:].num_elements()
        sizes = tf.concat([tf.shape(tensor)[:leading], [width]], axis=0)
        wide = tf.reshape(tensor, sizes)
        flat.append(tf.ensure_shape(wide, [*tensor.shape[:leading], width]))
    return tf.concat(flat, axis=-1)


def _parted(joined: tf.Tensor, shapes: list) -> list[tf.Tensor]:
    """Undoes `_joined`: tensors that end in these shapes."""
    parts = tf.split(joined, [s.num_elements() for s in shapes], axis=-1)
    result = []
    for part, shape in zip(parts, shapes, strict=True):
        sizes = tf.concat([tf.shape(part)[:-1], shape], axis=0)
        whole = tf.reshape(part, sizes)
        result.append(tf.ensure_shape(whole, [*part.shape[:-1], *shape]))
    return result


@contextlib.contextmanager
def _without_dropout(layer: keras.layers.RNN):
    """Keeps cells from drawing masks that inference never uses.

    Drawing them moves the layer's random numbers on.
    """
    rates = "dropout", "recurrent_dropout"
    with contextlib.ExitStack() as stack:
        for inside in layer.cell._flatten_layers():
            off = {
                name: 0.0
                for name in rates
                if isinstance(vars(inside).get(name), float | int)
            }
            stack.enter_context(attributes(inside, off))
        yield
