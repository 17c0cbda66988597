"""Per-example gradients kept as the factors they are made of.

The gradient of one example with respect to a dense kernel is a sum over
positions of outer products, `Σ_t x_t δ_tᵀ` (section F). Inner products of such
gradients need only the `x` and the `δ`, so the gradients themselves are made
only where that is cheaper.

Four kinds of factors cover every layer:

* `OuterFactors`: inputs `x [n, t, i]` and output gradients `δ [n, t, o]`;
* `LookupFactors`: token ids `[n, t]` and output gradients `[n, t, o]`;
* `TableFactors`: both, of a table that is looked up and multiplied by;
* `DenseGradients`: the gradients themselves, one `[n, p]` per variable.

Nothing here knows about Keras: these are the algebra's own objects. They
travel through `tf.function` as arguments and results.

Synopsis:

    scores = inner(train, queries)      # [n, m]
    norms = squared_norm(train)         # [n], the diagonal of inner(f, f)
    shares = contract(train, total(queries))  # [n], one direction for all
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import tensorflow as tf

from keras_tracin.gradients import lookup

Direction = tuple[tf.Tensor, ...]

# Numbers in a kernel up to which an example's gradient is made to be
# multiplied by dense directions: for 1,024 examples these are 256 MB.
_LARGE_KERNEL = 2**16


class _Nest:
    """Lets `tf.nest` and `tf.function` look inside a dataclass.

    Fields annotated as static travel as metadata, all others as tensors.
    """

    static: tuple[str, ...] = ()

    def __tf_flatten__(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        names = [f.name for f in dataclasses.fields(self)]  # type: ignore[arg-type]
        metadata = tuple(getattr(self, name) for name in self.static)
        tensors = tuple(
            getattr(self, name) for name in names if name not in self.static
        )
        return metadata, tensors

    @classmethod
    def __tf_unflatten__(cls, metadata, tensors):
        names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
        fields = dict(zip(cls.static, metadata, strict=True))
        moving = [name for name in names if name not in cls.static]
        fields.update(zip(moving, tensors, strict=True))
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class OuterFactors(_Nest):
    """Gradients `Σ_t x_t δ_tᵀ` of a kernel `[i, o]`, and `Σ_t δ_t` of a bias.

    Attributes:
        inputs: `x [n, t, i]`.
        grads: `δ [n, t, o]`, the loss's gradient at the layer's output.
        bias: whether a bias `[o]` stands beside the kernel.
    """

    inputs: tf.Tensor
    grads: tf.Tensor
    bias: bool = False

    static = ("bias",)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The static `(t, i, o)`."""
        _, t, i = self.inputs.shape
        return t, i, self.grads.shape[-1]


@dataclasses.dataclass(frozen=True)
class LookupFactors(_Nest):
    """Gradients of a table `[vocabulary, o]` whose rows were looked up.

    Attributes:
        ids: `[n, t]`, the rows each position took.
        grads: `[n, t, o]`, the loss's gradient at what was taken.
        vocabulary: the number of rows.
    """

    ids: tf.Tensor
    grads: tf.Tensor
    vocabulary: int

    static = ("vocabulary",)


@dataclasses.dataclass(frozen=True)
class TableFactors(_Nest):
    """Gradients of a table whose rows were looked up and multiplied by.

    A language model whose output projection is its embedding has such a
    table: the gradient is the sum of the two uses'.

    Attributes:
        looked_up: the rows that were taken.
        outer: the product's factors, its inputs `[n, t, vocabulary]`.
    """

    looked_up: LookupFactors
    outer: OuterFactors


@dataclasses.dataclass(frozen=True)
class DenseGradients(_Nest):
    """Materialised gradients, `[n, p]` for each variable.

    Attributes:
        parts: one for each variable.
        outputs: `o` if the first of them is a kernel's, `[n, i·o]`.
    """

    parts: tuple[tf.Tensor, ...]
    outputs: int | None = None

    static = ("outputs",)


Factors = OuterFactors | LookupFactors | TableFactors | DenseGradients


def materialize(factors: Factors) -> DenseGradients:
    """The gradients themselves: `[n, i·o]`, and `[n, o]` for a bias.

    Of a table, these have all its rows.
    """
    if isinstance(factors, OuterFactors):
        _, i, o = factors.sizes
        kernel = tf.matmul(factors.inputs, factors.grads, transpose_a=True)
        parts = [tf.reshape(kernel, [-1, i * o])]
        if factors.bias:
            parts.append(tf.reduce_sum(factors.grads, axis=1))
        return DenseGradients(tuple(parts), outputs=o)
    if isinstance(factors, LookupFactors):
        return DenseGradients((_table(factors),))
    if isinstance(factors, TableFactors):
        (outer,) = materialize(factors.outer).parts
        return DenseGradients((_table(factors.looked_up) + outer,))
    if isinstance(factors, DenseGradients):
        return factors
    raise TypeError(
        f"Expected factors of gradients, received: {type(factors)}."
    )


def _table(factors: LookupFactors) -> tf.Tensor:
    """The table's gradients, `[n, vocabulary · o]`."""
    n = tf.shape(factors.ids)[0]
    size, width = factors.vocabulary, factors.grads.shape[-1]
    first_rows = tf.range(n)[:, tf.newaxis] * size
    tables = tf.math.unsorted_segment_sum(
        tf.reshape(factors.grads, [-1, width]),
        tf.reshape(first_rows + factors.ids, [-1]),
        n * size,
    )
    return tf.reshape(tables, [n, size * width])


def with_ones(factors: OuterFactors) -> OuterFactors:
    """The same with the bias as the weight of one more input, always 1."""
    if not factors.bias:
        return factors
    ones = tf.ones_like(factors.inputs[:, :, :1])
    inputs = tf.concat([factors.inputs, ones], axis=-1)
    return OuterFactors(inputs, factors.grads)


def compact(factors: Factors) -> Factors:
    """The form in which inner products with many others are cheapest.

    Position pairs cost `t² (i + o)` a pair of examples, materialised gradients
    `i·o` a pair (and `t·i·o` once an example); a table's lookups add pairs of
    `s` positions with the `t` of its product. The choice depends on static
    shapes alone, so both sides of a product make the same one.
    """
    if isinstance(factors, OuterFactors):
        t, i, o = factors.sizes
        if t is None or (t > 1 and t * t * (i + o) >= i * o):
            return materialize(factors)
    if isinstance(factors, TableFactors):
        t, i, o = factors.outer.sizes
        s = factors.looked_up.ids.shape[1]
        if t is None or s is None:
            return materialize(factors)
        if t * t * (i + o) + 2 * s * t * (o + 1) >= i * o:
            return materialize(factors)
    return factors


@functools.singledispatch
def inner(left: Factors, right: Factors) -> tf.Tensor:
    """Inner products of every gradient on the left with every on the right.

    Args:
        left: factors of `n` examples.
        right: factors of `m` examples for the same variables, in the same
            form or materialised: `m` directions of any kind.

    Returns:
        `[n, m]`.
    """
    raise TypeError(f"Expected factors of gradients, received: {type(left)}.")


@inner.register
def _(left: OuterFactors, right: Any) -> tf.Tensor:
    if isinstance(right, DenseGradients):
        t, i, o = left.sizes
        if t is None or i * o <= t * _LARGE_KERNEL:
            return inner(materialize(left), right)
        return _one_by_one(left, right)
    if left.sizes[0] == right.sizes[0] == 1:
        return _inner_single(left, right)
    return _inner_pairs(left, right)


def _inner_single(left: OuterFactors, right: OuterFactors) -> tf.Tensor:
    """(δ·δ')(x·x' + 1): one position on each side (section F)."""
    _, i, o = left.sizes
    inputs = tf.matmul(
        tf.reshape(left.inputs, [-1, i]),
        tf.reshape(right.inputs, [-1, i]),
        transpose_b=True,
    )
    grads = tf.matmul(
        tf.reshape(left.grads, [-1, o]),
        tf.reshape(right.grads, [-1, o]),
        transpose_b=True,
    )
    return grads * (inputs + 1.0) if left.bias else grads * inputs


def _inner_pairs(left: OuterFactors, right: OuterFactors) -> tf.Tensor:
    """Σ_{s,t} (δ_t·δ'_s)(x_t·x'_s + 1): every pair of positions."""
    inputs = tf.einsum("nti,msi->nmts", left.inputs, right.inputs)
    grads = tf.einsum("nto,mso->nmts", left.grads, right.grads)
    if left.bias:
        inputs += 1.0
    return tf.reduce_sum(inputs * grads, axis=[2, 3])


def _one_by_one(left: Factors, right: DenseGradients) -> tf.Tensor:
    """Contracts with a direction at a time; makes nothing of a kernel's size.

    This multiplies `t` times as much as a product of gradients does.
    """
    dtype = right.parts[0].dtype
    columns = tf.map_fn(
        lambda direction: contract(left, direction),
        right.parts,
        fn_output_signature=tf.TensorSpec([None], dtype),
    )
    return tf.transpose(columns)


@inner.register
def _(left: LookupFactors, right: Any) -> tf.Tensor:
    if isinstance(right, DenseGradients):
        return _one_by_one(left, right)
    return lookup.shared_products(left.ids, left.grads, right.ids, right.grads)


@inner.register
def _(left: TableFactors, right: Any) -> tf.Tensor:
    if isinstance(right, DenseGradients):
        return inner(materialize(left), right)
    return (
        inner(left.looked_up, right.looked_up)
        + inner(left.outer, right.outer)
        + _inner_crossed(left.looked_up, right.outer)
        + tf.transpose(_inner_crossed(right.looked_up, left.outer))
    )


def _inner_crossed(left: LookupFactors, right: OuterFactors) -> tf.Tensor:
    return lookup.crossed_products(
        left.ids, left.grads, right.inputs, right.grads
    )


@inner.register
def _(left: DenseGradients, right: Any) -> tf.Tensor:
    if not isinstance(right, DenseGradients):
        return tf.transpose(inner(right, left))
    return tf.add_n(
        [
            tf.matmul(a, b, transpose_b=True)
            for a, b in zip(left.parts, right.parts, strict=True)
        ]
    )


@functools.singledispatch
def squared_norm(factors: Factors) -> tf.Tensor:
    """The squared length of each example's gradient, `[n]`."""
    raise TypeError(
        f"Expected factors of gradients, received: {type(factors)}."
    )


@squared_norm.register
def _(factors: OuterFactors) -> tf.Tensor:
    t, i, o = factors.sizes
    if t is None or t * (i + o) >= i * o:
        return squared_norm(materialize(factors))
    inputs = tf.matmul(factors.inputs, factors.inputs, transpose_b=True)
    grads = tf.matmul(factors.grads, factors.grads, transpose_b=True)
    if factors.bias:
        inputs += 1.0
    return tf.reduce_sum(inputs * grads, axis=[1, 2])


@squared_norm.register
def _(factors: LookupFactors) -> tf.Tensor:
    same = tf.equal(factors.ids[:, :, None], factors.ids[:, None, :])
    products = tf.matmul(factors.grads, factors.grads, transpose_b=True)
    return tf.reduce_sum(tf.where(same, products, 0.0), axis=[1, 2])


@squared_norm.register
def _(factors: TableFactors) -> tf.Tensor:
    rows, outer = factors.looked_up, factors.outer
    crossed = lookup.paired_products(
        rows.ids, rows.grads, outer.inputs, outer.grads
    )
    return squared_norm(rows) + squared_norm(outer) + 2.0 * crossed


@squared_norm.register
def _(factors: DenseGradients) -> tf.Tensor:
    return tf.add_n(
        [tf.reduce_sum(tf.square(part), axis=1) for part in factors.parts]
    )


@functools.singledispatch
def total(factors: Factors) -> Direction:
    """The sum of all examples' gradients: one flat vector per variable."""
    raise TypeError(
        f"Expected factors of gradients, received: {type(factors)}."
    )


@total.register
def _(factors: OuterFactors) -> Direction:
    _, i, o = factors.sizes
    inputs = tf.reshape(factors.inputs, [-1, i])
    grads = tf.reshape(factors.grads, [-1, o])
    kernel = tf.reshape(tf.matmul(inputs, grads, transpose_a=True), [-1])
    bias = (tf.reduce_sum(grads, axis=0),) if factors.bias else ()
    return (kernel, *bias)


@total.register
def _(factors: LookupFactors) -> Direction:
    table = tf.math.unsorted_segment_sum(
        factors.grads, factors.ids, factors.vocabulary
    )
    return (tf.reshape(table, [-1]),)


@total.register
def _(factors: TableFactors) -> Direction:
    (rows,), (outer,) = total(factors.looked_up), total(factors.outer)
    return (rows + outer,)


@total.register
def _(factors: DenseGradients) -> Direction:
    return tuple(tf.reduce_sum(part, axis=0) for part in factors.parts)


@functools.singledispatch
def contract(factors: Factors, direction: Direction) -> tf.Tensor:
    """The inner product of each example's gradient with one direction.

    Args:
        factors: factors of `n` examples.
        direction: a flat vector per variable, as `total` returns.

    Returns:
        `[n]`.
    """
    raise TypeError(
        f"Expected factors of gradients, received: {type(factors)}."
    )


@contract.register
def _(factors: OuterFactors, direction: Direction) -> tf.Tensor:
    _, i, o = factors.sizes
    grads = factors.grads
    outputs = tf.einsum(
        "nti,io->nto", factors.inputs, tf.reshape(direction[0], [i, o])
    )
    if factors.bias:
        outputs += direction[1]
    return tf.reduce_sum(outputs * grads, axis=[1, 2])


@contract.register
def _(factors: LookupFactors, direction: Direction) -> tf.Tensor:
    table = tf.reshape(direction[0], [factors.vocabulary, -1])
    return tf.reduce_sum(
        tf.gather(table, factors.ids) * factors.grads, axis=[1, 2]
    )


@contract.register
def _(factors: TableFactors, direction: Direction) -> tf.Tensor:
    return contract(factors.looked_up, direction) + contract(
        factors.outer, direction
    )


@contract.register
def _(factors: DenseGradients, direction: Direction) -> tf.Tensor:
    return tf.add_n(
        [
            tf.linalg.matvec(part, vector)
            for part, vector in zip(factors.parts, direction, strict=True)
        ]
    )


def weighted_norm(factors: Factors, weights: Direction) -> tf.Tensor:
    """Each gradient's squared length with a weight for every entry, `[n]`.

    Args:
        factors: factors of `n` examples.
        weights: a flat vector per variable, as `total` returns.
    """
    if isinstance(factors, OuterFactors) and factors.sizes[0] == 1:
        # The entries x δ of a single position have squares x² δ².
        squares = OuterFactors(
            tf.square(factors.inputs), tf.square(factors.grads), factors.bias
        )
        return contract(squares, weights)
    full = materialize(factors)
    squared = tuple(tf.square(part) for part in full.parts)
    return contract(DenseGradients(squared), weights)


def merge(uses: list[Factors]) -> Factors:
    """One set of factors for variables that were used several times.

    The gradient of a variable is the sum over its uses: positions of one use
    are set beside those of the next. Where one use's gradients are
    materialised, all are.
    """
    if len(uses) == 1:
        return uses[0]
    outer = [use for use in uses if isinstance(use, OuterFactors)]
    looked_up = [use for use in uses if isinstance(use, LookupFactors)]
    if len(outer) == len(uses):
        return _side_by_side(outer, "inputs")
    if len(looked_up) == len(uses):
        return _side_by_side(looked_up, "ids")
    if len(outer) + len(looked_up) == len(uses):
        return TableFactors(
            _side_by_side(looked_up, "ids"), _side_by_side(outer, "inputs")
        )
    full = [materialize(use) for use in uses]
    columns = zip(*(use.parts for use in full), strict=True)
    summed = tuple(tf.add_n(column) for column in columns)
    return dataclasses.replace(full[0], parts=summed)


def _side_by_side(uses: list[Any], side: str) -> Any:
    """The positions of several uses of one kind as those of one."""
    joined = {
        name: tf.concat([getattr(use, name) for use in uses], axis=1)
        for name in (side, "grads")
    }
    return dataclasses.replace(uses[0], **joined)


def split(factors: Factors) -> list[Factors]:
    """The same gradients with each variable's factors on their own."""
    if isinstance(factors, OuterFactors) and factors.bias:
        bias = DenseGradients((tf.reduce_sum(factors.grads, axis=1),))
        return [dataclasses.replace(factors, bias=False), bias]
    if isinstance(factors, DenseGradients):
        return [DenseGradients((part,)) for part in factors.parts]
    return [factors]


def concat(blocks: list[Any]) -> Any:
    """Puts the examples of several batches' factors one after another."""
    if len(blocks) == 1:
        return blocks[0]
    return tf.nest.map_structure(
        lambda *tensors: tf.concat(tensors, axis=0), *blocks
    )
