"""Recurrent layers: a cell that is applied step after step.

The gradient of a cell's weights is a sum over steps. The term of a step needs
only the inputs of the cell at that step and the loss's gradient at its outputs.
So the layer's loop runs as usual, with two additions: it returns the states
before each step, and adds a probe to the outputs of the cell: zeros, whose
gradient is that of the loss there. Given these, the steps of an example are
independent, and the cell's gradient is taken for all of them together, without
a loop.

This does not depend on the kind of cell: stacked and custom cells are treated
alike. Keras's own LSTM, GRU and simple cells have factors (`recurrent_cells`).
"""

from __future__ import annotations

import contextlib
import functools

import keras
import tensorflow as tf

from keras_tracin.gradients.rules.fallback import gradients_by_example
from keras_tracin.gradients.rules.recurrent_cells import (
    Kind,
    flat_steps,
    kind_of,
    like_steps,
    of_inputs,
)
from keras_tracin.gradients.rules.recurrent_loops import (
    loop_of_any_cell,
    loop_of_known_cell,
)
from keras_tracin.gradients.rules.registry import (
    LayerUse,
    Part,
    Watch,
    attributes,
    register,
)


@contextlib.contextmanager
def _watch_each_step(layer: keras.layers.RNN, watch: Watch):
    """For a `with` block, watches what the rule needs of the cell."""
    kind = kind_of(layer.cell)
    loop = (
        functools.partial(loop_of_any_cell, layer, watch)
        if kind is None
        else functools.partial(loop_of_known_cell, layer, kind, watch)
    )
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
    sequence = tf.convert_to_tensor(use.inputs)
    kind = kind_of(layer.cell)
    if kind is not None:
        return _of_known_cell(layer.cell, kind, sequence, use)
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
            [sequence, *use.outputs[-count:]],
            use.grads[:-count],
            variables,
        )
    return [(variables, gradients)]


def _of_known_cell(
    cell, kind: Kind, sequence: tf.Tensor, use: LayerUse
) -> list[Part]:
    """The factors of one of Keras's own cells."""
    count = 1 + len(kind.widths(cell))
    grads, before = list(use.grads[:count]), use.outputs[count:]
    sequence = tf.cast(sequence, grads[0].dtype)
    _, entered = kind.step(
        cell,
        of_inputs(cell, flat_steps(sequence)),
        [tf.constant(0.0, sequence.dtype)] * (count - 1),
        [flat_steps(tf.cast(state, sequence.dtype)) for state in before],
    )
    entered = [like_steps(tensor, sequence) for tensor in entered]
    return kind.parts(cell, sequence, entered, grads)


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
