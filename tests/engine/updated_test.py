"""Scores of runs whose steps updated now these variables and now others.

The oracle takes the gradient of each example by a tape of its own, variable by
variable, and knows from the test at which rate each was updated.
"""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.gradients.factors import DenseGradients
from keras_tracin.runs import TrainingRun, run_weights
from tests.error_rows import row

N, FEATURES, CLASSES = 12, 4, 3
SGD = keras.optimizers.SGD
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
FROZEN, THAWED = 0.3, 0.1  # the rates of the two fits


def make_model():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(5, activation="tanh", name="base"),
            keras.layers.Dense(CLASSES, name="head"),
        ]
    )


def make_data(seed=0, n=N):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, FEATURES)).astype("float32")
    return x, rng.integers(0, CLASSES, n)


def fit(model, directory, rate, epochs=1, **options):
    model.compile(SGD(rate), LOSS, **options)
    model.fit(
        *make_data(),
        batch_size=4,
        epochs=epochs,
        verbose=0,
        callbacks=[kt.TracInCheckpoint(directory)],
    )


def gradients(model, data):
    """Of each example `[n, p]`, for each variable that may be trained."""
    variables = [w.value for w in model.weights]
    rows = []
    for x, y in zip(*data, strict=True):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for variable in variables:
                tape.watch(variable)
            loss = LOSS(y[None], model(x[None], training=False))
        rows.append(
            [tf.reshape(g, [-1]) for g in tape.gradient(loss, variables)]
        )
    return [np.array(g, np.float64) for g in zip(*rows, strict=True)]


def oracle(model, run, rates, test):
    """Scores, and self-influence, from each variable's rates `[k, v]`."""
    scores, own = 0.0, 0.0
    with run_weights(model) as load:
        for checkpoint, of_variables in zip(run, rates, strict=True):
            load(checkpoint)
            pairs = zip(
                of_variables,
                gradients(model, test),
                gradients(model, make_data()),
                strict=True,
            )
            for rate, queries, train in pairs:
                scores = scores + rate * queries @ train.T
                own = own + rate * np.sum(train**2, axis=1)
    return scores, own


def assert_scores(model, run, rates, *, summed=False, **options):
    """Holds scores against the oracle's, and if wanted their sum too."""
    test = make_data(1, 5)
    trainable = [w.trainable for w in model.weights]
    tracin = kt.TracIn(model, make_data(), run, **options)
    scores, own = oracle(model, run, np.asarray(rates, float), test)
    largest = np.abs(scores).max()
    found = tracin.influence(test, verbose=0)
    np.testing.assert_allclose(found.scores, scores, atol=1e-5 * largest)
    found = tracin.self_influence(verbose=0)
    np.testing.assert_allclose(found.scores, own, rtol=1e-4)
    if summed:
        found = tracin.influence(test, aggregate=True, verbose=0)
        np.testing.assert_allclose(
            found.scores[0], scores.sum(0), atol=1e-5 * largest
        )
        tracin.plan(test)
    assert [w.trainable for w in model.weights] == trainable
    return tracin


@pytest.fixture(scope="module")
def thawed(tmp_path_factory):
    """The head alone was trained for two epochs, then all for one."""
    directory, model = tmp_path_factory.mktemp("thawed"), make_model()
    model.get_layer("base").trainable = False
    fit(model, directory, FROZEN, epochs=2)
    model.get_layer("base").trainable = True
    fit(model, directory, THAWED)
    return model, TrainingRun(directory)


HEAD, ALL = [0, 0, FROZEN, FROZEN], [THAWED] * 4


def test_a_frozen_layer_has_no_influence_then(thawed):
    model, run = thawed
    assert [sorted(c.updated) for c in run] == [[2, 3], [2, 3], [0, 1, 2, 3]]
    assert_scores(model, run, [HEAD, HEAD, ALL], summed=True)


def test_a_layer_that_is_frozen_now_counts_where_it_was_trained(tmp_path):
    model = make_model()
    fit(model, tmp_path, THAWED)
    model.get_layer("base").trainable = False
    fit(model, tmp_path, FROZEN, epochs=2)
    run = TrainingRun(tmp_path)
    assert_scores(model, run, [ALL, HEAD, HEAD], summed=True)
    assert not model.get_layer("base").trainable
    assert_scores(model, run[:1], [ALL])


def test_one_that_froze_nothing_but_trained_another_rate_is_plain(tmp_path):
    model = make_model()
    fit(model, tmp_path, THAWED)
    fit(model, tmp_path, FROZEN)
    rates = [ALL, [FROZEN] * 4]
    tracin = assert_scores(model, TrainingRun(tmp_path), rates, summed=True)
    assert tracin.engine.shares is None


def test_a_longer_interval_has_each_variables_own_mean_and_sum(thawed):
    model, run = thawed
    run = run.select([0, 2])  # 3 steps, and 3 + 3
    base, head = THAWED / 2, (FROZEN + THAWED) / 2
    means = [HEAD, [base, base, head, head]]
    assert [run[1].updated[v] for v in range(4)] == pytest.approx(means[1])
    assert_scores(model, run, means)
    sums = [[3 * r for r in HEAD], [6 * r for r in means[1]]]
    assert_scores(model, run, sums, weights="sum")


def test_layers_still_restrict_what_counts(thawed):
    model, run = thawed
    head = [[0, 0, rate, rate] for rate in (FROZEN, FROZEN, THAWED)]
    tracin = assert_scores(model, run, head, layers="head")
    assert tracin.engine.shares is None
    base = [[0] * 4, [0] * 4, [THAWED, THAWED, 0, 0]]
    with pytest.warns(UserWarning, match="updated none of the layers"):
        assert_scores(model, run, base, layers="base")


def test_a_bias_that_was_frozen_alone_counts_apart(tmp_path):
    model = make_model()
    fit(model, tmp_path, THAWED)
    model.get_layer("head").bias.trainable = False
    fit(model, tmp_path, FROZEN)
    rates = [ALL, [FROZEN] * 3 + [0]]
    assert_scores(model, TrainingRun(tmp_path), rates, summed=True)


def test_what_trainable_says_is_not_what_was_updated(tmp_path):
    """Frozen without compiling anew, it goes on being trained."""
    model = make_model()
    model.compile(SGD(THAWED), LOSS)

    class Freezes(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.get_layer("base").trainable = False

    model.fit(
        *make_data(),
        batch_size=4,
        epochs=2,
        verbose=0,
        callbacks=[kt.TracInCheckpoint(tmp_path), Freezes()],
    )
    assert_scores(model, TrainingRun(tmp_path), [ALL, ALL])


class TwoOptimizers(keras.Sequential):
    """Trains its first layer by one optimizer, and its second by another."""

    def compile(self, first, second, **options):
        super().compile(second, LOSS, **options)
        self.first = first

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        base, head = (layer.trainable_variables for layer in self.layers)
        of_base, of_head = tape.gradient(loss, [base, head])
        self.first.apply(of_base, base)
        self.optimizer.apply(of_head, head)
        return {"loss": loss}


@pytest.mark.filterwarnings("ignore:The model .* `train_step` of its own")
def test_several_optimizers_count_each_with_its_own_rate(tmp_path):
    model = TwoOptimizers(make_model().layers)
    decay = keras.optimizers.schedules.ExponentialDecay(0.2, 3, 0.5, True)
    model.compile(SGD(decay), SGD(0.05))
    model.fit(
        *make_data(),
        batch_size=4,
        epochs=2,
        verbose=0,
        callbacks=[kt.TracInCheckpoint(tmp_path)],
    )
    run = TrainingRun(tmp_path)
    assert [c.num_steps for c in run] == [3, 3]
    rates = [[0.2, 0.2, 0.05, 0.05], [0.1, 0.1, 0.05, 0.05]]
    assert_scores(model, run, rates)


def test_sketches_count_the_same(thawed):
    (model, run), test = thawed, make_data(1, 5)
    projection = kt.GaussianProjection(32, seed=3)
    tracin = kt.TracIn(model, make_data(), run, projection=projection)
    scores, own = 0.0, 0.0
    with run_weights(model) as load:
        for at, (checkpoint, rates) in enumerate(
            zip(run, [HEAD, HEAD, ALL], strict=True)
        ):
            load(checkpoint)

            def sketch(data, counts, at=at):
                parts = [
                    tf.constant(c * g, tf.float32)
                    for c, g in zip(counts, gradients(model, data), strict=True)
                ]
                groups = (
                    DenseGradients(tuple(parts[:2])),
                    DenseGradients(tuple(parts[2:])),
                )
                return projection.sketch(groups, at).numpy()

            train = sketch(make_data(), rates)
            scores = scores + sketch(test, [1] * 4) @ train.T
            own = own + np.sum(train * sketch(make_data(), [1] * 4), axis=1)
    found = tracin.influence(test, verbose=0).scores
    np.testing.assert_allclose(found, scores, atol=1e-4 * np.abs(scores).max())
    found = tracin.self_influence(verbose=0).scores
    np.testing.assert_allclose(found, own, atol=1e-4 * np.abs(own).max())


@pytest.mark.parametrize(
    "projection",
    [kt.TensorSketch(4096), kt.FactoredProjection(4096, joint=False)],
    ids=["tensor", "sides"],
)
def test_other_sketches_come_close(thawed, projection):
    (model, run), test = thawed, make_data(1, 5)
    scores, own = oracle(model, run, [HEAD, HEAD, ALL], test)
    tracin = kt.TracIn(model, make_data(), run, projection=projection)
    found = tracin.influence(test, verbose=0).scores
    assert np.corrcoef(found.ravel(), scores.ravel())[0, 1] > 0.99
    found = tracin.self_influence(verbose=0).scores
    np.testing.assert_allclose(found, own, rtol=0.2)


def test_a_run_of_the_former_version_counts_what_is_trainable(tmp_path):
    model = make_model()
    fit(model, tmp_path, THAWED)
    fit(model, tmp_path, FROZEN)
    test = make_data(1, 5)
    new = kt.TracIn(model, make_data(), tmp_path).influence(test, verbose=0)

    manifest = json.loads((tmp_path / "run.json").read_text())
    manifest["format_version"] = 1
    del manifest["updated"]
    for segment in manifest["segments"]:
        del segment["updated"]
    (tmp_path / "run.json").write_text(json.dumps(manifest))
    assert [c.updated for c in TrainingRun(tmp_path)] == [None, None]
    old = kt.TracIn(model, make_data(), tmp_path).influence(test, verbose=0)
    np.testing.assert_array_equal(new.scores, old.scores)

    fit(model, tmp_path, THAWED)  # continues it
    run = TrainingRun(tmp_path)
    assert [c.updated is None for c in run] == [True, True, False]
    assert run.select([2])[0].updated is None
    assert_scores(model, run, [ALL, [FROZEN] * 4, ALL])


def test_what_cannot_count_variables_apart_is_refused(thawed, tmp_path):
    model, run = thawed
    tracin = kt.TracIn(model, make_data(), run)
    with pytest.raises(
        ValueError, match=row("uneven-updates", "An index counts")
    ):
        kt.InfluenceIndex.build(tracin, tmp_path / "index")
    with pytest.raises(
        ValueError, match=row("uneven-updates", "`optimizer_aware=True` counts")
    ):
        kt.TracIn(model, make_data(), run, optimizer_aware=True)
    head = kt.TracIn(model, make_data(), run, layers="head")
    assert head.engine.shares is None


def test_check_tells_of_what_was_frozen(tmp_path):
    model = make_model()
    fit(model, tmp_path, THAWED)
    model.get_layer("base").trainable = False
    fit(model, tmp_path, FROZEN)
    report = kt.check(model, make_data(), tmp_path, verbose=0)
    assert report.ok
    assert [layer.name for layer in report.layers] == [
        model.get_layer(name).path for name in ("base", "head")
    ]
    assert not report.left_out
    text = " ".join(str(report).split())  # which is wrapped
    assert "Steps of the run updated different variables" in text


def test_scores_of_it_are_kept_apart_from_others(thawed, tmp_path):
    (model, run), test = thawed, make_data(1, 5)
    kept = kt.TracIn(model, make_data(), run)
    first = kept.influence(test, directory=tmp_path, verbose=0).scores
    again = kept.influence(test, directory=tmp_path, verbose=0).scores
    np.testing.assert_array_equal(first, again)


def test_what_is_frozen_after_a_method_was_made_counts_as_it_did(tmp_path):
    """The steps are traced at the first call, the variables chosen before."""
    model = make_model()
    fit(model, tmp_path, THAWED)
    before = kt.TracIn(model, make_data(), tmp_path)
    expected = before.influence(make_data(1, 3), verbose=0).scores
    made = kt.TracIn(model, make_data(), tmp_path)
    model.get_layer("base").trainable = False
    again = made.influence(make_data(1, 3), verbose=0).scores
    np.testing.assert_allclose(again, expected, rtol=1e-5, atol=1e-7)
    assert not model.get_layer("base").trainable
