"""Products by position, against the same products of one position alone."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.factors import (
    DenseGradients,
    KernelAxes,
    LookupFactors,
    OuterFactors,
    PositionGradients,
    TableFactors,
)

VOCABULARY, WIDTH, TOKENS = 6, 3, 4


def normal(rng, *shape):
    return tf.constant(rng.normal(size=shape))


def outer(rng, count, bias):
    return OuterFactors(
        normal(rng, count, TOKENS, VOCABULARY),
        normal(rng, count, TOKENS, WIDTH),
        bias,
    )


def lookups(rng, count):
    ids = tf.constant(rng.integers(VOCABULARY, size=(count, TOKENS)), tf.int32)
    return LookupFactors(ids, normal(rng, count, TOKENS, WIDTH), VOCABULARY)


KINDS = {
    "kernel": lambda rng, count: outer(rng, count, False),
    "kernel and bias": lambda rng, count: outer(rng, count, True),
    "heads first": lambda rng, count: dataclasses.replace(
        outer(rng, count, True), axes=KernelAxes((2, 3, WIDTH), (1, 2, 0))
    ),
    "look-ups": lookups,
    "tied table": lambda rng, count: TableFactors(
        lookups(rng, count), outer(rng, count, False)
    ),
}


def only(factors, position):
    """Factors of one position alone."""
    if isinstance(factors, TableFactors):
        return TableFactors(
            only(factors.looked_up, position), only(factors.outer, position)
        )
    one = slice(position, position + 1)
    if isinstance(factors, LookupFactors):
        return LookupFactors(
            factors.ids[:, one], factors.grads[:, one], factors.vocabulary
        )
    return dataclasses.replace(
        factors, inputs=factors.inputs[:, one], grads=factors.grads[:, one]
    )


def the_one_call(shares):
    (only_call,) = shares
    return only_call


@pytest.mark.parametrize("form", ["as it is", "materialized"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_share_is_the_product_of_its_position_alone(kind, form):
    rng = np.random.default_rng(0)
    left, right = KINDS[kind](rng, 2), KINDS[kind](rng, 5)
    full = algebra.materialize(right)
    calls = algebra.inner_by_position(
        left, right if form == "as it is" else full
    )
    # The look-ups of a table are a call, and so is its product.
    assert len(calls) == (2 if kind == "tied table" else 1)
    shares = sum(calls)
    assert shares.shape == (2, 5, TOKENS)
    for position in range(TOKENS):
        expected = algebra.inner(
            algebra.materialize(only(left, position)), full
        )
        np.testing.assert_allclose(shares[..., position], expected)


@pytest.mark.parametrize("form", ["as it is", "materialized"])
def test_entries_of_one_position_count_together(form):
    rng = np.random.default_rng(0)
    left, right = outer(rng, 2, False), outer(rng, 5, False)
    if form == "materialized":
        right = algebra.materialize(right)
    apart = the_one_call(algebra.inner_by_position(left, right)).numpy()
    pairs = algebra.inner_by_position(dataclasses.replace(left, runs=2), right)
    expected = apart.reshape(2, 5, TOKENS // 2, 2).sum(axis=3)
    np.testing.assert_allclose(the_one_call(pairs), expected)


@pytest.mark.parametrize("kind", [*KINDS, "terms"])
def test_each_call_of_a_layer_has_its_own_shares(kind):
    rng = np.random.default_rng(0)

    def make(count):
        if kind == "terms":
            return PositionGradients((normal(rng, count, TOKENS, WIDTH),))
        return KINDS[kind](rng, count)

    uses, right = [make(2), make(2), make(2)], algebra.materialize(make(5))
    # A layer that was called twice, and then once more.
    merged = algebra.merge([algebra.merge(uses[:2]), uses[2]])
    if kind == "tied table":  # used both ways already
        assert isinstance(merged, DenseGradients)
        return
    calls = algebra.inner_by_position(merged, right)
    for shares, use in zip(calls, uses, strict=True):
        alone = the_one_call(algebra.inner_by_position(use, right))
        np.testing.assert_allclose(shares, alone)


def test_terms_of_a_sum_have_their_positions():
    rng = np.random.default_rng(0)
    left = PositionGradients(
        (normal(rng, 2, TOKENS, WIDTH), normal(rng, 2, TOKENS, 1))
    )
    right = DenseGradients((normal(rng, 5, WIDTH), normal(rng, 5, 1)))
    shares = the_one_call(algebra.inner_by_position(left, right))
    expected = sum(
        np.einsum("ntp,mp->nmt", own, other)
        for own, other in zip(left.parts, right.parts, strict=True)
    )
    np.testing.assert_allclose(shares, expected)
    total = algebra.inner(algebra.summed(left), right)
    np.testing.assert_allclose(tf.reduce_sum(shares, 2), total)


def test_rows_of_a_table_of_positions_have_theirs():
    rng = np.random.default_rng(0)
    grads = normal(rng, 2, TOKENS, WIDTH)
    left = PositionGradients((grads,), rows=(1, TOKENS + 2))
    table = normal(rng, 5, TOKENS + 2, WIDTH)
    right = DenseGradients((tf.reshape(table, [5, -1]),))
    shares = the_one_call(algebra.inner_by_position(left, right))
    rows = table[:, 1 : TOKENS + 1]
    np.testing.assert_allclose(shares, np.einsum("nto,mto->nmt", grads, rows))
    total = algebra.inner(algebra.summed(left), right)
    np.testing.assert_allclose(tf.reduce_sum(shares, 2), total)


def test_gradients_that_are_sums_over_positions_have_no_shares():
    gradients = DenseGradients((tf.ones([2, 3]),))
    assert algebra.inner_by_position(gradients, gradients) == []


def test_a_table_used_at_sequences_of_two_lengths_has_shares_of_both():
    rng = np.random.default_rng(0)
    table = KINDS["tied table"](rng, 2)
    shorter = TableFactors(only(table.looked_up, 0), table.outer)
    full = algebra.materialize(table)
    by_rows, by_product = algebra.inner_by_position(shorter, full)
    assert (by_rows.shape[2], by_product.shape[2]) == (1, TOKENS)
    total = tf.reduce_sum(by_rows, 2) + tf.reduce_sum(by_product, 2)
    expected = algebra.inner(algebra.materialize(shorter), full)
    np.testing.assert_allclose(total, expected)
