"""Layers whose kernels have low-rank adapters (LoRA)."""

import pytest
from keras import layers

from keras_tracin.gradients.sites import find_sites
from tests.gradients.oracle import (
    Case,
    check,
    compact_in,
    covered,
    functional,
    sequential,
)
from tests.gradients.rules.adapters import adapt

TOKENS = 7


def adapted(shape, layer, rank=2, dtype=None):
    """A model of one layer with adapters."""

    def build():
        made = layer()
        model = sequential(shape, made, dtype=dtype)
        adapt(made, rank)
        return model

    return Case(build, tokens=TOKENS if dtype else 0)


def einsum(equation, output_shape, **kwargs):
    return lambda: layers.EinsumDense(equation, output_shape, **kwargs)


def adapted_attention():
    attention = layers.MultiHeadAttention(2, 3)
    model = functional((4, 3), lambda x: attention(x, x))
    adapt(attention.query_dense)
    adapt(attention.value_dense)
    adapt(attention._output_dense)
    return model


def used_twice():
    shared = layers.Dense(3, activation="tanh")
    model = functional((3,), lambda x: shared(shared(x)))
    adapt(shared)
    return model


def tied():
    shared = layers.ReversibleEmbedding(TOKENS, 3)
    mix = layers.Dense(3, activation="tanh")

    model = functional(
        (4,), lambda ids: shared(mix(shared(ids)), reverse=True), dtype="int32"
    )
    adapt(shared)
    return model


CASES = {
    "Dense": adapted((5,), lambda: layers.Dense(4)),
    "Dense, sequences": adapted((3, 5), lambda: layers.Dense(4)),
    "Dense, no bias, activation": adapted(
        (5,), lambda: layers.Dense(4, use_bias=False, activation="tanh")
    ),
    "EinsumDense, one output axis": adapted(
        (3, 4), einsum("abc,cd->abd", (None, 5), bias_axes="d")
    ),
    "EinsumDense, two output axes": adapted(
        (3, 4), einsum("abc,cde->abde", (None, 2, 3), bias_axes="de")
    ),
    "EinsumDense, heads first": adapted(
        (3, 4), einsum("abc,dce->abde", (None, 2, 5), bias_axes="de")
    ),
    "EinsumDense, an input between outputs": adapted(
        (3, 4, 2), einsum("abcd,dfec->abfe", (None, 5, 3), bias_axes="fe")
    ),
    "EinsumDense, an input between outputs, which are last": adapted(
        (3, 4, 2), einsum("abcd,dfce->abfe", (None, 5, 3), bias_axes="fe")
    ),
    "EinsumDense, two input axes": adapted(
        (3, 2, 4), einsum("abcd,cde->abe", (None, 5), bias_axes="e")
    ),
    "EinsumDense, nothing but inputs": adapted(
        (3, 4), einsum("abc,bc->a", ()), rank=1
    ),
    "EinsumDense, an axis on all sides": adapted(
        (3, 4), einsum("abc,bcd->abd", (3, 2))
    ),
    "Conv1D": adapted((6, 2), lambda: layers.Conv1D(4, 3)),
    "Conv2D": adapted((5, 5, 3), lambda: layers.Conv2D(8, 3, padding="same")),
    "Conv2D, groups": adapted((4, 4, 4), lambda: layers.Conv2D(6, 2, groups=2)),
    "Embedding": adapted(
        (4,), lambda: layers.Embedding(TOKENS, 3), dtype="int32"
    ),
    "attention": Case(adapted_attention),
    "called twice": Case(used_twice),
    "tied embedding": Case(tied, tokens=TOKENS),
}
CASES = compact_in(
    CASES,
    "Dense, sequences",
    "EinsumDense, an axis on all sides",
    "Conv2D",
    "Embedding",
    "attention",
    "called twice",
    "tied embedding",
)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_factors_match_the_jacobian(case):
    check(case)


def test_adapters_are_covered_instead_of_the_kernel():
    model = CASES["Dense"].build()
    (site,) = find_sites(model)
    names = {variable.name for variable in site.variables}
    assert names == {"lora_kernel_a", "lora_kernel_b", "bias"}
    assert site.rule is not None
    assert len(covered(model, None)) == 3
