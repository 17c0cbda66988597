"""Loops over the steps of a recurrence, with probes for their gradients.

The layer's loop runs as usual, and also returns the states before each step.

*Any cell*: zeros are added to what the cell returns, whose gradient is that of
the loss there. TensorFlow differentiates the loop.

*Keras's own cells*: the way back is a loop of ours. It needs those states and
nothing else, where TensorFlow keeps every intermediate result of each step.

Synopsis:

    loop = functools.partial(loop_of_known_cell, layer, kind, watch)
    with attributes(layer, {"inner_loop": loop}):
        outputs = layer(x)       # `watch` was given zeros, and the states
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_tracin.gradients import precision
from keras_tracin.gradients.rules.recurrent_cells import (
    Kind,
    Tensors,
    flat_steps,
    like_steps,
    of_inputs,
)
from keras_tracin.gradients.rules.registry import Watch, attributes


def loop_of_any_cell(
    layer, watch, sequences, initial_state, mask, training=False
):
    """Replaces the layer's `inner_loop`; returns the same.

    It watches zeros beside what the cell returns, `[n, t, u]`, and the states
    before each step, in the order of the input.
    """
    # Called for the shapes, as Keras's own loop does first.
    returned = tf.nest.flatten(layer.cell(sequences[:, 0], initial_state))
    shapes = [tensor.shape[1:] for tensor in returned]
    probes = [watch(_zeros_beside(sequences, shape)) for shape in shapes]
    result = _with_states(
        layer, sequences, initial_state, mask, training, shapes, probes
    )
    last, outputs, states, before = result
    for states_before in before:
        watch(_in_order(layer, states_before))
    return last, outputs, states


def loop_of_known_cell(
    layer, kind: Kind, watch: Watch, sequences, initial_state, mask, training
):
    """Replaces the `inner_loop` of a layer with one of Keras's cells.

    It watches zeros beside `x W + b` and beside each of the kind's probes,
    `[n, t, g]`, and then the states before each step, all in the order of the
    input.
    """
    structure = initial_state
    states = tf.nest.flatten(initial_state)
    units = tf.TensorShape([layer.cell.units])
    shapes = [units] * (1 + len(states))
    widths = [layer.cell.kernel.shape[-1], *kind.widths(layer.cell)]
    probes = [
        watch(precision.widen(_zeros_beside(sequences, [width])))
        for width in widths
    ]
    masks = _mask_of(mask)

    @tf.custom_gradient
    def loop(sequences, *others):
        values = [tf.stop_gradient(x) for x in (sequences, *others)]
        first = tf.nest.pack_sequence_as(structure, values[1 : 1 + len(states)])
        last, outputs, after, before = _with_states(
            layer, values[0], first, mask, training, shapes, []
        )
        before = [_in_order(layer, tensor) for tensor in before]
        results = [last, outputs, *tf.nest.flatten(after), *before]

        def gradients(*grads, variables=None):
            backwards = _Backwards(layer, kind, values[0], before, masks)
            at_input, at_first, at_probes = backwards.gradients(
                grads[0], grads[1], list(grads[2 : 2 + len(states)])
            )
            result = [
                tf.cast(grad, tensor.dtype)
                for grad, tensor in zip(
                    [at_input, *at_first, *at_probes],
                    (sequences, *others),
                    strict=True,
                )
            ]
            return (result, [None] * len(variables)) if variables else result

        return results, gradients

    last, outputs, *rest = loop(sequences, *states, *probes)
    for states_before in rest[len(states) :]:
        watch(states_before)
    after = tf.nest.pack_sequence_as(structure, rest[: len(states)])
    return last, outputs, after


class _Backwards:
    """Backpropagation through time, for one of Keras's own cells.

    Args:
        layer: the layer.
        kind: the kind of its cell.
        sequences: inputs `[n, t, i]`.
        before: states before each step, `[n, t, u]`, in the order of the
            input.
        mask: booleans `[n, t]`, or None.
    """

    def __init__(self, layer, kind: Kind, sequences, before: Tensors, mask):
        self._layer, self._cell, self._kind = layer, layer.cell, kind
        self._sequences = precision.widen(sequences)
        self._before = [precision.widen(tensor) for tensor in before]
        self._mask = mask

    def gradients(
        self, at_last: tf.Tensor, at_outputs: tf.Tensor, at_states: Tensors
    ) -> tuple[tf.Tensor, Tensors, Tensors]:
        """Gradients at the inputs, the first states and the probes.

        Args:
            at_last: those at the last output, `[n, u]`.
            at_outputs: those at all outputs, `[n, t, u]`, in the order of the
                steps.
            at_states: those at the last states, `[n, u]`.
        """
        dtype = self._sequences.dtype
        at_last, at_outputs, *at_states = (
            tf.cast(grad, dtype) for grad in (at_last, at_outputs, *at_states)
        )
        inputs = of_inputs(self._cell, flat_steps(self._sequences))
        inputs = like_steps(inputs, self._sequences)
        steps = [inputs, *self._before]
        if self._mask is not None:
            steps.append(tf.cast(self._mask, dtype)[:, :, tf.newaxis])
        steps = [_in_order(self._layer, tensor) for tensor in steps]
        at_outputs = tf.ensure_shape(
            at_outputs, [*steps[1].shape[:2], self._cell.units]
        )
        first, at_products = self._loop(
            [at_outputs, *steps], at_last, list(at_states)
        )
        at_products = _in_order(self._layer, at_products)
        at_products = tf.ensure_shape(
            at_products, [*inputs.shape[:2], at_products.shape[-1]]
        )
        at_inputs, *at_probes = tf.split(
            at_products, [inputs.shape[-1], *self._kind.widths(self._cell)], -1
        )
        kernel = tf.cast(tf.convert_to_tensor(self._cell.kernel), dtype)
        at_sequences = tf.matmul(at_inputs, kernel, transpose_b=True)
        return at_sequences, first, [at_inputs, *at_probes]

    def _loop(
        self, steps: Tensors, at_last: tf.Tensor, at_states: Tensors
    ) -> tuple[Tensors, tf.Tensor]:
        """Gradients at the first states, and at all products `[n, t, ·]`."""
        sizes = [tensor.shape[-1] for tensor in steps]
        rows = tf.transpose(tf.concat(steps, axis=2), [1, 0, 2])
        count = tf.shape(rows)[0]
        width = sizes[1] + sum(self._kind.widths(self._cell))
        grads = tf.TensorArray(
            rows.dtype, count, element_shape=[steps[0].shape[0], width]
        )

        def body(step, grads, at_output, *at_states):
            at_new, inputs, *states = tf.split(
                tf.gather(rows, step), sizes, axis=1
            )
            mask = None if self._mask is None else states.pop() > 0
            at_output, earlier, at_products = self._step(
                inputs, states, at_output + at_new, list(at_states), mask
            )
            grads = grads.write(step, at_products)
            return step - 1, grads, at_output, *earlier

        _, grads, _, *first = tf.while_loop(
            lambda step, *_: step >= 0,
            body,
            (count - 1, grads, at_last, *at_states),
            maximum_iterations=rows.shape[0],
        )
        return first, tf.transpose(grads.stack(), [1, 0, 2])

    def _step(
        self,
        inputs: tf.Tensor,
        states: Tensors,
        at_output: tf.Tensor,
        at_states: Tensors,
        mask: tf.Tensor | None,
    ) -> tuple[tf.Tensor, Tensors, tf.Tensor]:
        """Gradients before a step, and at its products, from those after it.

        A masked step passes its states on, and the output before it or zeros.
        """
        kept = [tf.zeros_like(at_output), *map(tf.zeros_like, at_states)]
        if mask is not None:
            after, zeros = [at_output, *at_states], kept
            kept = [
                tf.where(mask, zero, grad)
                for zero, grad in zip(zeros, after, strict=True)
            ]
            if self._layer.zero_output_for_mask:
                kept[0] = zeros[0]
            at_output, *at_states = (
                tf.where(mask, grad, zero)
                for zero, grad in zip(zeros, after, strict=True)
            )
        probes = [
            tf.zeros([tf.shape(inputs)[0], width], inputs.dtype)
            for width in self._kind.widths(self._cell)
        ]
        sources = [inputs, *probes, *states]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            outputs, _ = self._kind.step(self._cell, inputs, probes, states)
        grads = tape.gradient(
            outputs, sources, output_gradients=[at_output, *at_states]
        )
        products, earlier = grads[: 1 + len(probes)], grads[1 + len(probes) :]
        earlier = [
            grad + rest for grad, rest in zip(earlier, kept[1:], strict=True)
        ]
        return kept[0], earlier, tf.concat(products, axis=1)


def _with_states(
    layer,
    sequences: tf.Tensor,
    initial_state: Any,
    mask: Any,
    training: bool,
    shapes: list,
    probes: Tensors,
) -> tuple[tf.Tensor, tf.Tensor, Any, Tensors]:
    """The layer's own loop, which returns the states before each step too.

    Args:
        layer: the layer.
        sequences: inputs `[n, t, ...]`.
        initial_state: the states before the first step.
        mask: as Keras gives it.
        training: as Keras gives it.
        shapes: shapes of what the cell returns, flattened, for one example.
        probes: tensors `[n, t, ...]` of these shapes that are added to what
            the cell returns at each step; or none.

    Returns:
        `(last output, outputs, last states, states before each step)`, the
        last in the order of the steps.
    """
    cell = layer.cell
    if isinstance(mask, list | tuple):
        mask = mask[0]

    def cell_with_states(inputs, states):
        x, *zeros = _split(
            inputs, [sequences.shape[2:], *shapes[: len(probes)]]
        )
        output, new = cell(x, states)
        if zeros:
            flat = _add_probes(tf.nest.flatten((output, new)), zeros)
            output, *flat = flat
            new = tf.nest.pack_sequence_as(new, flat)
        return _join([output, *tf.nest.flatten(states)], 1), new

    with attributes(
        layer, {"cell": cell_with_states, "return_sequences": True}
    ):
        last, outputs, states = keras.layers.RNN.inner_loop(
            layer,
            _join([sequences, *probes], 2) if probes else sequences,
            initial_state,
            mask,
            training,
        )
    outputs, *before = _split(outputs, shapes)
    return _split(last, shapes)[0], outputs, states, before


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


def _in_order(layer, steps: tf.Tensor) -> tf.Tensor:
    """Turns steps `[n, t, ...]` into positions of the input, or back."""
    return tf.reverse(steps, [1]) if layer.go_backwards else steps


def _mask_of(mask: Any) -> tf.Tensor | None:
    """Keras's mask as booleans `[n, t]`."""
    if isinstance(mask, list | tuple):
        mask = mask[0]
    if mask is None:
        return None
    mask = tf.cast(mask, tf.bool)
    return mask if mask.shape.rank == 2 else tf.squeeze(mask, -1)
