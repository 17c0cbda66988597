"""A reference for exact scores: one pass, and matrix products.

The pass is one forward and one backward over the training examples. The
products are those of the scores of each layer, on random numbers of the same
shapes: for a Dense layer with one vector per example, its two factors (Pruthi
    et
al. 2020, section F); for every other layer, gradients [n, p] by [p, m]. Token
embeddings count as free: their products involve only the few token ids that two
examples share.

This floor is not a strict lower bound. An ordinary backward pass computes
gradients of the weights, which scores of layers that factor do not need: such a
network can be scored faster. Also, only several batch sizes are tried. The pass
over the queries is not included.
"""

import dataclasses
from collections.abc import Callable, Iterable

import keras
import numpy as np
import tensorflow as tf

from benchmarks import _measure, _models

# The best of several sizes, each tried on a slice first.
BATCH_SIZES = (32, 64, 128, 256, 512, 1024)
BLOCK_SIZES = (128, 512, 2000)
SLICE = 2_048
LARGEST_BLOCK = 2**29  # bytes


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A call with the fastest of several sizes."""

    run: Callable[[], None]
    size: int


def one_pass(model: keras.Model, x: np.ndarray, y: np.ndarray) -> Tuned:
    """One forward and backward pass over `x`, `y`, in the best batch size."""
    gradient = _batch_gradient(model)
    tensors = tf.constant(x), tf.constant(y)

    def calls(num_examples: int, size: int) -> Callable[[], None]:
        starts = range(0, num_examples, size)
        return lambda: _run_all(
            gradient(*(t[start : start + size] for t in tensors))
            for start in starts
        )

    num_slice = min(SLICE, len(x))
    sizes = [size for size in BATCH_SIZES if size <= len(x)] or [len(x)]
    size = _measure.fastest({s: calls(num_slice, s) for s in sizes})
    return Tuned(calls(len(x), size), size)


def _batch_gradient(model: keras.Model) -> Callable:
    @tf.function(reduce_retracing=True)
    def gradient(x, y):
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                y, model(x, training=False)
            )
            loss = tf.reduce_sum(losses)
        return tape.gradient(loss, model.trainable_weights)

    return gradient


def products(
    model: keras.Model, num_train: int, num_queries: int
) -> Callable[[], None]:
    """The products of each layer, each in its best block size."""
    runs = [
        product(widths, num_train, num_queries).run
        for widths in layer_widths(model).values()
    ]
    return lambda: _run_all(run() for run in runs)


def product(widths: tuple[int, ...], num_train: int, num_queries: int) -> Tuned:
    """Multiplies operands of these widths, for all examples by all queries.

    One block of examples is multiplied repeatedly until `num_train` rows are
    done, so that memory stays small for any layer.
    """
    largest = max(LARGEST_BLOCK // (4 * sum(widths)), BLOCK_SIZES[0])
    largest = min(largest, num_train)
    sizes = [size for size in BLOCK_SIZES if size <= largest] or [largest]
    queries = _random_rows(num_queries, widths)
    block = _random_rows(max(sizes), widths)

    def calls(num_examples: int, size: int) -> Callable[[], None]:
        rows = [size] * (num_examples // size)
        if rest := num_examples % size:
            rows.append(rest)
        blocks = {n: [operand[:n] for operand in block] for n in set(rows)}
        return lambda: _run_all(_scores(blocks[n], queries) for n in rows)

    size = _measure.fastest(
        {size: calls(min(SLICE, num_train), size) for size in sizes}
    )
    return Tuned(calls(num_train, size), size)


def layer_widths(model: keras.Model) -> dict[str, tuple[int, ...]]:
    """Numbers per example in the operands of each layer's product.

    Two numbers stand for a layer that factors (its output's gradient, its
    input), one for a layer whose whole gradient is multiplied. The keys are
    the paths of the layers' variables, less the variable's own name.
    """
    factors = {
        layer.kernel.path.rpartition("/")[0]: layer.kernel.shape[::-1]
        for layer in model.layers
        if isinstance(layer, keras.layers.Dense) and len(layer.input.shape) == 2
    }
    widths: dict[str, tuple[int, ...]] = {}
    for variable in model.trainable_weights:
        path = variable.path.rpartition("/")[0]
        if path in factors:
            widths[path] = factors[path]
        elif path != _models.TOKEN_EMBEDDING:
            size = int(np.prod(variable.shape))
            widths[path] = (sum(widths.get(path, ())) + size,)
    return widths


def _random_rows(rows: int, widths: tuple[int, ...]) -> list[tf.Tensor]:
    rng = np.random.default_rng(0)
    return [tf.constant(rng.random((rows, w), np.float32)) for w in widths]


@tf.function(reduce_retracing=True)
def _scores(block, queries):
    dots = [
        tf.matmul(a, b, transpose_b=True)
        for a, b in zip(block, queries, strict=True)
    ]
    # The bias of a layer that factors is an input that is always one.
    return dots[0] * (dots[1] + 1) if len(dots) == 2 else dots[0]


def _run_all(results: Iterable) -> None:
    for _ in results:
        pass
