"""Per-example gradients of a model's layers from one backward pass.

For the length of one forward pass, the `call` of every layer that owns
trainable variables is replaced on the instance by one that also notes its
arguments and watches its output (where the layer's rule says so, the value
before its activation). One backward pass of the summed per-example losses
then gives every example's gradient at every watched tensor, since in
inference mode examples do not interact; the rules turn inputs and gradients
into factors.

Synopsis:

    @tf.function
    def step(x, y):
        return capture(model, loss, (x, y, None))

    captured = step(x, y)
    captured.losses   # [n]
    captured.factors  # one entry for each of captured.names
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients import precision, whole_loss
from keras_tracin.gradients.factors import Factors
from keras_tracin.gradients.nest import Nest
from keras_tracin.gradients.placement import Placement, place
from keras_tracin.gradients.rules import LayerUse
from keras_tracin.gradients.rules.fallback import (
    is_differentiable,
    layer_local,
    with_probes,
)
from keras_tracin.gradients.rules.registry import Part
from keras_tracin.gradients.rules.repeating import NESTED
from keras_tracin.gradients.sites import (
    Site,
    intercepted,
    without_rematerialization,
)

Batch = tuple[Any, Any, Any]  # x, y, sample_weight (or None)
PerExampleLoss = Callable[[Any, Any, Any], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Captured(Nest):
    """The gradients of one batch of examples.

    Attributes:
        names: the layer, or layers, that own each group of variables.
        losses: the per-example losses, `[n]`.
        factors: for each name, factors of `n` examples.
        positions: for each name, where its variables stand among the
            placement's, in the order of the factors' columns.
    """

    names: tuple[str, ...]
    losses: tf.Tensor
    factors: tuple[Factors, ...]
    positions: tuple[tuple[int, ...], ...]

    static = ("names", "positions")


def capture(
    model: keras.Model,
    loss: PerExampleLoss,
    batch: Batch,
    layers: Sequence[str | keras.Layer] | Placement | None = None,
    training: bool = False,
) -> Captured:
    """Per-example gradients of `loss` for one batch, layer by layer.

    The model, in inference mode unless told otherwise, is left as it was.
    Call it inside a `tf.function` whose trace leaves the batch size open
    (`None`): that is how the layer-local fallback tells examples from other
    axes.

    Args:
        model: a built model whose examples do not interact.
        loss: `(y, y_pred, sample_weight) -> [n]`, as
            `keras_tracin.losses.per_example.per_example_loss` returns.
        batch: `(x, y, sample_weight)`.
        layers: restricts the gradients, as in `find_sites`; or what `place`
            found for this model, which spares its dry run.
        training: run the model in training mode. Layers whose gradients the
            rules take in inference mode, or that mix examples in training,
            have to be kept out of it by the caller.

    Returns:
        A `Captured` whose factors cover each trainable variable once,
        whichever layers use it, however often.

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
        losses, parts = _captured(model, loss, batch, placement, training)
    if not parts:
        unused = [site.name for site in placement.sites]
        raise ValueError(
            f"In inference mode the model '{model.name}' uses none of the "
            f"layers that examples are to have gradients at: {unused}. Name "
            "others in `layers=`."
        )
    names, factors, positions = _by_variable(parts, placement)
    return Captured(names, losses, factors, positions)


def _captured(
    model: keras.Model,
    loss: PerExampleLoss,
    batch: Batch,
    placement: Placement,
    training: bool,
) -> tuple[tf.Tensor, list[tuple[_Call, Part]]]:
    """The losses `[n]`, and the factors of each call of each layer."""
    x, y, sample_weight = batch
    scaled = precision.computes_in_float16(model)
    of_objective = frozenset(map(id, placement.of_objective))
    before = _number_of_operations()
    with tf.GradientTape(
        persistent=True, watch_accessed_variables=False
    ) as tape:
        with _recorded(placement.sites, tape, of_objective) as calls:
            y_pred = model(x, training=training)
        if scaled:
            y_pred = precision.widen(y_pred)
        losses = precision.widen(loss(y, y_pred, sample_weight))
    _check_unused(tape, losses, calls, x)
    watched = [_rows(call, x) for call in calls]
    if scaled:
        grads = precision.scaled_gradients(tape, losses, y_pred, watched)
    else:
        grads = tape.gradient(
            losses,
            watched,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
    parts: list[tuple[_Call, Part]] = []
    for call, rows, found in zip(calls, watched, grads, strict=True):
        if id(call.site.layer) in placement.unsure:
            found = _checked(call, found, tf.shape(losses)[0])
        if found:
            use = call.use(dict(zip(map(id, rows), found, strict=True)))
            parts += [(call, part) for part in _parts_of(call, use)]
    if placement.of_loss or placement.of_objective:
        ends = whole_loss.Ends(
            losses,
            precision.slopes(tape, losses, y_pred) if scaled else None,
            _has_nested(before),
        )
    if placement.of_loss:
        variables = placement.of_loss
        own = whole_loss.of_loss(
            model, loss, y, y_pred, sample_weight, variables, ends
        )
        parts.append((_of_whole(model, variables), (variables, own)))
    if placement.of_objective:
        variables = placement.of_objective
        own = whole_loss.of_objective(
            model, loss, batch, variables, ends, training
        )
        parts.append((_of_whole(model, variables), (variables, own)))
    return losses, parts


def _of_whole(
    model: keras.Model, variables: tuple[keras.Variable, ...]
) -> _Call:
    """What stands for a call in parts that come of no layer's."""
    site = Site(model, variables, None)
    return _Call(site, (), {}, (), (), frozenset(map(id, variables)))


def _number_of_operations() -> int:
    return len(tf.compat.v1.get_default_graph().get_operations())


def _has_nested(since: int) -> bool:
    """Whether what was traced since then loops, branches or calls."""
    operations = tf.compat.v1.get_default_graph().get_operations()
    return any(op.type in NESTED for op in operations[since:])


def _rows(call: _Call, x: Any) -> list[tf.Tensor]:
    """What was watched of a call that has the examples of `x` first."""
    examples = tf.nest.flatten(x)[0].shape[0]  # None where it is left open
    return [
        output
        for output in call.watched
        if call.site.rule or (output.shape.rank and output.shape[0] == examples)
    ]


def _check_unused(tape, losses: tf.Tensor, calls: list[_Call], x: Any) -> None:
    """Refuses a loss that depends on what a layer returns for all examples."""
    for call in calls:
        rows = {id(output) for output in _rows(call, x)}
        others = [out for out in call.watched if id(out) not in rows]
        if others and any(g is not None for g in tape.gradient(losses, others)):
            raise ValueError(
                f"The loss depends on what layer '{call.site.layer.name}' "
                "returns for the whole batch, of shape "
                f"{[tuple(output.shape) for output in others]}, so its "
                "gradient cannot be split into examples. Leave the layer out "
                "by naming the others in `layers=`."
            )


def _checked(call: _Call, grads, examples: tf.Tensor) -> list[tf.Tensor]:
    """The same, once it is sure that each row is an example's."""
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


def _parts_of(call: _Call, use: LayerUse) -> list[Part]:
    """The factors of one use, in float32 or wider, as they are summed."""
    layer, rule = call.site.layer, call.site.rule
    if rule is not None:
        parts = use.args, use.kwargs, use.grads, use.outputs
        return rule.factors(layer, LayerUse(*precision.widen(parts)))
    variables = tuple(
        v for v in call.site.variables if id(v) in call.answers_for
    )
    if precision.computes_in_float16(layer):
        found = _layer_local_scaled(layer, use, variables, call.nested)
        return [(variables, found)]
    found = layer_local(layer, use, variables, call.nested)
    return [(variables, precision.widen(found))]


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
            else tf.cast(precision.scaled(grad, scale), output.dtype)
            for grad, output in zip(use.grads, use.outputs, strict=True)
        ]
        within = dataclasses.replace(use, grads=tuple(grads))
        return layer_local(layer, within, variables, nested).parts

    known = [grad for grad in use.grads if grad is not None]
    parts = precision.in_range(attempt, 16.0, known)
    return algebra.DenseGradients(tuple(parts))


def _by_variable(
    parts: list[tuple[_Call, Part]], placement: Placement
) -> tuple[tuple[str, ...], tuple[Factors, ...], tuple[tuple[int, ...], ...]]:
    """Joins all uses of the same variables, and drops what is not wanted."""
    groups: dict[int, set[tuple[int, ...]]] = {}
    split: set[int] = set()
    for call, (variables, _) in parts:
        key = tuple(id(v) for v in variables)
        for v in key:
            groups.setdefault(v, set()).add(key)
        if not call.answers_for >= set(key):
            split.update(key)
    split.update(v for v, keys in groups.items() if len(keys) > 1)

    uses: dict[tuple[int, ...], list[Factors]] = {}
    names: dict[tuple[int, ...], str] = {}
    for call, (variables, found) in parts:
        whole = not split.intersection(id(v) for v in variables)
        pieces: Iterable[Part] = [(variables, found)]
        if not whole:
            singles = [(v,) for v in variables]
            pieces = zip(singles, algebra.split(found), strict=True)
        for piece, value in pieces:
            key = tuple(id(v) for v in piece)
            if call.answers_for >= set(key):
                uses.setdefault(key, []).append(value)
                names[key] = placement.names_of(piece)
    at = {id(v): place for place, v in enumerate(placement.variables)}
    positions = tuple(tuple(at[v] for v in key) for key in uses)
    factors = tuple(map(algebra.merge, uses.values()))
    return tuple(names.values()), factors, positions


@dataclasses.dataclass(frozen=True)
class _Call:
    """One recorded call of a site's layer.

    Attributes:
        answers_for: the ids of the variables whose gradients are taken here:
            all of the site's, but for those a call around this one takes.
        nested: whether it loops, branches or calls functions.
    """

    site: Site
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    masks: tuple[tf.Tensor | None, ...]
    watched: tuple[tf.Tensor, ...]
    answers_for: frozenset[int]
    nested: bool = False

    def use(self, grads: dict[int, tf.Tensor]) -> LayerUse:
        """With the gradients by the id of what was watched, where there are."""
        found = tuple(grads.get(id(output)) for output in self.watched)
        return LayerUse(self.args, self.kwargs, found, self.watched, self.masks)


@contextlib.contextmanager
def _recorded(
    sites: Sequence[Site], tape: tf.GradientTape, others: frozenset[int]
):
    """Replaces `call` on the sites' layers; yields the calls as they come.

    Args:
        sites: those to record.
        tape: what watches.
        others: ids of variables that no site answers for.
    """
    calls: list[_Call] = []
    taken = [others]  # and by the calls that are being made now
    with contextlib.ExitStack() as stack:
        for site in sites:
            record = functools.partial(_record, site, tape, calls, taken)
            stack.enter_context(intercepted(site.layer, record))
        yield calls


def _record(site, tape, calls, taken, original, *args, **kwargs):
    """Stands in for a site's `call`, and returns the same."""
    answers_for = frozenset(id(v) for v in site.variables)
    answers_for = answers_for.difference(*taken)
    if not answers_for:
        return original(*args, **kwargs)
    watched: list[tf.Tensor] = []
    # Noted before the call: some layers take the masks off.
    masks = tuple(
        getattr(leaf, "_keras_mask", None)
        for leaf in tf.nest.flatten((args, kwargs))
    )

    def watch(tensor):
        if not is_differentiable(tensor):
            return tensor
        probe = precision.copy_notes(tensor, tf.identity(tensor))
        tape.watch(probe)
        watched.append(probe)
        return probe

    before = _number_of_operations()
    nested = False
    if site.rule is None:
        taken.append(answers_for)
        try:
            outputs = original(*args, **kwargs)
        finally:
            taken.pop()
        nested = _has_nested(before)
        outputs = with_probes(outputs, watch)
    elif site.rule.watching is not None:
        with site.rule.watching(site.layer, watch):
            outputs = original(*args, **kwargs)
    else:
        outputs = tf.nest.map_structure(watch, original(*args, **kwargs))
    probes = tuple(watched)
    calls.append(_Call(site, args, kwargs, masks, probes, answers_for, nested))
    return outputs
