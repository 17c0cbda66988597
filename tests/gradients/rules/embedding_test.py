"""The rule of Embedding."""

import pytest
from keras import layers

from tests.gradients.oracle import Case, check, functional, sequential


def embedding(shape, tokens, width=3, **kwargs):
    return lambda: sequential(
        shape, layers.Embedding(tokens, width, **kwargs), dtype="int32"
    )


def classifier(**kwargs):
    def build():
        return sequential(
            (6,),
            layers.Embedding(9, 4, **kwargs),
            layers.GlobalAveragePooling1D(),
            layers.Dense(2),
            dtype="int32",
        )

    return build


def used_twice():
    shared = layers.Embedding(8, 3)

    def call(ids):
        first = layers.GlobalAveragePooling1D()(shared(ids))
        return first * layers.Flatten()(shared(ids[:, :1]))

    return functional((5,), call, dtype="int32")


def tied_output():
    shared = layers.ReversibleEmbedding(8, 3)

    def call(ids):
        hidden = layers.Dense(3, activation="tanh")(shared(ids))
        return shared(hidden, reverse=True)

    return functional((4,), call, dtype="int32")


CASES = {
    "one id": Case(embedding((), 5), tokens=5),
    "a few ids": Case(embedding((4,), 7), tokens=7),
    "grid of ids": Case(embedding((2, 3), 7), tokens=7),
    "ids that come as real numbers": Case(
        lambda: sequential((4,), layers.Embedding(7, 3)), tokens=7
    ),
    "repeated tokens": Case(embedding((12,), 3), tokens=3),
    "one token only": Case(embedding((4,), 1), tokens=1),
    "frequent and rare tokens": Case(
        embedding((20,), 150, width=2),
        tokens=150,
        num_train=40,
        num_queries=20,
    ),
    "only rare tokens": Case(
        embedding((3,), 4000, width=2),
        tokens=4000,
        num_train=6,
        num_queries=25,
    ),
    "more frequent tokens than the matrix product takes": Case(
        embedding((900,), 600, width=1),
        tokens=600,
        num_train=4,
        num_queries=3,
    ),
    "classifier": Case(classifier(), tokens=9),
    "classifier, masked": Case(classifier(mask_zero=True), tokens=9),
    "classifier, regularized": Case(
        classifier(embeddings_regularizer="l2"), tokens=9
    ),
    "called twice": Case(used_twice, tokens=8),
    "tied output projection": Case(tied_output, tokens=8),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_factors_match_the_jacobian(case):
    check(case)
