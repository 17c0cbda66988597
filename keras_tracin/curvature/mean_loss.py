"""A curvature of the mean loss as an operator: passes, batches, vectors.

Both curvatures of `keras_tracin.curvature.objective` are sums over examples,
plus weight regularisers. They share what is here: reading the data, products
with many vectors at once, random minibatches, replicas, and the gradient.

Synopsis:

    class Hessian(MeanLossCurvature):
        def linearize(self, data, real):
            ...                      # runs the model once
            return product           # multiplies a vector, in parts
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.curvature.examples import Minibatches
from keras_tracin.curvature.operators import Operator
from keras_tracin.curvature.penalty import Layout, Parts, Penalty
from keras_tracin.data.batches import Examples
from keras_tracin.engine.distribution import Strategy, spread_sum
from keras_tracin.engine.execution import Execution
from keras_tracin.engine.footprint import Footprint, footprint
from keras_tracin.engine.planning import make_plan
from keras_tracin.engine.steps import batch_spec
from keras_tracin.gradients.compiling import compile_step
from keras_tracin.gradients.graphs import has_loops
from keras_tracin.gradients.sites import without_rematerialization
from keras_tracin.losses.per_example import PerExampleLoss

# Examples × variables up to which vectors are multiplied side by side: the
# tensors of an operation are then small, and calling it takes longer than doing
# it. Beyond, one vector at a time moves less memory.
_SIDE_BY_SIDE = 2**21
_SIDE_BY_SIDE_AT_ONCE = 2**26  # the same × vectors

_MINIBATCH = 256  # examples up to which they are taken at once


def _as_they_are(outputs: Any) -> Any:
    return outputs


@dataclasses.dataclass(frozen=True, eq=False)
class MeanLossCurvature(Operator):
    """A curvature of the mean loss, in parts that its subclasses share.

    A subclass supplies the product with a vector, given one run of the model.

    Attributes:
        model: a built model; it runs in inference mode.
        loss: `(y, y_pred, sample_weight) -> [n]`.
        examples: the training data.
        variables: variables that vectors are laid out by, in this order.
        penalty: `ρ`, the factor of the weight regularisers beside the mean
            loss; see `keras_tracin.losses.per_example.penalty_weight`.
        memory_limit: bytes that may be used; half of what is free by default.
        strategy: where to run; each replica takes a share of a batch.
        jit_compile: whether XLA compiles the steps.
        see_outputs: makes what the loss is given of the model's outputs: the
            same numbers, marked with the logits that they come from.
    """

    model: keras.Model
    loss: PerExampleLoss
    examples: Examples
    variables: Sequence[keras.Variable]
    penalty: float = 1.0
    memory_limit: int | None = None
    strategy: Strategy | None = None
    jit_compile: bool = False
    see_outputs: Callable[[Any], Any] = _as_they_are

    def __post_init__(self):
        check_precision(self.model, self.variables)

    @property
    def size(self) -> int:
        """Number of entries of all variables, p."""
        return self.layout.size

    @property
    def dtype(self) -> tf.DType:
        """The type of the vectors: the widest of the variables'."""
        return self.layout.dtype

    def matmat(self, vectors: tf.Tensor) -> tf.Tensor:
        """The product with each row of `vectors [m, p]`.

        One pass over the data; the work on each batch's losses and gradients
        is shared by all rows.
        """
        vectors = tf.convert_to_tensor(vectors, self.dtype)
        total = tf.zeros_like(vectors)
        count = 0
        for data in self.held.batches(self.examples_at_once):
            total += self.products.sums(data, vectors)
            count += len(tf.nest.flatten(data)[0])
        return total / count + self.regularizers.products(vectors)

    def sample(self, rng: np.random.Generator, batch_size: int) -> Operator:
        """The same over `batch_size` random examples instead of all."""
        return _OverBatch(self, self.held.draw(rng, batch_size))

    def gradient(self) -> tf.Tensor:
        """The gradient of the objective, `[p]`; zero at its minimum."""
        total = tf.zeros([self.size], self.dtype)
        count = 0
        for data in self.held.batches(self.examples_at_once):
            total += self.batch_gradient(data)
            count += len(tf.nest.flatten(data)[0])
        return total / count + self.regularizers.gradient()

    def penalty_diagonal(self) -> tf.Tensor:
        """The regularisers' second derivatives `[p]`, if these are diagonal.

        They are for every penalty that is a sum over weights, as L2.
        """
        ones = tf.ones([1, self.size], self.dtype)
        return tf.reshape(self.regularizers.products(ones) * ones, [-1])

    def linearize(self, data, real) -> Callable[[Parts], Parts]:
        """Runs the model once; returns the product with a vector, in parts."""
        raise NotImplementedError

    @functools.cached_property
    def products(self) -> BatchProducts:
        """Products summed over the examples of a batch."""
        return BatchProducts(self)

    @functools.cached_property
    def batch_gradient(self):
        """`data -> [p]`, the gradient summed over a batch, compiled."""

        def step(data, real):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(self.values)
                total = self.total_loss(data, real)[0]
            return self.layout.join(self.gradients(tape, total))

        return compile_step(
            spread_sum(step, self.strategy), (self.spec,), self.jit_compile
        )

    @property
    def values(self) -> list[tf.Variable]:
        """The variables as TensorFlow knows them."""
        return self.layout.values

    @functools.cached_property
    def layout(self) -> Layout:
        """The places of the variables in a vector."""
        return Layout(tuple(self.variables))

    @functools.cached_property
    def regularizers(self) -> Penalty:
        """The weight regularisers, as a function of all variables."""
        return Penalty(self.layout, self.penalty)

    @functools.cached_property
    def spec(self):
        """The types of a batch's parts, of any number of examples."""
        return batch_spec(self.examples.first(1).data)

    @functools.cached_property
    def held(self) -> Minibatches:
        """The training data, in memory as far as it fits."""
        return Minibatches(self.examples, self._execution.memory // 4)

    @property
    def _execution(self) -> Execution:
        return Execution(self.strategy, self.jit_compile, self.memory_limit)

    @functools.cached_property
    def examples_at_once(self) -> int:
        """The number of examples that a step of a product takes."""
        return self.batch_size(footprint(self.products.with_one))

    def batch_size(self, needs: Footprint) -> int:
        """The number of examples that a step may take at once.

        Args:
            needs: the step's footprint.
        """
        plan = make_plan(
            self.examples,
            num_queries=0,
            num_checkpoints=1,
            footprint=needs,
            bytes_per_query=0,
            execution=self._execution,
        )
        return plan.batch_size

    def total_loss(self, data, real) -> tuple[tf.Tensor, Any]:
        """The sum of the real examples' losses, and the model's outputs."""
        x, y, *weight = data
        with without_rematerialization(self.model):
            outputs = self.see_outputs(self.model(x, training=False))
        losses = self.loss(y, outputs, weight[0] if weight else None)
        return tf.reduce_sum(tf.where(real, losses, 0)), outputs

    def gradients(self, tape: tf.GradientTape, target) -> Parts:
        """First derivatives by the variables, none of which may be missing."""
        grads = tape.gradient(target, self.values)
        missing = [
            variable.path
            for variable, grad in zip(self.variables, grads, strict=True)
            if grad is None
        ]
        if missing:
            raise ValueError(
                f"The loss has no gradient for the variables {missing}: "
                "something after them cannot be differentiated (rounding, "
                "argmax, a conversion to integers), or does not reach the "
                "loss. Leave their layers out by naming the others in "
                "`layers=`."
            )
        return [tf.convert_to_tensor(grad) for grad in grads]


class BatchProducts:
    """Products with many vectors, summed over a batch's examples.

    Args:
        curvature: the matrix that vectors are multiplied with.
    """

    def __init__(self, curvature: MeanLossCurvature):
        self._curvature = curvature

    def sums(self, data: Any, vectors: tf.Tensor) -> tf.Tensor:
        """The products `[m, p]` summed over the examples of a batch."""
        rows, examples = len(vectors), len(tf.nest.flatten(data)[0])
        if rows == 1:
            return self.with_one(data, vectors)
        width = examples * self._curvature.size
        if width > _SIDE_BY_SIDE or self._has_loops:
            return self._in_turn(data, vectors)
        block = max(1, _SIDE_BY_SIDE_AT_ONCE // width)
        products = [
            self._side_by_side(data, vectors[start : start + block])
            for start in range(0, rows, block)
        ]
        return products[0] if len(products) == 1 else tf.concat(products, 0)

    @functools.cached_property
    def _has_loops(self) -> bool:
        """Whether something in the model loops, as recurrent layers do.

        `tf.vectorized_map` cannot take second derivatives of a loop.
        """
        gradient = self._curvature.batch_gradient
        return has_loops(gradient.get_concrete_function().graph)

    @functools.cached_property
    def with_one(self):
        """`(data, vectors [1, p]) -> [1, p]`, compiled."""
        return self._compile(lambda f, vectors: f(vectors[0])[tf.newaxis])

    @functools.cached_property
    def _in_turn(self):
        return self._compile(tf.map_fn)

    @functools.cached_property
    def _side_by_side(self):
        return self._compile(tf.vectorized_map)

    def _compile(self, over: Callable):
        """Compiles `(data, vectors [m, p]) -> [m, p]`.

        Args:
            over: `(function, vectors)`, calls the function on each vector.
        """
        curvature, layout = self._curvature, self._curvature.layout

        def step(data, real, vectors):
            product = curvature.linearize(data, real)
            return over(
                lambda vector: layout.join(product(layout.split(vector))),
                vectors,
            )

        spec = tf.TensorSpec([None, layout.size], layout.dtype)
        return compile_step(
            spread_sum(step, curvature.strategy),
            (curvature.spec, spec),
            curvature.jit_compile,
        )


def check_precision(
    model: keras.Model, variables: Iterable[keras.Variable] = ()
) -> None:
    """Raises ValueError where second derivatives would be in half precision.

    Args:
        model: the model, none of whose layers may compute in half precision.
        variables: variables that may not be in half precision either.
    """
    narrow = [v.path for v in variables if tf.as_dtype(v.dtype).size < 4]
    narrow += [
        layer.name
        for layer in model._flatten_layers()
        if layer.compute_dtype in ("float16", "bfloat16")
    ]
    if narrow:
        raise ValueError(
            "Second derivatives need float32 or wider. Received a model that "
            f"computes in half precision ({sorted(set(narrow))[:5]}). Build "
            "it with dtype='float32' and `set_weights` with these weights."
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _OverBatch(Operator):
    """The curvature of the mean loss over one batch."""

    whole: MeanLossCurvature
    data: Any

    @property
    def size(self) -> int:
        return self.whole.size

    @property
    def dtype(self) -> tf.DType:
        return self.whole.dtype

    def matmat(self, vectors: tf.Tensor) -> tf.Tensor:
        vectors = tf.convert_to_tensor(vectors, self.dtype)
        size = count = len(tf.nest.flatten(self.data)[0])
        if count > _MINIBATCH:
            size = self.whole.examples_at_once
        total = tf.zeros_like(vectors)
        for start in range(0, count, size):
            part = tf.nest.map_structure(
                lambda leaf, rows=slice(start, start + size): leaf[rows],
                self.data,
            )
            total += self.whole.products.sums(part, vectors)
            self.whole.held.advance()
        return total / count + self.whole.regularizers.products(vectors)

    def sample(self, rng: np.random.Generator, batch_size: int) -> Operator:
        return self.whole.sample(rng, batch_size)
