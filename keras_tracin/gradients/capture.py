"""Per-example gradients of a model's layers from one backward pass.

During one forward pass, the `call` of every layer that owns trainable variables
is replaced on the instance by one that also records its arguments and watches
its output (or, if the layer's rule asks for it, the value before its
activation). One backward pass of the summed per-example losses then gives every
example's gradient at every watched tensor, since in inference mode examples do
not interact. Rules turn inputs and gradients into factors.

Synopsis:

    @tf.function
    def step(x, y):
        return capture(model, loss, (x, y, None))

    captured = step(x, y)
    captured.losses   # [n]
    captured.factors  # one entry for each of captured.names
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients import precision, whole_loss
from keras_tracin.gradients.factors import Factors
from keras_tracin.gradients.nest import Nest
from keras_tracin.gradients.placement import Placement, place
from keras_tracin.gradients.recording import (
    RecordedCall,
    count_operations,
    has_nested,
    record_calls,
)
from keras_tracin.gradients.rules import LayerUse
from keras_tracin.gradients.rules.fallback import layer_local
from keras_tracin.gradients.rules.registry import Part
from keras_tracin.gradients.sites import Site, without_rematerialization

Batch = tuple[Any, Any, Any]  # x, y, sample_weight (or None)
PerExampleLoss = Callable[[Any, Any, Any], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class LossAndNumbers:
    """A loss with more numbers of the examples, of the same outputs.

    Attributes:
        loss: `(y, y_pred, sample_weight) -> [n]`.
        numbers: `(y, y_pred, sample_weight) -> [n, ...]`.
    """

    loss: PerExampleLoss
    numbers: Callable[[Any, Any, Any], tf.Tensor]

    def __call__(self, y: Any, y_pred: Any, sample_weight: Any) -> tf.Tensor:
        """The loss."""
        return self.loss(y, y_pred, sample_weight)


@dataclasses.dataclass(frozen=True)
class Captured(Nest):
    """The gradients of one batch of examples.

    Attributes:
        names: names of the layers that own each group of variables.
        losses: per-example losses, `[n]`.
        factors: factors of `n` examples for each group.
        positions: positions of each group's variables in
            `Placement.variables`, in the order of the factors' columns.
        numbers: those of a `LossAndNumbers`, `[n, ...]`, or nothing.
    """

    names: tuple[str, ...]
    losses: tf.Tensor
    factors: tuple[Factors, ...]
    positions: tuple[tuple[int, ...], ...]
    numbers: tuple[tf.Tensor, ...] = ()

    static = ("names", "positions")


def capture(
    model: keras.Model,
    loss: PerExampleLoss,
    batch: Batch,
    layers: Sequence[str | keras.Layer] | Placement | None = None,
    training: bool = False,
    by_position: bool = False,
) -> Captured:
    """Per-example gradients of `loss` for one batch, layer by layer.

    The model is left as it was. Call this inside a `tf.function` whose trace
    leaves the batch size open (`None`): by it the layer-local fallback
    recognises the axis of examples.

    Args:
        model: a built model whose examples do not interact.
        loss: `(y, y_pred, sample_weight) -> [n]`, as
            `keras_tracin.losses.per_example.per_example_loss` returns.
        batch: `(x, y, sample_weight)`.
        layers: layers to restrict the gradients to, as in `find_sites`; or the
            result of `place` for this model, which avoids its dry run.
        training: If true, the model runs in training mode. The caller must
            keep layers in inference mode whose rules assume it, or that mix
            examples in training mode.
        by_position: whether gradients of small variables keep the terms of
            their sum over positions, as `PositionGradients`.

    Returns:
        A `Captured` whose factors cover each trainable variable once, even if
        several layers or calls use it.

    Raises:
        ValueError: if a layer's gradient cannot be split into examples.
    """
    if isinstance(layers, Placement):
        placement = layers
    else:
        x, y, sample_weight = batch
        placement = place(
            model, x, layers, loss=loss, y=y, sample_weight=sample_weight
        )
    with without_rematerialization(model):
        losses, parts, numbers = _capture_calls(
            model, loss, batch, placement, training
        )
    if not parts:
        unused = [site.name for site in placement.sites]
        raise ValueError(
            f"In inference mode the model '{model.name}' uses none of the "
            f"layers that examples are to have gradients at: {unused}. Name "
            "others in `layers=`."
        )
    names, factors, positions = _merge_by_variable(parts, placement)
    if not by_position:
        factors = tuple(map(algebra.summed, factors))
    return Captured(names, losses, factors, positions, numbers)


def _capture_calls(
    model: keras.Model,
    loss: PerExampleLoss,
    batch: Batch,
    placement: Placement,
    training: bool,
) -> tuple[tf.Tensor, list[tuple[RecordedCall, Part]], tuple[tf.Tensor, ...]]:
    """Losses `[n]`, factors for each recorded call, and more numbers."""
    x, y, sample_weight = batch
    scaled = precision.computes_in_float16(model)
    of_objective = frozenset(map(id, placement.of_objective))
    before = count_operations()
    several = scaled or bool(placement.of_loss or placement.of_objective)
    with tf.GradientTape(
        # For a persistent tape, each loop is differentiated three times.
        persistent=several,
        watch_accessed_variables=False,
    ) as tape:
        with record_calls(placement.sites, tape, of_objective) as calls:
            y_pred = model(x, training=training)
        if scaled:
            y_pred = precision.widen(y_pred)
        losses = precision.widen(loss(y, y_pred, sample_weight))
    watched = [_example_tensors(call, x) for call in calls]
    others = [_batch_tensors(call, x) for call in calls]
    if scaled:
        grads = precision.scaled_gradients(tape, losses, y_pred, watched)
        unused = tape.gradient(losses, others)
    else:
        # A tensor that losses do not depend on has the gradient None.
        grads, unused = tape.gradient(losses, (watched, others))
        grads = tf.nest.map_structure(_zeros_for_none, watched, grads)
    _check_unused(calls, others, unused)
    parts: list[tuple[RecordedCall, Part]] = []
    for call, rows, row_grads in zip(calls, watched, grads, strict=True):
        if id(call.site.layer) in placement.unsure:
            row_grads = _check_rows(call, row_grads, tf.shape(losses)[0])
        if row_grads:
            use = call.use(dict(zip(map(id, rows), row_grads, strict=True)))
            parts += [(call, part) for part in _factors_of(call, use)]
    if placement.of_loss or placement.of_objective:
        ends = whole_loss.Ends(
            losses,
            precision.output_gradients(tape, losses, y_pred)
            if scaled
            else None,
            has_nested(before),
        )
    if placement.of_loss:
        variables = placement.of_loss
        own = whole_loss.of_loss(
            model, loss, y, y_pred, sample_weight, variables, ends
        )
        parts.append((_whole_model_call(model, variables), (variables, own)))
    if placement.of_objective:
        variables = placement.of_objective
        own = whole_loss.of_objective(
            model, loss, batch, variables, ends, training
        )
        parts.append((_whole_model_call(model, variables), (variables, own)))
    numbers: tuple[tf.Tensor, ...] = ()
    if isinstance(loss, LossAndNumbers):
        numbers = (loss.numbers(y, y_pred, sample_weight),)
    return losses, parts, numbers


def _whole_model_call(
    model: keras.Model, variables: tuple[keras.Variable, ...]
) -> RecordedCall:
    """A substitute for a call, for gradients that belong to no layer."""
    site = Site(model, variables, None)
    return RecordedCall(site, (), {}, (), (), frozenset(map(id, variables)))


def _example_tensors(call: RecordedCall, x: Any) -> list[tf.Tensor]:
    """Watched tensors of a call with the examples of `x` on the first axis."""
    examples = tf.nest.flatten(x)[0].shape[0]  # None if it is open
    return [
        output
        for output in call.watched
        if call.site.rule or (output.shape.rank and output.shape[0] == examples)
    ]


def _batch_tensors(call: RecordedCall, x: Any) -> list[tf.Tensor]:
    """Watched tensors of a call without an axis of examples."""
    rows = set(map(id, _example_tensors(call, x)))
    return [output for output in call.watched if id(output) not in rows]


def _zeros_for_none(tensor: tf.Tensor, gradient: tf.Tensor | None) -> tf.Tensor:
    return tf.zeros_like(tensor) if gradient is None else gradient


def _check_unused(
    calls: list[RecordedCall], others: list[list], grads: list[list]
) -> None:
    """Refuses a loss that depends on outputs for the batch as a whole."""
    for call, tensors, gradients in zip(calls, others, grads, strict=True):
        if any(gradient is not None for gradient in gradients):
            raise ValueError(
                f"The loss depends on what layer '{call.site.layer.name}' "
                "returns for the whole batch, of shape "
                f"{[tuple(tensor.shape) for tensor in tensors]}, so its "
                "gradient cannot be split into examples. Leave the layer out "
                "by naming the others in `layers=`."
            )


def _check_rows(
    call: RecordedCall, grads, examples: tf.Tensor
) -> list[tf.Tensor]:
    """Gradients, with a check that their rows are the examples."""
    layer = call.site.layer
    checks = [
        tf.debugging.assert_equal(
            tf.shape(grad)[0],
            examples,
            f"Layer '{layer.name}' ({type(layer).__name__}) returned more or "
            "fewer rows than there are examples, so its gradient cannot be "
            "split into examples. Leave the layer out by naming the others in "
            "`layers=`.",
        )
        for grad in grads
    ]
    with tf.control_dependencies(checks):
        return [tf.identity(grad) for grad in grads]


def _factors_of(call: RecordedCall, use: LayerUse) -> list[Part]:
    """Factors of one use of a layer, in float32 or wider."""
    layer, rule = call.site.layer, call.site.rule
    if rule is not None:
        parts = use.args, use.kwargs, use.grads, use.outputs
        return rule.factors(layer, LayerUse(*precision.widen(parts)))
    variables = tuple(v for v in call.site.variables if id(v) in call.covered)
    if precision.computes_in_float16(layer):
        factors = _layer_local_scaled(layer, use, variables, call.nested)
        return [(variables, factors)]
    factors = layer_local(layer, use, variables, call.nested)
    return [(variables, precision.widen(factors))]


def _layer_local_scaled(
    layer: keras.Layer,
    use: LayerUse,
    variables: Sequence[keras.Variable],
    nested: bool,
) -> algebra.DenseGradients:
    """The fallback for a layer that computes in float16."""

    def attempt(scale):
        grads = [
            None
            if grad is None
            else tf.cast(precision.scale_examples(grad, scale), output.dtype)
            for grad, output in zip(use.grads, use.outputs, strict=True)
        ]
        scaled_use = dataclasses.replace(use, grads=tuple(grads))
        return layer_local(layer, scaled_use, variables, nested).parts

    grads = [grad for grad in use.grads if grad is not None]
    parts = precision.in_range(attempt, 16.0, grads)
    return algebra.DenseGradients(tuple(parts))


def _merge_by_variable(
    parts: list[tuple[RecordedCall, Part]], placement: Placement
) -> tuple[tuple[str, ...], tuple[Factors, ...], tuple[tuple[int, ...], ...]]:
    """Merges factors of the same variables; drops those not covered here."""
    groups: dict[int, set[tuple[int, ...]]] = {}
    split: set[int] = set()
    for call, (variables, _) in parts:
        key = tuple(id(v) for v in variables)
        for v in key:
            groups.setdefault(v, set()).add(key)
        if not call.covered >= set(key):
            split.update(key)
    split.update(v for v, keys in groups.items() if len(keys) > 1)

    uses: dict[tuple[int, ...], list[Factors]] = {}
    names: dict[tuple[int, ...], str] = {}
    for call, (variables, factors) in parts:
        whole = not split.intersection(id(v) for v in variables)
        pieces: Iterable[Part] = [(variables, factors)]
        if not whole:
            singles = [(v,) for v in variables]
            pieces = zip(
                singles, algebra.split(factors, terms=True), strict=True
            )
        for piece, value in pieces:
            key = tuple(id(v) for v in piece)
            if call.covered >= set(key):
                uses.setdefault(key, []).append(value)
                names[key] = placement.names_of(piece)
    position_of = {id(v): i for i, v in enumerate(placement.variables)}
    positions = tuple(tuple(position_of[v] for v in key) for key in uses)
    merged = tuple(map(algebra.merge, uses.values()))
    return tuple(names.values()), merged, positions
