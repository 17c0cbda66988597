"""The rule of EinsumDense, and attention, which is made of it."""

import keras
import pytest
from keras import layers

from tests.gradients.oracle import (
    Case,
    check,
    compact_in,
    functional,
    sequential,
)


def einsum(shape, equation, output_shape, bias_axes=None, **kwargs):
    def build():
        layer = layers.EinsumDense(
            equation, output_shape, bias_axes=bias_axes, **kwargs
        )
        return sequential(shape, layer)

    return build


def causal_attention():
    attention = layers.MultiHeadAttention(num_heads=2, key_dim=3)
    return functional((4, 5), lambda x: attention(x, x, use_causal_mask=True))


def padded_attention():
    def call(ids):
        x = layers.Embedding(7, 4, mask_zero=True)(ids)
        return layers.MultiHeadAttention(num_heads=2, key_dim=3)(x, x)

    return functional((5,), call, dtype="int32")


def given_mask():
    x, mask = keras.Input((4, 5)), keras.Input((4, 4))
    attention = layers.MultiHeadAttention(num_heads=2, key_dim=2)
    y = attention(x, x, attention_mask=layers.ReLU()(mask))
    return keras.Model([x, mask], y)


def cross_attention():
    queries, values = keras.Input((3, 4)), keras.Input((5, 2))
    attention = layers.MultiHeadAttention(
        num_heads=2, key_dim=3, value_dim=2, output_shape=6, use_bias=False
    )
    return keras.Model([queries, values], attention(queries, values))


def grouped_queries(**kwargs):
    def build():
        attention = layers.GroupQueryAttention(
            head_dim=2, num_query_heads=4, num_key_value_heads=2
        )
        return functional((4, 5), lambda x: attention(x, x, **kwargs))

    return build


def grouped_queries_on_padded_ids():
    def call(ids):
        x = layers.Embedding(7, 4, mask_zero=True)(ids)
        return layers.GroupQueryAttention(2, 4, 2)(x, x)

    return functional((5,), call, dtype="int32")


def grouped_queries_across():
    queries, values = keras.Input((3, 4)), keras.Input((5, 4))
    keys, mask = keras.Input((5, 4)), keras.Input((3, 5))
    attention = layers.GroupQueryAttention(3, 4, 1, use_bias=False)
    y = attention(queries, values, keys, attention_mask=layers.ReLU()(mask))
    return keras.Model([queries, values, keys, mask], y)


def transformer_block():
    def call(x):
        x = x + layers.MultiHeadAttention(num_heads=2, key_dim=2)(x, x)
        x = layers.LayerNormalization()(x)
        x = x + layers.Dense(4)(layers.Dense(6, activation="gelu")(x))
        x = layers.LayerNormalization()(x)
        return layers.Dense(2)(layers.GlobalAveragePooling1D()(x))

    return functional((5, 4), call)


CASES = {
    "vectors": Case(einsum((4,), "ab,bc->ac", (3,), "c")),
    "one unit": Case(einsum((4,), "ab,bc->ac", (1,), "c")),
    "into heads": Case(einsum((4, 3), "abc,cde->abde", (None, 2, 3), "de")),
    "out of heads": Case(einsum((4, 2, 3), "abcd,cde->abe", (None, 5), "e")),
    "into a single head": Case(
        einsum((4, 3), "abc,cde->abde", (None, 1, 3), "de")
    ),
    "no bias": Case(einsum((4, 3), "abc,cde->abde", (None, 2, 3))),
    "bias along some outputs": Case(
        einsum((4, 3), "abc,cde->abde", (None, 2, 3), "e")
    ),
    "bias along other outputs": Case(
        einsum((4, 3), "abc,cde->abde", (None, 2, 3), "d")
    ),
    "bias along a position": Case(einsum((4, 3), "abc,cd->abd", (4, 2), "bd")),
    "kernel read backwards": Case(
        einsum((4, 3), "abc,dc->abd", (None, 5), "d")
    ),
    "into heads, which the kernel has first": Case(
        einsum((4, 3), "abc,dce->abde", (None, 2, 5), "de")
    ),
    "an input between outputs, read last": Case(
        einsum((4, 2, 3), "abcd,ecfd->abfe", (None, 4, 5), "fe")
    ),
    "a bias in another order than the kernel": Case(
        einsum((4, 3), "abc,cde->abed", (None, 2, 5), "ed")
    ),
    "outputs before positions": Case(
        einsum((4, 3), "abc,cd->adb", (5, 4), "d")
    ),
    "ellipsis, one axis": Case(einsum((4,), "...x,xy->...y", 3, "y")),
    "ellipsis, two axes": Case(einsum((2, 4), "...x,xy->...y", 3, "y")),
    "a group to each position": Case(
        einsum((4, 3), "abc,bcd->abd", (4, 2), "d")
    ),
    "a group, without bias": Case(einsum((4, 3), "abc,bcd->abd", (4, 2))),
    "an input axis summed away": Case(einsum((4, 3), "abc,cd->ad", (2,), "d")),
    "activation": Case(
        einsum((4, 3), "abc,cd->abd", (None, 5), "d", activation="tanh")
    ),
    "self-attention, causal": Case(causal_attention),
    "self-attention on padded ids": Case(padded_attention, tokens=7),
    "self-attention under a given mask": Case(given_mask),
    "cross-attention": Case(cross_attention),
    "grouped-query attention": Case(grouped_queries()),
    "grouped-query attention, causal": Case(
        grouped_queries(use_causal_mask=True)
    ),
    "grouped-query attention on padded ids": Case(
        grouped_queries_on_padded_ids, tokens=7
    ),
    "grouped-query attention across, under a mask": Case(
        grouped_queries_across
    ),
    "transformer block": Case(transformer_block),
}
CASES = compact_in(
    CASES,
    "vectors",
    "into heads",
    "into heads, which the kernel has first",
    "bias along a position",
    "a group to each position",
    "an input axis summed away",
    "self-attention on padded ids",
    "transformer block",
)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_factors_match_the_jacobian(case):
    check(case)
