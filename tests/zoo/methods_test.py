"""Every method on models as people have them: one table."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_tracin as kt

COUNT, LENGTH, WORDS = 12, 4, 7
RNG = np.random.default_rng(0)
IDS = RNG.integers(1, WORDS, size=(COUNT, LENGTH)).astype("int32")
Y = RNG.integers(3, size=COUNT)

pytestmark = pytest.mark.filterwarnings("ignore:The model has not converged")


class Scale(keras.Layer):
    """A user's layer, for which there is no rule."""

    def build(self, shape):
        self.factor = self.add_weight(shape=shape[-1:], initializer="ones")

    def call(self, inputs):
        return inputs * self.factor


class Positions(keras.Layer):
    """Adds a vector for each position, as keras.io's transformer does."""

    def __init__(self):
        super().__init__()
        self.tokens = layers.Embedding(WORDS, 4)
        self.positions = layers.Embedding(LENGTH, 4)

    def call(self, inputs):
        return self.tokens(inputs) + self.positions(ops.arange(LENGTH))


def classifier(*hidden):
    model = keras.Sequential(
        [
            keras.Input((LENGTH,), dtype="int32"),
            *hidden,
            layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    return model


def transformer():
    inputs = keras.Input((LENGTH,), dtype="int32")
    hidden = Positions()(inputs)
    hidden = hidden + layers.MultiHeadAttention(1, 2)(hidden, hidden)
    hidden = layers.PReLU(shared_axes=[1])(Scale()(hidden))
    logits = layers.Dense(3)(layers.GlobalAveragePooling1D()(hidden))
    model = keras.Model(inputs, logits)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    return model


KINDS = {
    "attention, positions and layers without a rule": transformer,
    "a recurrence over a mask": lambda: classifier(
        layers.Embedding(WORDS, 3, mask_zero=True),
        layers.Bidirectional(layers.GRU(2)),
    ),
}
METHODS = {
    "TracIn, optimizer-aware": lambda model, run: kt.TracIn(
        model, (IDS, Y), run, optimizer_aware=True
    ),
    "InfluenceFunctions, EK-FAC": lambda model, run: kt.InfluenceFunctions(
        model, (IDS, Y), damping=0.1, curvature="ekfac"
    ),
    "InfluenceFunctions, CG": lambda model, run: kt.InfluenceFunctions(
        model, (IDS, Y), damping=0.1, curvature="gauss_newton"
    ),
    "SOURCE": lambda model, run: kt.SOURCE(model, (IDS, Y), run),
    "TRAK": lambda model, run: kt.TRAK(
        model, (IDS, Y), run, projection=kt.TensorSketch(8)
    ),
    "RepresenterPoints": lambda model, run: kt.RepresenterPoints(
        model, (IDS, Y), l2=0.01, verbose=0
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory):
    keras.utils.set_random_seed(0)
    model, run = KINDS[request.param](), tmp_path_factory.mktemp("run")
    callback = kt.TracInCheckpoint(run)
    model.fit(IDS, Y, batch_size=4, epochs=2, verbose=0, callbacks=[callback])
    return model, run


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_a_method_takes_the_model_and_agrees_with_itself(trained, make):
    method = make(*trained)
    scores = method.influence((IDS, Y), verbose=0).scores
    assert scores.shape == (COUNT, COUNT)
    own = method.self_influence(verbose=0).scores
    size = np.abs(scores).max()
    assert size > 0
    if isinstance(method, kt.RepresenterPoints):
        return  # which measures itself by all of an example's classes
    np.testing.assert_allclose(own, np.diag(scores), atol=1e-4 * size)


def test_ekfac_takes_a_transformer_of_keras_hub():
    hub = pytest.importorskip("keras_hub")
    keras.utils.set_random_seed(0)
    backbone = hub.models.BertBackbone(
        vocabulary_size=WORDS,
        num_layers=1,
        num_heads=1,
        hidden_dim=4,
        intermediate_dim=4,
        max_sequence_length=LENGTH,
        dropout=0.0,
    )
    model = hub.models.BertTextClassifier(backbone, num_classes=3, dropout=0.0)
    x = {
        "token_ids": IDS,
        "segment_ids": np.zeros_like(IDS),
        "padding_mask": np.ones_like(IDS),
    }
    model.fit(x, Y, batch_size=4, verbose=0)

    def scores(**options):
        method = kt.InfluenceFunctions(model, (x, Y), damping=0.1, **options)
        return method.influence((x, Y), verbose=0).scores

    pair = scores(curvature="ekfac"), scores(curvature="gauss_newton")
    assert np.corrcoef(*map(np.ravel, pair))[0, 1] > 0.9
