"""Inner products of embedding gradients, over tokens that examples share.

The gradient of an embedding table is zero outside the rows an example looked
up, so the product of two examples' gradients is a sum over equal ids only:

    S[i, j] = Σ_{s,t : ids[i,s] = ids'[j,t]}  g[i,s] · g'[j,t]

Word frequencies are far from uniform. A few tokens are in nearly every text:
for these, each example's gradients are summed by token and multiplied as
matrices. All other tokens are rarely shared: for these, pairs of positions with
equal ids are listed and multiplied one by one. No array of size vocabulary ×
width is allocated.

XLA needs the length of such a list in advance. There, all positions of a query
are multiplied with all of the batch, and products of unequal ids are masked.
"""

from __future__ import annotations

import tensorflow as tf

from keras_tracin.gradients.compiling import shapes_are_static

# A listed pair reads its two rows from memory; in a matrix product the same
# multiplications take about an eightieth of that time on a CPU. So a token
# deserves a column of the matrix product if one query in nine has it (with
# equal frequencies on both sides, one pair of examples in 81 then shares it).
_FREQUENT_SHARE = 1 / 9
_MOST_FREQUENT = 256  # bounds the [n, tokens, width] array of a batch


def shared_products(
    ids: tf.Tensor, grads: tf.Tensor, other_ids: tf.Tensor, other: tf.Tensor
) -> tf.Tensor:
    """Inner products of `n` with `m` examples' embedding gradients.

    Args:
        ids: token ids `[n, s]`.
        grads: output gradients `[n, s, o]`.
        other_ids: token ids `[m, t]`.
        other: output gradients `[m, t, o]`.

    Returns:
        `[n, m]`.
    """
    if shapes_are_static():
        return _products_query_by_query(ids, grads, other_ids, other)
    frequent = _frequent_tokens(other_ids)
    by_token = tf.matmul(
        _sum_by_token(ids, grads, frequent),
        _sum_by_token(other_ids, other, frequent),
        transpose_b=True,
    )
    return by_token + _products_of_rare_tokens(
        ids, grads, other_ids, other, frequent
    )


def crossed_products(
    ids: tf.Tensor, grads: tf.Tensor, inputs: tf.Tensor, outputs: tf.Tensor
) -> tf.Tensor:
    """Inner products of looked-up with outer-product gradients of a table.

    A row that was looked up overlaps the outer product in that row alone:
    `(e_id gᵀ) · (x δᵀ) = x[id] (g · δ)`. Of `x`, which is as long as the
    vocabulary, only entries at ids of the other side are read.

    Args:
        ids: token ids `[n, s]`.
        grads: output gradients `[n, s, o]`.
        inputs: inputs `x [m, t, vocabulary]`.
        outputs: output gradients `δ [m, t, o]`.

    Returns:
        `[n, m]`.
    """
    n, s = tf.unstack(tf.shape(ids))
    m, t, _ = tf.unstack(tf.shape(outputs))
    width = grads.shape[-1]
    products = tf.matmul(
        tf.reshape(outputs, [-1, width]),
        tf.reshape(grads, [-1, width]),
        transpose_b=True,
    )
    read = tf.gather(inputs, tf.reshape(ids, [-1]), axis=2)
    terms = tf.reshape(products, [m, t, n, s]) * tf.reshape(read, [m, t, n, s])
    return tf.transpose(tf.reduce_sum(terms, axis=[1, 3]))


def paired_products(
    ids: tf.Tensor, grads: tf.Tensor, inputs: tf.Tensor, outputs: tf.Tensor
) -> tf.Tensor:
    """`crossed_products` of each example with itself, `[n]`."""
    products = tf.matmul(outputs, grads, transpose_b=True)  # [n, t, s]
    read = tf.gather(inputs, ids, axis=2, batch_dims=1)
    return tf.reduce_sum(products * read, axis=[1, 2])


def _products_query_by_query(ids, grads, other_ids, other) -> tf.Tensor:
    """`shared_products` for static shapes, one column at a time."""

    def column(query: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        query_ids, query_grads = query  # [t], [t, o]
        products = tf.einsum("nso,to->nst", grads, query_grads)
        is_equal = ids[:, :, tf.newaxis] == query_ids
        return tf.reduce_sum(
            tf.where(is_equal, products, tf.zeros_like(products)), axis=[1, 2]
        )

    columns = tf.map_fn(
        column,
        (other_ids, other),
        fn_output_signature=tf.TensorSpec([None], grads.dtype),
    )
    return tf.transpose(columns)


def _frequent_tokens(ids: tf.Tensor) -> tf.Tensor:
    """Sorted ids `[f]` of tokens that many of the examples `[m, t]` have."""
    tokens, _, counts = tf.unique_with_counts(tf.reshape(ids, [-1]))
    examples = tf.cast(tf.shape(ids)[0], tf.float32)
    often = tf.cast(counts, tf.float32) > _FREQUENT_SHARE * examples
    tokens = tf.boolean_mask(tokens, often)
    counts = tf.boolean_mask(counts, often)
    most = tf.minimum(tf.size(tokens), _MOST_FREQUENT)
    top = tf.math.top_k(counts, most).indices
    return tf.sort(tf.gather(tokens, top))


def _slots(ids: tf.Tensor, frequent: tf.Tensor) -> tf.Tensor:
    """Index of each id among the sorted frequent ids; -1 if not frequent."""
    flat = tf.reshape(ids, [-1])
    index = tf.searchsorted(frequent, flat)
    is_frequent = tf.searchsorted(frequent, flat, side="right") > index
    return tf.where(is_frequent, index, -1)


def _sum_by_token(
    ids: tf.Tensor, grads: tf.Tensor, frequent: tf.Tensor
) -> tf.Tensor:
    """Each example's gradients summed for each frequent token, `[n, f·o]`."""
    examples, width = tf.shape(grads)[0], grads.shape[-1]
    tokens = tf.size(frequent)
    slots = _slots(ids, frequent)
    rows = tf.repeat(tf.range(examples), tf.shape(ids)[1])
    # Negative segments are dropped: the tokens that are not frequent.
    segments = tf.where(slots < 0, -1, rows * tokens + slots)
    sums = tf.math.unsorted_segment_sum(
        tf.reshape(grads, [-1, width]), segments, examples * tokens
    )
    return tf.reshape(sums, [examples, tokens * width])


def _products_of_rare_tokens(
    ids, grads, other_ids, other, frequent
) -> tf.Tensor:
    """Products over shared tokens that are not in `frequent`."""
    n, m = tf.shape(ids)[0], tf.shape(other_ids)[0]
    width = grads.shape[-1]
    flat, flat_other = tf.reshape(ids, [-1]), tf.reshape(other_ids, [-1])
    order = tf.argsort(flat_other, stable=True)
    sorted_other = tf.gather(flat_other, order)
    first = tf.searchsorted(sorted_other, flat)
    count = tf.searchsorted(sorted_other, flat, side="right") - first
    count = tf.where(_slots(ids, frequent) < 0, count, 0)

    # Position `left[k]` of one side has the id of position `right[k]`.
    left = tf.repeat(tf.range(tf.size(flat)), count)
    before = tf.cumsum(count, exclusive=True)
    rank = tf.range(tf.size(left)) - tf.gather(before, left)
    right = tf.gather(order, tf.gather(first, left) + rank)

    products = tf.reduce_sum(
        tf.gather(tf.reshape(grads, [-1, width]), left)
        * tf.gather(tf.reshape(other, [-1, width]), right),
        axis=1,
    )
    cells = left // tf.shape(ids)[1] * m + right // tf.shape(other_ids)[1]
    sums = tf.math.unsorted_segment_sum(products, cells, n * m)
    return tf.reshape(sums, [n, m])
