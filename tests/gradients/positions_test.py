"""Products by position, against the same products of one position alone."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.factors import (
    DenseGradients,
    LookupFactors,
    OuterFactors,
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
    return OuterFactors(
        factors.inputs[:, one], factors.grads[:, one], factors.bias
    )


@pytest.mark.parametrize("form", ["as it is", "materialized"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_share_is_the_product_of_its_position_alone(kind, form):
    rng = np.random.default_rng(0)
    left, right = KINDS[kind](rng, 2), KINDS[kind](rng, 5)
    full = algebra.materialize(right)
    shares = algebra.inner_by_position(
        left, right if form == "as it is" else full
    )
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
    apart = algebra.inner_by_position(left, right).numpy()
    pairs = algebra.inner_by_position(dataclasses.replace(left, runs=2), right)
    expected = apart.reshape(2, 5, TOKENS // 2, 2).sum(axis=3)
    np.testing.assert_allclose(pairs, expected)


def test_gradients_that_are_sums_over_positions_have_no_shares():
    gradients = DenseGradients((tf.ones([2, 3]),))
    assert algebra.inner_by_position(gradients, gradients) is None


def test_a_table_used_at_sequences_of_two_lengths_has_no_shares():
    rng = np.random.default_rng(0)
    table = KINDS["tied table"](rng, 2)
    shorter = TableFactors(only(table.looked_up, 0), table.outer)
    assert algebra.inner_by_position(shorter, table) is None
