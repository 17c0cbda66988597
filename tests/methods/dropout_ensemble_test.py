"""Ensembles over fixed masks of Dropout, against networks written by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_tracin as kt
from keras_tracin.models.subnetworks import FixedDropout, subnetwork
from tests.error_rows import row
from tests.gradients.oracle import precision, sequential

RATE, STEP = 0.5, 0.1
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(20, 4)), RNG.integers(3, size=20)
TRAIN, TEST = (X, Y), (X[:5] + 0.1, Y[:5])
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    with precision("float64"):
        yield


def build(dropout=None):
    keras.utils.set_random_seed(0)
    model = sequential(
        (4,),
        layers.Dense(6, "tanh", name="first"),
        dropout or layers.Dropout(RATE, name="dropout"),
        layers.Dense(3, name="last"),
    )
    model.compile(keras.optimizers.SGD(STEP), LOSS)
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    model = build()
    callbacks = [kt.TracInCheckpoint(directory)]
    model.fit(*TRAIN, epochs=2, batch_size=20, callbacks=callbacks, verbose=0)
    return model, kt.TrainingRun(directory)


def gradients(weights, mask, data):
    """`[n, p]` of a network with its mask written out."""
    values = [tf.Variable(weight) for weight in weights]
    with tf.GradientTape() as tape:
        first, bias, last, offset = values
        hidden = tf.tanh(data[0] @ first + bias) * mask
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            data[1], hidden @ last + offset
        )
    parts = tape.jacobian(losses, values)
    return np.concatenate([np.reshape(p, (len(p), -1)) for p in parts], axis=1)


def test_scores_are_the_mean_over_networks_with_a_mask(trained):
    model, run = trained
    before = model.get_weights()
    ensemble = kt.DropoutEnsemble(
        lambda network, number: kt.TracIn(network, TRAIN, run[-1:]),
        model,
        num_masks=3,
    )
    scores = ensemble.influence(TEST, verbose=0)
    masks = [m.model.get_layer("dropout").values for m in ensemble.attributors]
    assert {*np.ravel(masks)} == {0, 1 / (1 - RATE)}
    assert len({tuple(mask) for mask in masks}) == 3
    expected = 0.0
    for mask in masks:
        test, train = (gradients(before, mask, d) for d in (TEST, TRAIN))
        expected += run[-1].learning_rate_sum * test @ train.T / 3
    np.testing.assert_allclose(scores.scores, expected, rtol=1e-6)
    own = ensemble.self_influence(verbose=0).scores
    few = ensemble.influence(TRAIN, verbose=0).scores
    np.testing.assert_allclose(own, np.diag(few))
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert type(model.get_layer("dropout")) is layers.Dropout


def test_every_method_takes_a_sub_network(trained):
    model, run = trained
    members = {
        "TRAK": lambda network, number: kt.TRAK(
            network, TRAIN, run, projection=kt.TensorSketch(64, seed=number)
        ),
        "EK-FAC": lambda network, number: kt.InfluenceFunctions(
            network, TRAIN, run=run
        ),
    }
    for member in members.values():
        ensemble = kt.DropoutEnsemble(member, model, num_masks=2)
        each = [
            own.influence(TEST, verbose=0).scores
            for own in ensemble.attributors
        ]
        assert not np.allclose(*each)
        scores = ensemble.influence(TEST, verbose=0).scores
        np.testing.assert_allclose(scores, np.mean(each, axis=0), rtol=1e-6)


def test_the_seed_and_the_number_decide_the_mask(trained, tmp_path):
    model, run = trained

    def ensemble(**options):
        return kt.DropoutEnsemble(
            lambda network, number: kt.TracIn(network, TRAIN, run),
            model,
            **options,
        )

    few, again = ensemble(num_masks=1), ensemble(num_masks=2)
    scores = few.influence(TEST, directory=tmp_path, verbose=0)
    first = again.attributors[0].influence(TEST, verbose=0)
    np.testing.assert_array_equal(scores.scores, first.scores)
    for other in ({"seed": 1}, {"rate": 0.2}):
        with pytest.raises(ValueError, match="layers"):
            ensemble(num_masks=1, **other).influence(
                TEST, directory=tmp_path, verbose=0
            )


@pytest.mark.parametrize(
    ("layer", "shape", "mask"),
    [
        (layers.Dropout(RATE), (5, 4), (5, 4)),
        (layers.Dropout(RATE), (None, 4), (1, 4)),
        (layers.Dropout(RATE, noise_shape=(None, 1, None)), (5, 4), (1, 4)),
        (layers.SpatialDropout1D(RATE), (5, 4), (1, 4)),
        (layers.SpatialDropout2D(RATE), (5, 3, 4), (1, 1, 4)),
        (
            layers.SpatialDropout2D(RATE, data_format="channels_first"),
            (4, 5, 3),
            (4, 1, 1),
        ),
    ],
)
def test_what_is_left_out_together_has_one_entry(layer, shape, mask):
    inputs = keras.Input(shape)
    inside = keras.Sequential([inputs, layer])
    outer = keras.Input(shape)
    network = subnetwork(keras.Model(outer, inside(outer)), number=0, seed=0)
    (fixed,) = (
        own
        for own in network._flatten_layers()
        if isinstance(own, FixedDropout)
    )
    assert fixed.values.shape == mask
    x = RNG.normal(size=(3, *(size or 7 for size in shape)))
    expected = x * np.broadcast_to(fixed.values, x.shape)
    for training in (False, True):
        np.testing.assert_allclose(network(x, training=training), expected)


def test_a_copy_has_the_state_of_layers_that_prepare_inputs():
    normalization = layers.Normalization()
    normalization.adapt(3 * X + 5)  # built by itself, before the model is
    words = layers.TextVectorization(output_sequence_length=2)
    words.adapt(["a b c", "d e"])
    numbers, texts = keras.Input((4,)), keras.Input((), dtype="string")
    first = normalization(numbers)
    second = layers.Flatten()(layers.Embedding(9, 4)(words(texts)))
    hidden = layers.Dropout(RATE)(layers.Concatenate()([first, second]))
    model = keras.Model([numbers, texts], layers.Dense(3)(hidden))
    network = subnetwork(model, number=0, seed=0)
    (fixed,) = (own for own in network.layers if isinstance(own, FixedDropout))
    fixed.is_active = False
    inputs = [tf.constant(X[:2]), tf.constant(["a c", "e x"])]
    np.testing.assert_allclose(network(inputs), model(inputs))


def test_a_copy_has_the_same_frozen_variables_and_precision():
    model = build(layers.Dropout(RATE, dtype="mixed_float16"))
    model.get_layer("first").kernel.trainable = False
    model.get_layer("last").trainable = False
    network = subnetwork(model, number=0, seed=0)
    names = [[v.path for v in m.trainable_variables] for m in (network, model)]
    assert names[0] == names[1] == [model.get_layer("first").bias.path]
    assert network.layers[1].output.dtype == "float16"


def test_one_mask_does_not_fit_inputs_of_two_shapes():
    dropout, inputs = layers.Dropout(RATE), keras.Input((4,))
    hidden = layers.Dense(6)(dropout(layers.Dense(1)(inputs)))
    model = keras.Model(inputs, layers.Dense(3)(dropout(hidden)))
    with pytest.raises(ValueError, match=row("dropout-shapes")):
        subnetwork(model, number=0, seed=0)


def test_a_member_of_the_whole_model_is_refused(trained):
    model, run = trained
    with pytest.raises(ValueError, match=row("dropout-whole")):
        kt.DropoutEnsemble(lambda *_: kt.TracIn(model, TRAIN, run), model)


class Scaled(layers.Layer):
    """A layer whose `get_config` leaves out an option."""

    factor = 1.0

    def call(self, inputs):
        return self.factor * inputs


class OwnModel(keras.Model):
    def call(self, inputs):
        return inputs


def test_models_without_masks_or_copies_are_refused():
    def refused(model, message, **options):
        with pytest.raises(ValueError, match=message):
            kt.DropoutEnsemble(lambda *_: None, model, **options)

    refused(build(layers.Dropout(0.0)), row("dropout-none"))
    refused(build(layers.GaussianDropout(0.5)), row("dropout-none"))
    refused(OwnModel(), row("dropout-functional", "OwnModel"))
    scaled = Scaled()
    scaled.factor = 2.0
    copied = sequential((4,), layers.Dropout(RATE), scaled)
    refused(copied, row("dropout-copy"))
    for rate in (0, 1, -0.5):
        refused(build(), row("dropout-rate", str(rate)), rate=rate)
    for number in (0, 1.5):
        message = row("dropout-masks", str(number))
        refused(build(), message, num_masks=number)
