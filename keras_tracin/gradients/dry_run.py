"""A dry run: a forward pass of a model and its loss, traced but not executed.

It is traced for a number of examples that no other axis has, so that shapes
identify the axis of the examples. The result is a graph in which every call of
a layer is a range of operations.

Synopsis:

    run = DryRun(model, sites, Objective(x, y, None, loss))
    for call in run.calls:
        call.splits                    # judged by shapes
        run.fallback_misses(call, variable)    # judged by paths in the graph
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.gradients.example_axis import (
    EXAMPLES,
    is_symbolic,
    logits_behind,
    may_have_examples,
    names_of_examples,
    takes_examples,
)
from keras_tracin.gradients.paths import Paths, Span, handles_of
from keras_tracin.gradients.refusals import check_call
from keras_tracin.gradients.rules.fallback import (
    add_probes,
    differentiable_outputs,
    is_differentiable,
)
from keras_tracin.gradients.rules.registry import watch_before_activation
from keras_tracin.gradients.sites import (
    Site,
    intercept,
    layers_called,
    without_rematerialization,
)
from keras_tracin.models.loops import unfinished_loops


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss to differentiate, and the types of a batch.

    Attributes:
        x: inputs of the model: tensors, arrays or `tf.TensorSpec`s.
        y: labels, likewise.
        sample_weight: sample weights, likewise, or None.
        loss: `(y, y_pred, sample_weight) -> [n]`; None if unknown, in which
            case it is assumed to depend on the model's outputs alone.
    """

    x: Any
    y: Any = None
    sample_weight: Any = None
    loss: Callable[[Any, Any, Any], tf.Tensor] | None = None


@dataclasses.dataclass
class Call:
    """One call of a layer in the dry run.

    Attributes:
        number: number of the call in the run.
        layer: the layer.
        parent: the call in which it was made.
        tape: tape that recorded the variables that the call read.
        takes_examples: True if arguments have the axis of examples first.
        in_graph: True if the call is in the graph of the model, not in that of
            a loop or function.
        arguments: names of the arguments with examples.
        span: range of operations of the call.
        outputs: differentiable tensors that it returned.
        returned: names of these tensors, before probes.
        fallback: names of the operations that probe its outputs, if it is a
            site of the fallback.
        rule: names of the operations that probe tensors for the layer's rule,
            if it has one.
    """

    number: int
    layer: keras.Layer
    parent: Call | None
    tape: tf.GradientTape
    takes_examples: bool
    in_graph: bool
    arguments: frozenset[str]
    span: Span = (0, 0)
    outputs: list[tf.Tensor] = dataclasses.field(default_factory=list)
    returned: frozenset[str] = frozenset()
    fallback: list[str] | None = None
    rule: list[str] | None = None

    def reads(self) -> set[int]:
        """Ids of variables read by the call itself, not by calls inside it."""
        return {id(v) for v in self.tape.watched_variables()}

    @property
    def returns_examples(self) -> bool:
        """Whether its outputs have the axis of examples first."""
        # Other outputs of the model do not matter if the loss ignores them.
        enough = any if self.parent is None else all
        return self.in_graph and enough(map(may_have_examples, self.outputs))

    @property
    def splits(self) -> bool:
        """Whether the call can be repeated for one example, by its shapes."""
        return self.takes_examples and self.returns_examples

    def around(self) -> Iterator[Call]:
        """The call itself, and all calls around it."""
        call: Call | None = self
        while call is not None:
            yield call
            call = call.parent


class DryRun:
    """The calls of a model's layers, and their graph.

    Args:
        model: a built model.
        sites: layers whose calls will be recorded.
        objective: the loss to differentiate, and the types of a batch.
        examples: number of examples; None leaves it open.

    Attributes:
        calls: calls in the order in which they began, that of the model first.
        loss_span: range of operations of the loss.
        knows_loss: True if the loss could be traced.
    """

    def __init__(
        self,
        model: keras.Model,
        sites: Sequence[Site],
        objective: Objective,
        examples: int | None = EXAMPLES,
    ):
        self.calls: list[Call] = []
        self.knows_loss = False
        self._active: list[Call] = []
        self._sites = sites
        self._graph = tf.__internal__.FuncGraph("dry_run")
        placeholder = functools.partial(_placeholder, examples)
        with contextlib.ExitStack() as stack:
            stack.enter_context(unfinished_loops())
            stack.enter_context(self._graph.as_default())
            stack.enter_context(without_rematerialization(model))
            x = tf.nest.map_structure(placeholder, objective.x)
            with contextlib.ExitStack() as noting:
                for layer in layers_called(model, sites):
                    note = functools.partial(self._record_call, layer)
                    noting.enter_context(intercept(layer, note))
                outputs = model(x, training=False)
            ends = list(differentiable_outputs(outputs))
            y = weight = None
            start = self._now
            if objective.loss is not None:
                y, weight = tf.nest.map_structure(
                    lambda leaf: None if leaf is None else placeholder(leaf),
                    (objective.y, objective.sample_weight),
                )
                try:
                    ends = [objective.loss(y, outputs, weight)]
                    self.knows_loss = True
                except Exception:
                    # If it has a fault, the trace for the actual pass reports
                    # it.
                    pass
            self.loss_span = start, self._now
        self._loss_arguments = names_of_examples(
            (outputs, y, weight, logits_behind(outputs)),
            ("_keras_mask", "_keras_logits"),
        )
        batch = tf.nest.flatten((x, y, weight))
        self._examples = list(filter(is_symbolic, batch))
        self._ends = list(filter(is_symbolic, ends))

    @functools.cached_property
    def _paths(self) -> Paths:
        return Paths(self._graph, self._examples, self._ends)

    @property
    def _now(self) -> int:
        return self._graph.num_operations()

    def fallback_misses(self, call: Call, variable: keras.Variable) -> bool:
        """Whether the call's fallback would miss gradients of a variable."""
        gates, returned = call.fallback, frozenset[str]()
        if gates is None:  # not a site yet: its outputs would be gates
            gates, returned = [], call.returned
        handles = handles_of(variable.value)
        return self._paths.leaves(call.span, handles, gates, returned)

    def rule_misses(self, call: Call, variable: keras.Variable) -> bool:
        """Whether the rule for the call would miss gradients of a variable."""
        gates, returned = call.rule, frozenset[str]()
        if gates is None:  # the rule watches in its own way
            gates, returned = [], call.returned
        handles = handles_of(variable.value)
        return self._paths.leaves(call.span, handles, gates, returned)

    def reads_other_examples(self, call: Call) -> bool:
        """Whether the call reads examples that are not among its arguments."""
        return self._paths.enters(call.span, call.arguments)

    @property
    def loss_reads_other_tensors(self) -> bool:
        """Whether the loss reads other tensors of the model than outputs."""
        return self._paths.enters(self.loss_span, self._loss_arguments)

    def loss_reads(self, variable: keras.Variable) -> bool:
        """Whether the loss itself reads the variable."""
        handles = handles_of(variable.value)
        return self._paths.reads(self.loss_span, handles)

    def depends_on(self, value: tf.Variable) -> bool:
        """Whether outputs and losses depend on the values of a variable."""
        return self._paths.uses(handles_of(value))

    def is_read_outside(self, variable: keras.Variable) -> bool:
        """Whether it is read outside the model's call and the loss."""
        start, stop = self.calls[0].span
        spans = (0, start), (stop, self.loss_span[0])
        handles = handles_of(variable.value)
        return any(self._paths.reads(span, handles) for span in spans)

    @property
    def objective_splits(self) -> bool:
        """Whether model and loss can be repeated for one example."""
        model = self.calls[0]
        splits = model.returns_examples or not model.outputs
        return self.knows_loss and model.takes_examples and splits

    def _record_call(self, layer: keras.Layer, original, *args, **kwargs):
        check_call(layer, args, kwargs)
        parent = self._active[-1] if self._active else None
        with contextlib.ExitStack() as stack:
            if parent is not None:
                stack.enter_context(parent.tape.stop_recording())
            tape = stack.enter_context(tf.GradientTape())
            call = Call(
                len(self.calls),
                layer,
                parent,
                tape,
                takes_examples=takes_examples((args, kwargs)),
                in_graph=tf.compat.v1.get_default_graph() is self._graph,
                arguments=names_of_examples((args, kwargs)),
            )
            self.calls.append(call)
            self._active.append(call)
            stack.callback(self._active.pop)
            start = self._now
            outputs = self._call_with_probes(call, original, args, kwargs)
            call.span = start, self._now
        call.outputs += filter(is_differentiable, tf.nest.flatten(outputs))
        return outputs

    def _call_with_probes(self, call: Call, original, args, kwargs):
        """Calls the layer with the probes that a capture would use."""
        own = [site for site in self._sites if site.layer is call.layer]
        rule = next((site.rule for site in own if site.rule), None)
        watching = None if rule is None else rule.watching
        if watching is watch_before_activation:
            call.rule = []
            with watch_before_activation(call.layer, _probe_into(call.rule)):
                outputs = original(*args, **kwargs)
        else:
            outputs = original(*args, **kwargs)
        call.returned = frozenset(
            t.name for t in differentiable_outputs(outputs) if is_symbolic(t)
        )
        if rule is not None and watching is None:
            call.rule = []
            outputs = tf.nest.map_structure(_probe_into(call.rule), outputs)
        if any(site.rule is None for site in own):
            call.fallback = []
            outputs = add_probes(outputs, _probe_into(call.fallback))
        return outputs


def run_with_loss(model: keras.Model, objective: Objective) -> DryRun:
    """A dry run that includes the loss, if possible.

    A loss may fix the number of examples; it is then traced with an open one.
    """
    run = DryRun(model, [], objective)
    if run.knows_loss:
        return run
    return DryRun(model, [], objective, examples=None)


def _probe_into(gates: list[str]) -> Callable[[Any], Any]:
    """A function that probes tensors and adds the probes' names to `gates`."""

    def watch(tensor):
        if not is_differentiable(tensor):
            return tensor
        probe = tf.identity(tensor)
        gates.append(probe.op.name)
        return probe

    return watch


def _placeholder(examples: int | None, leaf: Any) -> tf.Tensor:
    if not isinstance(leaf, tf.TensorSpec):
        leaf = tf.convert_to_tensor(leaf)
    shape = [examples, *leaf.shape[1:]]
    return tf.compat.v1.placeholder(leaf.dtype, shape)
