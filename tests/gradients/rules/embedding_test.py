"""The rule of Embedding."""

import keras
import pytest
from keras import layers

from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.gradients.factors import TableFactors
from keras_tracin.gradients.graphs import all_operations
from keras_tracin.gradients.rules import rule_for
from tests.gradients.oracle import (
    Case,
    check,
    compact_in,
    examples,
    functional,
    sequential,
    uneven_loss,
)


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


class Tied(layers.Embedding):
    """A stranger's embedding that projects back by its table transposed."""

    def compute_output_spec(self, inputs, reverse=False):
        if not reverse:
            return super().compute_output_spec(inputs)
        shape = (*inputs.shape[:-1], self.input_dim)
        return keras.KerasTensor(shape, self.compute_dtype)

    def call(self, inputs, reverse=False):
        if reverse:
            table = keras.ops.transpose(self.embeddings)
            return keras.ops.matmul(inputs, table)
        return super().call(inputs)


class Halved(Tied):
    """One that does so with a factor."""

    def call(self, inputs, reverse=False):
        return super().call(inputs, reverse) * (0.5 if reverse else 1.0)


def language_model(layer_class, length=4, tokens=8, width=3, **kwargs):
    def build():
        shared = layer_class(tokens, width, **kwargs)

        def call(ids):
            hidden = layers.Dense(width, activation="tanh")(shared(ids))
            return shared(hidden, reverse=True)

        return functional((length,), call, dtype="int32")

    return build


def next_token(length=3, tokens=40, width=12):
    """Predicts one token, so that pairs of positions are cheaper."""

    def build():
        shared = REVERSIBLE(tokens, width)

        def call(ids):
            hidden = layers.GlobalAveragePooling1D()(shared(ids))
            return shared(hidden, reverse=True)

        return functional((length,), call, dtype="int32")

    return build


def looked_up_and_projected_twice():
    shared = REVERSIBLE(30, 9)

    def call(ids):
        hidden = shared(ids) * shared(ids[:, ::-1])
        hidden = layers.GlobalAveragePooling1D()(hidden)
        logits = shared(hidden, reverse=True)
        return logits + shared(keras.ops.tanh(hidden), reverse=True)

    return functional((3,), call, dtype="int32")


REVERSIBLE = layers.ReversibleEmbedding
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
    "tied": Case(language_model(REVERSIBLE), tokens=8),
    "tied, masked": Case(language_model(REVERSIBLE, mask_zero=True), tokens=8),
    "tied, soft cap": Case(
        language_model(REVERSIBLE, logit_soft_cap=1.5), tokens=8
    ),
    "tied, one token to predict": Case(next_token(), tokens=40),
    "tied, several uses": Case(looked_up_and_projected_twice, tokens=30),
    "tied, a stranger's": Case(language_model(Tied), tokens=8),
    "tied, a stranger's with a factor": Case(language_model(Halved), tokens=8),
    "untied": Case(language_model(REVERSIBLE, tie_weights=False), tokens=8),
}
CASES = compact_in(
    CASES,
    "one id",
    "repeated tokens",
    "frequent and rare tokens",
    "only rare tokens",
    "more frequent tokens than the matrix product takes",
    "classifier, masked",
    "called twice",
    "tied",
    "tied, one token to predict",
    "tied, several uses",
)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_factors_match_the_jacobian(case):
    check(case)


@pytest.mark.parametrize(
    ("layer_class", "fits"), [(REVERSIBLE, True), (Tied, True), (Halved, False)]
)
def test_a_stranger_is_known_by_what_it_computes(layer_class, fits):
    layer = layer_class(6, 2)
    layer.build((None,))
    table = layer.get_weights()
    assert (rule_for(layer) is not None) == fits
    assert (layer.get_weights()[0] == table[0]).all()


def test_a_layer_that_cannot_be_tried_out_has_no_rule():
    class Secretive(Tied):
        def get_config(self):
            raise NotImplementedError

    layer = Secretive(6, 2)
    layer.build((None,))
    assert rule_for(layer) is None


def test_no_table_is_made_for_each_example_where_that_costs_more():
    case = Case(next_token(tokens=500, width=16), tokens=500)
    model = case.build()
    data = examples(case, model, 4, seed=0)
    functions = GradientFunctions(model, uneven_loss, like=data)
    (table,) = functions.captured(data).factors
    assert isinstance(table, TableFactors)
    one_table = 500 * 16
    steps = functions.products, functions.squared_norms, functions.contractions
    sizes = [
        tensor.shape[1:].num_elements() or 0
        for step in steps
        for operation in all_operations(step.get_concrete_function().graph)
        for tensor in operation.outputs
        if tensor.shape.rank and tensor.shape[0] is None
    ]
    assert 0 < max(sizes) < one_table
