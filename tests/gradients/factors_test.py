"""The algebra on factors, against gradients written out in full."""

import numpy as np
import pytest
import tensorflow as tf

from keras_tracin.gradients.factors import (
    DenseGradients,
    OuterFactors,
    TableFactors,
    compact,
    concat,
    contract,
    inner,
    merge,
    split,
    squared_norm,
    total,
    work,
)
from tests.gradients.in_full import (
    PAIRS,
    VOCABULARY,
    dense,
    looked_up,
    outer,
    rows,
    tied,
)

each_pair = pytest.mark.parametrize(
    ("left", "right"), PAIRS.values(), ids=PAIRS
)


@each_pair
def test_inner_is_the_product_of_the_gradients(left, right):
    np.testing.assert_allclose(inner(left, right), rows(left) @ rows(right).T)


@each_pair
def test_inner_of_compact_forms_is_the_same(left, right):
    np.testing.assert_allclose(
        inner(compact(left), compact(right)), rows(left) @ rows(right).T
    )


@each_pair
def test_contract_with_a_total_is_the_product_with_the_sum(left, right):
    np.testing.assert_allclose(
        contract(left, total(right)), rows(left) @ rows(right).sum(axis=0)
    )


@each_pair
def test_squared_norm_is_the_diagonal_of_inner(left, right):
    for factors in (left, right):
        norms = squared_norm(factors)
        np.testing.assert_allclose(norms, np.diag(inner(factors, factors)))
        np.testing.assert_allclose(norms, np.sum(rows(factors) ** 2, axis=1))


@each_pair
def test_total_is_the_sum_of_the_rows(left, right):
    for factors in (left, right):
        flat = np.concatenate([part.numpy() for part in total(factors)])
        np.testing.assert_allclose(flat, rows(factors).sum(axis=0))


@each_pair
def test_compiled_with_an_open_batch_gives_the_same(left, right):
    def spec(factors):
        return tf.nest.map_structure(
            lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), factors
        )

    @tf.function(autograph=False, input_signature=[spec(left), spec(right)])
    def compiled(a, b):
        return (
            inner(compact(a), compact(b)),
            squared_norm(a),
            contract(a, total(b)),
        )

    products, norms, shares = compiled(left, right)
    np.testing.assert_allclose(products, rows(left) @ rows(right).T)
    np.testing.assert_allclose(norms, np.sum(rows(left) ** 2, axis=1))
    np.testing.assert_allclose(
        shares, rows(left) @ rows(right).sum(axis=0), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("sizes", "kind"),
    [
        ((1, 3, 2), OuterFactors),  # one position always factors
        ((2, 30, 40), OuterFactors),  # 4·70 < 1200
        ((20, 3, 2), DenseGradients),  # 400·5 > 6
    ],
)
def test_compact_takes_the_cheaper_form(sizes, kind):
    factors = outer(4, *sizes, True)
    assert isinstance(compact(factors), kind)


@pytest.mark.parametrize(
    ("sizes", "kind"),
    [
        ((2, 1, 60), TableFactors),  # 66 + 2·2·61 < 6·60
        ((3, 1, 2), DenseGradients),
        ((3, 9, 60), DenseGradients),
    ],
)
def test_compact_takes_the_cheaper_form_of_a_table(sizes, kind):
    assert isinstance(compact(tied(4, *sizes)), kind)


@pytest.mark.parametrize(
    ("factors", "fast", "smallest"),
    [
        (outer(4, 1, 3, 2, True), OuterFactors, OuterFactors),
        # 100·70 multiplications against 1200, but 700 numbers.
        (outer(4, 10, 30, 40, True), DenseGradients, OuterFactors),
        (outer(4, 20, 30, 40, True), DenseGradients, DenseGradients),
        (tied(4, 2, 1, 60), TableFactors, TableFactors),
        # 2·66 + 2·61 numbers against 360.
        (tied(4, 2, 2, 60), DenseGradients, TableFactors),
        (tied(4, 3, 4, 60), DenseGradients, DenseGradients),
    ],
)
def test_the_sparing_form_holds_the_fewest_numbers(factors, fast, smallest):
    for sparing, kind in ((False, fast), (True, smallest)):
        form = compact(factors, sparing)
        assert isinstance(form, kind)
        held = sum(
            leaf.shape[1:].num_elements() * leaf.dtype.size
            for leaf in tf.nest.flatten(form)
        )
        # Ids are counted like other numbers.
        assert held <= work(factors, sparing).nbytes <= 1.2 * held
        np.testing.assert_allclose(
            inner(form, form), rows(factors) @ rows(factors).T
        )
    assert work(factors, True).nbytes <= work(factors, False).nbytes
    assert work(factors, True).pairing >= work(factors, False).pairing


@pytest.mark.parametrize("sizes", [(1, 3, 2), (2, 30, 40), (20, 3, 2)])
def test_compact_is_the_same_form_for_any_number_of_examples(sizes):
    few, many = outer(1, *sizes, True), outer(50, *sizes, True)
    assert type(compact(few)) is type(compact(many))


def test_open_number_of_positions_is_materialized():
    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, 3]),
            tf.TensorSpec([None, None, 30]),
        ]
    )
    def kind(inputs, grads):
        factors = OuterFactors(inputs, grads)
        assert isinstance(compact(factors), DenseGradients)
        return squared_norm(factors)

    x, delta = tf.ones((2, 2, 3)), tf.ones((2, 2, 30))
    np.testing.assert_allclose(kind(x, delta), [360.0, 360.0])


@pytest.mark.parametrize(
    "uses",
    [
        [outer(4, 2, 3, 2, True), outer(4, 3, 3, 2, True, 1)],
        [looked_up(4, 5, 2), looked_up(4, 1, 2, 1), looked_up(4, 2, 2, 2)],
        [dense(4, 5, 2), dense(4, 5, 2, seed=1)],
        [outer(4, 2, 3, 2, False), dense(4, 6)],
        [outer(4, 2, VOCABULARY, 2, False), looked_up(4, 3, 2)],
        [
            looked_up(4, 3, 2),
            outer(4, 2, VOCABULARY, 2, False),
            looked_up(4, 1, 2, 1),
            outer(4, 1, VOCABULARY, 2, False, 1),
        ],
        [
            looked_up(4, 3, 2),
            outer(4, 2, VOCABULARY, 2, False),
            dense(4, 2 * VOCABULARY),
        ],
        [looked_up(4, 3, 2), dense(4, 2 * VOCABULARY)],
        [dense(4, 2 * VOCABULARY), looked_up(4, 3, 2), looked_up(4, 1, 2, 1)],
    ],
    ids=[
        "outer",
        "lookup",
        "dense",
        "outer, dense",
        "outer, lookup",
        "outer and lookup, twice",
        "lookup, outer, dense",
        "lookup, dense",
        "dense, lookup twice",
    ],
)
def test_merge_adds_the_gradients_of_all_uses(uses):
    np.testing.assert_allclose(
        rows(merge(uses)), sum(rows(use) for use in uses)
    )


def test_merge_of_one_use_is_that_use():
    use = outer(4, 2, 3, 2, True)
    assert merge([use]) is use


@pytest.mark.parametrize(
    ("factors", "count"),
    [
        (outer(4, 2, 3, 2, True), 2),
        (outer(4, 2, 3, 2, False), 1),
        (looked_up(4, 5, 2), 1),
        (dense(4, 5, 1, 2), 3),
    ],
    ids=["kernel and bias", "kernel", "lookup", "dense"],
)
def test_split_gives_each_variable_its_own_factors(factors, count):
    parts = split(factors)
    assert len(parts) == count
    together = np.concatenate([rows(part) for part in parts], axis=1)
    np.testing.assert_allclose(together, rows(factors))
    # With the terms of sums they are the same.
    terms = [rows(part) for part in split(factors, terms=True)]
    np.testing.assert_allclose(np.concatenate(terms, axis=1), together)


@pytest.mark.parametrize(
    "blocks",
    [
        [outer(4, 2, 3, 2, True), outer(3, 2, 3, 2, True, 1)],
        [looked_up(4, 5, 2), looked_up(3, 5, 2, 1)],
        [dense(4, 5, 1), dense(3, 5, 1, seed=1), dense(1, 5, 1, seed=2)],
        [dense(4, 5)],
    ],
    ids=["outer", "lookup", "dense", "one block"],
)
def test_concat_stacks_the_examples(blocks):
    expected = np.concatenate([rows(block) for block in blocks])
    np.testing.assert_array_equal(rows(concat(blocks)), expected)


@pytest.mark.parametrize("function", [inner, contract])
def test_other_types_are_refused(function):
    with pytest.raises(TypeError, match="Expected factors"):
        function(3.0, 3.0)


@pytest.mark.parametrize("function", [squared_norm, total])
def test_other_types_are_refused_alone(function):
    with pytest.raises(TypeError, match="Expected factors"):
        function(3.0)
