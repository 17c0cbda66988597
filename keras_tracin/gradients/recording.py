"""Records the calls of a model's layers during a forward pass.

Synopsis:

    with record_calls(placement.sites, tape, frozenset()) as calls:
        y_pred = model(x, training=False)
    calls[0].watched    # the tensors whose gradients the rule needs
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from keras_tracin.gradients import precision
from keras_tracin.gradients.rules import LayerUse
from keras_tracin.gradients.rules.fallback import (
    add_probes,
    is_differentiable,
)
from keras_tracin.gradients.rules.repeating import NESTED
from keras_tracin.gradients.sites import Site, intercept


@dataclasses.dataclass(frozen=True)
class RecordedCall:
    """One recorded call of a site's layer.

    Attributes:
        site: the layer and its variables.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        masks: Keras masks of the flattened arguments; None without a mask.
        watched: tensors whose gradients are taken.
        covered: ids of the variables whose gradients are taken here: all of
            the site, except those that a call around this one covers.
        nested: True if the call has control flow or calls functions.
    """

    site: Site
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    masks: tuple[tf.Tensor | None, ...]
    watched: tuple[tf.Tensor, ...]
    covered: frozenset[int]
    nested: bool = False

    def use(self, grads: dict[int, tf.Tensor]) -> LayerUse:
        """The call with gradients, given by the ids of watched tensors."""
        ordered = tuple(grads.get(id(output)) for output in self.watched)
        return LayerUse(
            self.args, self.kwargs, ordered, self.watched, self.masks
        )


@contextlib.contextmanager
def record_calls(
    sites: Sequence[Site], tape: tf.GradientTape, outside: frozenset[int]
) -> Iterator[list[RecordedCall]]:
    """Replaces `call` on the sites' layers; yields a list of their calls.

    Args:
        sites: sites whose calls to record.
        tape: tape that watches the tensors.
        outside: ids of variables that no site covers.
    """
    calls: list[RecordedCall] = []
    covered = [outside]  # and the variables covered by active calls
    with contextlib.ExitStack() as stack:
        for site in sites:
            record = functools.partial(_record, site, tape, calls, covered)
            stack.enter_context(intercept(site.layer, record))
        yield calls


def _record(site, tape, calls, covered_outside, original, *args, **kwargs):
    """Records a call of a site's layer; returns what `original` returns."""
    covered = frozenset(id(v) for v in site.variables)
    covered = covered.difference(*covered_outside)
    if not covered:
        return original(*args, **kwargs)
    watched: list[tf.Tensor] = []
    # Read before the call: some layers remove the masks.
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

    before = count_operations()
    with contextlib.ExitStack() as stack:
        # A rule covers its own layer's use, not what layers inside do with it.
        covered_outside.append(
            covered if site.rule is None else covered & site.inside
        )
        stack.callback(covered_outside.pop)
        if site.rule is not None and site.rule.watching is not None:
            stack.enter_context(site.rule.watching(site.layer, watch))
        outputs = original(*args, **kwargs)
    nested = site.rule is None and has_nested(before)
    if site.rule is None:
        outputs = add_probes(outputs, watch)
    elif site.rule.watching is None:
        outputs = tf.nest.map_structure(watch, outputs)
    probes = tuple(watched)
    calls.append(
        RecordedCall(site, args, kwargs, masks, probes, covered, nested)
    )
    return outputs


def count_operations() -> int:
    return len(tf.compat.v1.get_default_graph().get_operations())


def has_nested(since: int) -> bool:
    """Whether operations traced since then have control flow or calls."""
    operations = tf.compat.v1.get_default_graph().get_operations()
    return any(op.type in NESTED for op in operations[since:])
