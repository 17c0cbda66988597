"""Recurrent layers: a cell that is applied step after step.

The gradient of a cell's weights is a sum over steps. The term of a step needs
only the inputs of the cell at that step and the loss's gradient at its outputs.
So the layer's loop runs as usual, with two additions: it returns the states
before each step, and adds a probe to the outputs of the cell: zeros, whose
gradient is that of the loss there. Given these, the steps of an example are
independent, and the cell's gradient is taken for all of them together, without
a loop.

This does not depend on the kind of cell: LSTM, GRU, stacked and custom cells
are treated alike.
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
    """For a `with` block, watches the cell's outputs and states."""
    loop = functools.partial(_loop_with_probes, layer, watch)
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

    It uses sequences `[n, t, i]`, states `[n, t, u]` before each step, and
    gradients `[n, t, u]` at the cell's outputs. The `t` steps of an example are
    a batch for the cell.
    """
    count = len(use.outputs) // 2  # states; the cell returns one more
    variables = tuple(layer.trainable_variables)
    structure = layer.get_initial_state(batch_size=1)

    def steps(inputs):
        sequence, *states = inputs
        return layer.cell(sequence, tf.nest.pack_sequence_as(structure, states))

    with _without_dropout(layer):
        gradients = gradients_by_example(
            layer,
            steps,
            [tf.convert_to_tensor(use.inputs), *use.outputs[-count:]],
            use.grads[:-count],
            variables,
        )
    return [(variables, gradients)]


def _loop_with_probes(
    layer, watch, sequences, initial_state, mask, training=False
):
    """Replaces the layer's `inner_loop`; returns the same."""
    cell = layer.cell
    if isinstance(mask, list | tuple):
        mask = mask[0]
    # Called for the shapes, as Keras's own loop does first.
    returned = tf.nest.flatten(cell(sequences[:, 0], initial_state))
    shapes = [tensor.shape[1:] for tensor in returned]
    probes = [watch(_zeros_beside(sequences, shape)) for shape in shapes]

    def cell_with_probes(inputs, states):
        x, *zeros = _split(inputs, [sequences.shape[2:], *shapes])
        result = cell(x, states)
        output, *new = _add_probes(tf.nest.flatten(result), zeros)
        _, structure = result
        concatenated = _join([output, *tf.nest.flatten(states)], 1)
        return concatenated, tf.nest.pack_sequence_as(structure, new)

    with attributes(
        layer, {"cell": cell_with_probes, "return_sequences": True}
    ):
        last, outputs, states = keras.layers.RNN.inner_loop(
            layer,
            _join([sequences, *probes], 2),
            initial_state,
            mask,
            training,
        )
    outputs, *before = _split(outputs, shapes)
    for states_before in before:
        # In the order of the input, as the probes are.
        watch(
            tf.reverse(states_before, [1])
            if layer.go_backwards
            else states_before
        )
    return _split(last, shapes)[0], outputs, states


def _zeros_beside(sequences: tf.Tensor, shape) -> tf.Tensor:
    """Zeros `[n, t, *shape]` for sequences `[n, t, ...]`."""
    steps = tf.shape(sequences)[:2]
    zeros = tf.zeros(tf.concat([steps, shape], axis=0), sequences.dtype)
    return tf.ensure_shape(zeros, [*sequences.shape[:2], *shape])


def _add_probes(returned: list, zeros: list) -> list:
    """Adds probes to the outputs of a cell.

    If a cell returns one tensor as output and as state, it gets a single probe,
    whose gradient is the sum of both.
    """
    distinct = {}
    for tensor, zero in zip(returned, zeros, strict=True):
        if id(tensor) not in distinct:
            distinct[id(tensor)] = tensor + zero
    return [distinct[id(tensor)] for tensor in returned]


def _join(tensors: list, leading: int) -> tf.Tensor:
    """Flattens trailing axes of tensors and concatenates them."""
    flat = []
    for tensor in tensors:
        width = tensor.shape[leading:].num_elements()
        sizes = tf.concat([tf.shape(tensor)[:leading], [width]], axis=0)
        wide = tf.reshape(tensor, sizes)
        flat.append(tf.ensure_shape(wide, [*tensor.shape[:leading], width]))
    return tf.concat(flat, axis=-1)


def _split(concatenated: tf.Tensor, shapes: list) -> list[tf.Tensor]:
    """Undoes `_join`: splits a tensor into tensors of these shapes."""
    parts = tf.split(concatenated, [s.num_elements() for s in shapes], axis=-1)
    result = []
    for part, shape in zip(parts, shapes, strict=True):
        sizes = tf.concat([tf.shape(part)[:-1], shape], axis=0)
        tensor = tf.reshape(part, sizes)
        result.append(tf.ensure_shape(tensor, [*part.shape[:-1], *shape]))
    return result


@contextlib.contextmanager
def _without_dropout(layer: keras.layers.RNN):
    """For a `with` block, cells draw no dropout masks.

    Inference does not use them, and drawing advances the layer's random seed.
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
