"""One forward pass of a model and its loss that computes nothing.

It is traced for a number of examples that no other axis has, so that shapes
alone tell the axis of the examples from the rest, and leaves a graph behind in
which every call of a layer is a range of operations.

Synopsis:

    run = DryRun(model, sites, Objective(x, y, None, loss))
    for call in run.calls:
        call.splits                    # by the shapes that go in and come out
        run.is_left(call, variable)    # by what is done with its tensors
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.gradients.paths import Paths, Span, handles_of
from keras_tracin.gradients.refusals import check_call
from keras_tracin.gradients.rules.fallback import (
    is_differentiable,
    outputs_of,
    with_probes,
)
from keras_tracin.gradients.rules.registry import watch_before_activation
from keras_tracin.gradients.sites import (
    Site,
    intercepted,
    layers_called,
    without_rematerialization,
)
from keras_tracin.models.loops import unfinished_loops

# How many examples the dry run has: a prime, so that a multiple of it is an
# axis into which the examples were folded.
EXAMPLES = 1009


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is differentiated, of which batch.

    Attributes:
        x: the model's inputs: tensors, arrays or `tf.TensorSpec`s.
        y: the labels, likewise.
        sample_weight: the weights, likewise, or None.
        loss: `(y, y_pred, sample_weight) -> [n]`; None if it is not known, in
            which case it is taken to depend on the model's outputs alone.
    """

    x: Any
    y: Any = None
    sample_weight: Any = None
    loss: Callable[[Any, Any, Any], tf.Tensor] | None = None


@dataclasses.dataclass
class Call:
    """One call of a layer in the dry run.

    Attributes:
        number: its place among the run's calls.
        layer: the layer.
        parent: the call that it was made in.
        tape: of the variables that the call read.
        takes_examples: whether arguments have the examples first.
        in_graph: whether it belongs to the model itself, not to a loop or a
            function in it.
        arguments: names of the tensors of examples that it was given.
        span: its operations.
        outputs: the tensors it returned that have a gradient.
        returned: their names, before the probes.
        fallback: names of the operations that probe what it returned, if it
            is a site of the fallback.
        rule: the same for the layer's rule, if it has one.
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
        """The variables it read itself, not through layers it called."""
        return {id(v) for v in self.tape.watched_variables()}

    @property
    def returns_examples(self) -> bool:
        """Whether what it returns has the examples along the first axis."""
        # What else the model returns is no matter, if the loss leaves it out.
        enough = any if self.parent is None else all
        return self.in_graph and enough(map(may_have_examples, self.outputs))

    @property
    def splits(self) -> bool:
        """Whether the call can be repeated for one example, by its shapes."""
        return self.takes_examples and self.returns_examples

    def around(self) -> Iterator[Call]:
        """The call itself, and all those that it was made in."""
        call: Call | None = self
        while call is not None:
            yield call
            call = call.parent


class DryRun:
    """The calls that a model makes, and the graph that they leave.

    Args:
        model: a built model.
        sites: the layers whose calls will be recorded.
        objective: what is differentiated.
        examples: how many; None leaves their number open.

    Attributes:
        calls: in the order that they began in; the first is the model's.
        loss_span: the loss's operations.
        knows_loss: whether the loss was part of the run.
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
                    note = functools.partial(self._note, layer)
                    noting.enter_context(intercepted(layer, note))
                outputs = model(x, training=False)
            ends = list(outputs_of(outputs))
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
                    # What is wrong with it, if anything, the trace will say.
                    pass
            self.loss_span = start, self._now
        self._loss_arguments = _names_of_examples(
            (outputs, y, weight, _logits_behind(outputs)),
            ("_keras_mask", "_keras_logits"),
        )
        batch = tf.nest.flatten((x, y, weight))
        self._examples = list(filter(_is_symbolic, batch))
        self._ends = list(filter(_is_symbolic, ends))

    @functools.cached_property
    def _paths(self) -> Paths:
        return Paths(self._graph, self._examples, self._ends)

    @property
    def _now(self) -> int:
        return self._graph.num_operations()

    def is_left(self, call: Call, variable: keras.Variable) -> bool:
        """Whether the call's site of the fallback misses a gradient of it."""
        gates, returned = call.fallback, frozenset[str]()
        if gates is None:  # not a site yet: it would gate what it returned
            gates, returned = [], call.returned
        handles = handles_of(variable.value)
        return self._paths.leaves(call.span, handles, gates, returned)

    def goes_round_rule(self, call: Call, variable: keras.Variable) -> bool:
        """Whether what the layer's rule watches misses a gradient of it."""
        gates, returned = call.rule, frozenset[str]()
        if gates is None:  # watched in a way of the rule's own
            gates, returned = [], call.returned
        handles = handles_of(variable.value)
        return self._paths.leaves(call.span, handles, gates, returned)

    def is_entered(self, call: Call) -> bool:
        """Whether it reads examples that are not among its arguments."""
        return self._paths.enters(call.span, call.arguments)

    @property
    def loss_is_entered(self) -> bool:
        """Whether the loss reads tensors of the model beside its outputs."""
        return self._paths.enters(self.loss_span, self._loss_arguments)

    def loss_reads(self, variable: keras.Variable) -> bool:
        """Whether the loss itself has a gradient by the variable."""
        handles = handles_of(variable.value)
        return self._paths.reads(self.loss_span, handles)

    def depends_on(self, value: tf.Variable) -> bool:
        """Whether outputs and losses depend on the values of a variable."""
        return self._paths.uses(handles_of(value))

    def is_read_outside(self, variable: keras.Variable) -> bool:
        """Whether it is read beside the model's call and the loss."""
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

    def _note(self, layer: keras.Layer, original, *args, **kwargs):
        check_call(layer, args, kwargs)
        parent = self._active[-1] if self._active else None
        with contextlib.ExitStack() as stack:
            if parent is not None:
                stack.enter_context(parent.tape.stop_recording())
            tape = stack.enter_context(tf.GradientTape(persistent=True))
            call = Call(
                len(self.calls),
                layer,
                parent,
                tape,
                takes_examples=_takes_examples((args, kwargs)),
                in_graph=tf.compat.v1.get_default_graph() is self._graph,
                arguments=_names_of_examples((args, kwargs)),
            )
            self.calls.append(call)
            self._active.append(call)
            stack.callback(self._active.pop)
            start = self._now
            outputs = self._probed(call, original, args, kwargs)
            call.span = start, self._now
        call.outputs += filter(is_differentiable, tf.nest.flatten(outputs))
        return outputs

    def _probed(self, call: Call, original, args, kwargs):
        """Calls the layer, and probes what a capture of its sites would."""
        own = [site for site in self._sites if site.layer is call.layer]
        rule = next((site.rule for site in own if site.rule), None)
        watching = None if rule is None else rule.watching
        if watching is watch_before_activation:
            call.rule = []
            with watch_before_activation(call.layer, _into(call.rule)):
                outputs = original(*args, **kwargs)
        else:
            outputs = original(*args, **kwargs)
        call.returned = frozenset(
            t.name for t in outputs_of(outputs) if _is_symbolic(t)
        )
        if rule is not None and watching is None:
            call.rule = []
            outputs = tf.nest.map_structure(_into(call.rule), outputs)
        if any(site.rule is None for site in own):
            call.fallback = []
            outputs = with_probes(outputs, _into(call.fallback))
        return outputs


def run_with_loss(model: keras.Model, objective: Objective) -> DryRun:
    """A run that knows the loss, if there is one.

    A loss may fix the number of examples, and be traced only without it.
    """
    run = DryRun(model, [], objective)
    if run.knows_loss:
        return run
    return DryRun(model, [], objective, examples=None)


def _into(gates: list[str]) -> Callable[[Any], Any]:
    """What puts a probe on a tensor and its name into a list."""

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


def _takes_examples(arguments: Any) -> bool:
    """Whether some have the examples first, and none has them folded."""
    tensors = [t for t in tf.nest.flatten(arguments) if tf.is_tensor(t)]
    return any(map(may_have_examples, tensors)) and not any(
        map(_examples_folded, tensors)
    )


def _names_of_examples(
    arguments: Any, notes: Sequence[str] = ("_keras_mask",)
) -> frozenset[str]:
    """Tensors with the examples first, and what Keras noted on them."""
    return frozenset(
        tensor.name
        for leaf in tf.nest.flatten(arguments)
        for tensor in (leaf, *(getattr(leaf, note, None) for note in notes))
        if _is_symbolic(tensor) and may_have_examples(tensor)
    )


def _logits_behind(outputs: Any) -> list[tf.Tensor]:
    """What Keras's crossentropies take in place of a softmax's outputs.

    They find the operation in a graph and go round it, to be more precise.
    """
    return [
        output.op.inputs[0]
        for output in tf.nest.flatten(outputs)
        if _is_symbolic(output) and output.op.type in ("Softmax", "Sigmoid")
    ]


def _is_symbolic(value: Any) -> bool:
    return isinstance(value, tf.Tensor) and tf.is_symbolic_tensor(value)


def first_axis(tensor: tf.Tensor) -> int | None:
    """Its size, zero if there is none, None if that is not known."""
    shape = tf.TensorShape(tensor.shape)
    return shape[0] if shape.rank else 0


def may_have_examples(tensor: tf.Tensor) -> bool:
    """Whether the examples may be along the tensor's first axis."""
    return first_axis(tensor) in (EXAMPLES, None)


def _examples_folded(tensor: tf.Tensor) -> bool:
    """Whether the first axis is examples and something else in one."""
    size = first_axis(tensor) or 0
    return size > EXAMPLES and size % EXAMPLES == 0
