"""Inner products of embedding gradients over the tokens two examples share.

The gradient of an embedding table is zero outside the rows an example looked
up, so the product of two examples' gradients is a sum over equal ids only:

    S[i, j] = Σ_{s,t : ids[i,s] = ids'[j,t]}  g[i,s] · g'[j,t]

Word frequencies are far from even. A few tokens stand in nearly every text:
for these, each example's gradients are summed by token and one matrix product
does the rest. All other tokens meet rarely: for these, the meeting pairs are
listed and multiplied one by one. Nothing of size vocabulary × width is made.

XLA cannot list what has no size in advance: there all positions of a query are
multiplied with all of the batch, and those that do not meet count as zero.
"""

from __future__ import annotations

import tensorflow as tf

from keras_tracin.gradients.compiling import shapes_are_static

# A listed pair reads its two rows from memory; in a matrix product the same
# multiplications take about an eightieth of that time on a CPU. So a token is
# worth a column of the matrix product if one query in nine has it (in texts
# alike on both sides, one pair of examples in 81 then meets in it).
_FREQUENT_SHARE = 1 / 9
_MOST_FREQUENT = 256  # bounds the [n, tokens, width] array made for a batch


def shared_products(
    ids: tf.Tensor, grads: tf.Tensor, other_ids: tf.Tensor, other: tf.Tensor
) -> tf.Tensor:
    """Inner products of `n` with `m` examples' embedding gradients.

    Args:
        ids: `[n, s]` token ids.
        grads: `[n, s, o]` output gradients.
        other_ids: `[m, t]`.
        other: `[m, t, o]`.

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
    return by_token + _meeting_pairs(ids, grads, other_ids, other, frequent)


def crossed_products(
    ids: tf.Tensor, grads: tf.Tensor, inputs: tf.Tensor, outputs: tf.Tensor
) -> tf.Tensor:
    """Inner products of looked-up with outer-product gradients of a table.

    A row looked up meets the outer product in that row alone:
    `(e_id gᵀ) · (x δᵀ) = x[id] (g · δ)`. Of each `x`, as long as the
    vocabulary, only the ids of the other side are read.

    Args:
        ids: `[n, s]` token ids.
        grads: `[n, s, o]` output gradients.
        inputs: `x [m, t, vocabulary]`.
        outputs: `δ [m, t, o]`.

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
    """`crossed_products` of each example with itself alone, `[n]`."""
    products = tf.matmul(outputs, grads, transpose_b=True)  # [n, t, s]
    read = tf.gather(inputs, ids, axis=2, batch_dims=1)
    return tf.reduce_sum(products * read, axis=[1, 2])


def _products_query_by_query(ids, grads, other_ids, other) -> tf.Tensor:
    """`shared_products` of shapes that are known, one column at a time."""

    def column(query: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        query_ids, query_grads = query  # [t], [t, o]
        products = tf.einsum("nso,to->nst", grads, query_grads)
        meet = ids[:, :, tf.newaxis] == query_ids
        return tf.reduce_sum(
            tf.where(meet, products, tf.zeros_like(products)), axis=[1, 2]
        )

    columns = tf.map_fn(
        column,
        (other_ids, other),
        fn_output_signature=tf.TensorSpec([None], grads.dtype),
    )
    return tf.transpose(columns)


def _frequent_tokens(ids: tf.Tensor) -> tf.Tensor:
    """Sorted ids `[f]` of the tokens that many of `[m, t]` examples have."""
    tokens, _, counts = tf.unique_with_counts(tf.reshape(ids, [-1]))
    examples = tf.cast(tf.shape(ids)[0], tf.float32)
    often = tf.cast(counts, tf.float32) > _FREQUENT_SHARE * examples
    tokens = tf.boolean_mask(tokens, often)
    counts = tf.boolean_mask(counts, often)
    most = tf.minimum(tf.size(tokens), _MOST_FREQUENT)
    top = tf.math.top_k(counts, most).indices
    return tf.sort(tf.gather(tokens, top))


def _slots(ids: tf.Tensor, frequent: tf.Tensor) -> tf.Tensor:
    """Where each id stands among the sorted frequent ones; -1 if it is not."""
    flat = tf.reshape(ids, [-1])
    at = tf.searchsorted(frequent, flat)
    found = tf.searchsorted(frequent, flat, side="right") > at
    return tf.where(found, at, -1)


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


def _meeting_pairs(ids, grads, other_ids, other, frequent) -> tf.Tensor:
    """The part of the products that tokens outside `frequent` bring."""
    n, m = tf.shape(ids)[0], tf.shape(other_ids)[0]
    width = grads.shape[-1]
    flat, flat_other = tf.reshape(ids, [-1]), tf.reshape(other_ids, [-1])
    order = tf.argsort(flat_other, stable=True)
    sorted_other = tf.gather(flat_other, order)
    first = tf.searchsorted(sorted_other, flat)
    count = tf.searchsorted(sorted_other, flat, side="right") - first
    count = tf.where(_slots(ids, frequent) < 0, count, 0)

    # Position `left[k]` of one side meets position `right[k]` of the other.
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
