"""TracIn against the definition, computed slowly in float64."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.engine import progress as progress_module
from keras_tracin.gradients import flat
from tests.error_rows import row
from tests.methods.network import (
    NUM_TEST,
    NUM_TRAIN,
    TEST,
    TRAIN,
    assert_close,
    build,
    gradients,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model, trained under a schedule, and the run it wrote."""
    directory = tmp_path_factory.mktemp("run")
    model = build()
    model.optimizer.learning_rate = 0.02
    halve = keras.callbacks.LearningRateScheduler(lambda e, rate: rate / 2)
    callbacks = [halve, kt.TracInCheckpoint(directory)]
    model.fit(*TRAIN, batch_size=8, epochs=3, callbacks=callbacks, verbose=0)
    return model, kt.TrainingRun(directory)


@pytest.fixture(scope="module")
def tracin(trained):
    """The method without options, traced once for the calls of all tests."""
    return kt.TracIn(trained[0], TRAIN, trained[1])


@pytest.fixture(scope="module")
def influence(tracin):
    """Its scores of `TEST`."""
    return tracin.influence(TEST, verbose=0)


@functools.cache
def gradients_of(run, of_train, value=None):
    """Those of `TRAIN` or `TEST` at each checkpoint: they take seconds."""
    data = TRAIN if of_train else TEST
    return [gradients(checkpoint, *data, value) for checkpoint in run]


def oracle(trained, rates=None, train_weight=None, value=None):
    """Σ_k η_k ∇ℓ(w_k, z')·∇ℓ(w_k, z), and √(s_ii s_jj) for its scale."""
    _, run = trained
    rates = [c.learning_rate for c in run] if rates is None else rates
    weight = np.ones(NUM_TRAIN) if train_weight is None else train_weight
    at_checkpoints = zip(
        rates,
        gradients_of(run, of_train=True),
        gradients_of(run, of_train=False, value=value),
        strict=True,
    )
    scores, own_test, own_train = 0.0, 0.0, 0.0
    for rate, train, test in at_checkpoints:
        train = train * weight[:, None]
        scores = scores + rate * test @ train.T
        own_train = own_train + rate * (train**2).sum(1)
        own_test = own_test + rate * (test**2).sum(1)
    return scores, np.sqrt(np.outer(own_test, own_train)), own_train


def test_influence_is_the_sum_over_checkpoints(trained, influence):
    expected, scale, _ = oracle(trained)
    assert_close(influence.scores, expected, scale)
    np.testing.assert_array_equal(influence.train_ids, np.arange(NUM_TRAIN))
    np.testing.assert_array_equal(influence.query_ids, np.arange(NUM_TEST))


def test_a_run_may_be_given_by_its_directory(trained, influence):
    model, run = trained
    by_path = kt.TracIn(model, TRAIN, str(run.directory))
    again = by_path.influence(TEST, verbose=0)
    np.testing.assert_array_equal(influence.scores, again.scores)  # same bits


def test_self_influence_is_the_diagonal(trained, tracin):
    _, _, expected = oracle(trained)
    found = tracin.self_influence(verbose=0)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-4)
    full = tracin.influence(TRAIN, verbose=0).scores
    np.testing.assert_allclose(found.scores, np.diag(full), rtol=1e-4)


def test_weights_sum_counts_every_step(trained):
    model, run = trained
    expected, scale, _ = oracle(trained, [c.learning_rate_sum for c in run])
    tracin = kt.TracIn(model, TRAIN, run, weights="sum")
    scores = tracin.influence(TEST, verbose=0).scores
    steps = run[0].num_steps
    assert steps == 5
    assert_close(scores, expected, scale)


def test_aggregate_is_the_sum_over_queries(tracin, influence):
    expected = influence.scores.sum(0)[None]
    summed = tracin.influence(TEST, aggregate=True, verbose=0)
    np.testing.assert_allclose(summed.scores, expected, atol=1e-5)
    assert summed.query_ids.tolist() == ["sum"]


def test_top_k_agrees_with_all_scores(tracin, influence):
    expected = influence.top_k(4)
    found = tracin.top_k(TEST, 4, verbose=0)
    for side in ("proponents", "opponents"):
        a, b = getattr(found, side), getattr(expected, side)
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-5)


def test_small_memory_gives_the_same_scores_in_pieces(
    trained, tracin, influence
):
    model, run = trained
    small = kt.TracIn(model, TRAIN, run, memory_limit=1)
    small = small.within(batch_sizes=(16, 16), query_batch=3)
    pieces = small.influence(TEST, verbose=0)
    assert small.plan(TEST).chunk == small.plan(TEST).batch_size == 16
    np.testing.assert_array_equal(pieces.train_ids, influence.train_ids)
    np.testing.assert_array_equal(pieces.query_ids, influence.query_ids)
    np.testing.assert_allclose(pieces.scores, influence.scores, atol=1e-6)
    top = small.top_k(TEST, 7, verbose=0)
    expected = influence.top_k(7).proponents
    np.testing.assert_array_equal(top.proponents.ids, expected.ids)
    np.testing.assert_allclose(
        small.self_influence(verbose=0).scores,
        tracin.self_influence(verbose=0).scores,
        rtol=1e-5,
    )


def test_a_dataset_scores_like_its_arrays(trained, influence):
    model, run = trained
    train = tf.data.Dataset.from_tensor_slices(TRAIN).batch(5)
    test = tf.data.Dataset.from_tensor_slices(TEST).batch(64)
    found = kt.TracIn(model, train, run).influence(test, verbose=0)
    np.testing.assert_allclose(found.scores, influence.scores, atol=1e-6)


def test_scores_follow_ids_through_a_shuffle(trained, influence):
    model, run = trained
    shuffled = kt.with_ids(TRAIN).shuffle(NUM_TRAIN).batch(6)
    found = kt.TracIn(model, shuffled, run).influence(TEST, verbose=0)
    assert found.train_ids.tolist() != influence.train_ids.tolist()
    order = np.argsort(found.train_ids)
    np.testing.assert_allclose(
        found.scores[:, order], influence.scores, atol=1e-6
    )


def test_class_weight_scales_training_examples_only(trained):
    model, run = trained
    weights = {0: 2.0, 2: 0.5}
    factor = np.array([weights.get(int(label), 1.0) for label in TRAIN[1]])
    expected, scale, _ = oracle(trained, train_weight=factor)
    tracin = kt.TracIn(model, TRAIN, run, class_weight=weights)
    scores = tracin.influence(TEST, verbose=0).scores
    assert_close(scores, expected, scale)


def test_sample_weight_scales_an_example(trained):
    model, run = trained
    weights = np.linspace(0.1, 2.0, NUM_TRAIN)
    expected, scale, _ = oracle(trained, train_weight=weights)
    tracin = kt.TracIn(model, (*TRAIN, weights), run)
    scores = tracin.influence(TEST, verbose=0).scores
    assert_close(scores, expected, scale)


def negative_logit(y, logits):
    """Lower is better: minus the label's logit."""
    return -tf.gather(logits, y, axis=1, batch_dims=1)


def negative_margin(y, logits):
    """Lower is better: minus the log-odds of the label's probability."""
    p = tf.gather(tf.nn.softmax(logits), y, axis=1, batch_dims=1)
    return -tf.math.log(p / (1 - p))


@pytest.mark.parametrize(
    ("query_loss", "value"),
    [
        ("logit", negative_logit),
        ("margin", negative_margin),
        (lambda y, p: negative_logit(tf.cast(y, tf.int64), p), negative_logit),
    ],
    ids=["logit", "margin", "callable"],
)
def test_query_loss_keeps_the_sign(trained, query_loss, value):
    model, run = trained
    expected, scale, _ = oracle(trained, value=value)
    tracin = kt.TracIn(model, TRAIN, run, query_loss=query_loss)
    assert_close(tracin.influence(TEST, verbose=0).scores, expected, scale)


def test_layers_split_the_score(trained, influence):
    model, run = trained
    names = [layer.name for layer in model.layers if layer.trainable_variables]
    rest = [model.get_layer(name) for name in names[3:]]
    parts = [
        kt.TracIn(model, TRAIN, run, layers=layers)
        .influence(TEST, verbose=0)
        .scores
        for layers in (names[0], names[1:3], rest)
    ]
    np.testing.assert_allclose(sum(parts), influence.scores, atol=1e-5)


def state(model):
    """All that belongs to the user: weights, seeds, and the optimizer's."""
    variables = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(v).copy() for v in variables]


def assert_untouched(model, before):
    """Nothing of the model or its optimizer has changed."""
    for old, new in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(old, new)
    assert all("call" not in vars(lay) for lay in model._flatten_layers())


def test_the_model_gets_everything_back(trained, tracin):
    model, _ = trained
    before = state(model)
    tracin.influence(TEST, verbose=0)
    tracin.influence(TEST, aggregate=True, verbose=0)
    tracin.top_k(TEST, 2, verbose=0)
    tracin.self_influence(verbose=0)
    assert_untouched(model, before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_model_gets_everything_back_after(
    trained, tracin, error, monkeypatch
):
    model, _ = trained
    before = state(model)

    def fail(self):
        raise error("in the middle")

    monkeypatch.setattr(progress_module.Progress, "advance", fail)
    with pytest.raises(error, match="in the middle"):
        tracin.influence(TEST, verbose=0)
    assert_untouched(model, before)


def test_weights_are_loaded_once_per_checkpoint(trained, monkeypatch):
    model, run = trained
    loaded = []
    original = keras.Model.load_weights

    def counting(self, path, *args, **kwargs):
        loaded.append(str(path))
        return original(self, path, *args, **kwargs)

    monkeypatch.setattr(keras.Model, "load_weights", counting)
    many_batches = kt.TracIn(model, TRAIN, run).within(batch_sizes=(4, 4))
    many_batches.influence(TEST, verbose=0)
    assert loaded == [str(checkpoint.path) for checkpoint in run]


def test_nan_in_the_data_is_named_by_id(trained, tracin):
    model, run = trained
    before = state(model)
    x = TRAIN[0].copy()
    x[11] = np.nan
    of_nan = kt.TracIn(model, (x, TRAIN[1]), run)
    for call in (
        lambda: of_nan.influence(TEST, verbose=0),
        lambda: of_nan.self_influence(verbose=0),
    ):
        with pytest.raises(
            ValueError, match=row("nan-data", "training...ids [11]...`x`")
        ):
            call()
    bad = TEST[0].copy()
    bad[2] = np.inf
    with pytest.raises(
        ValueError, match=row("nan-data", "query examples with ids [2]")
    ):
        tracin.influence((bad, TEST[1]), verbose=0)
    assert_untouched(model, before)


def test_a_checkpoint_at_rate_zero_is_skipped_with_a_warning(trained):
    model, run = trained
    paths = [checkpoint.path for checkpoint in run]
    adopted = kt.TrainingRun.from_weights(paths, [0.0, 0.1, 0.2])
    with pytest.warns(UserWarning, match="learning rate is 0"):
        tracin = kt.TracIn(model, TRAIN, adopted)
    expected, scale, _ = oracle(trained, [0.0, 0.1, 0.2])
    assert_close(tracin.influence(TEST, verbose=0).scores, expected, scale)
    with (
        pytest.raises(ValueError, match=row("no-rates-above-zero")),
        pytest.warns(UserWarning, match="learning rate is 0"),
    ):
        kt.TracIn(model, TRAIN, kt.TrainingRun.from_weights(paths, 0.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "median"}, row("weights", "'mean' or 'sum'...'median'")),
        (
            {"layers": "nowhere"},
            row("unknown-layer", "'nowhere', which fits no layer"),
        ),
        ({"layers": "dropout"}, row("no-variables")),
        ({"query_loss": 3}, row("query-loss", "'loss', 'logit', 'margin'...3")),
    ],
)
def test_bad_arguments_are_refused(trained, change, message):
    model, run = trained
    if "dropout" in change.values():
        dropouts = [
            layer
            for layer in model.layers
            if isinstance(layer, keras.layers.Dropout)
        ]
        change = {"layers": dropouts}
    with pytest.raises(ValueError, match=message):
        kt.TracIn(model, TRAIN, run, **change)


def test_sum_needs_the_rates_of_steps(trained):
    model, run = trained
    adopted = kt.TrainingRun.from_weights([run[0].path], 0.1)
    with pytest.raises(ValueError, match="weights='mean'"):
        kt.TracIn(model, TRAIN, adopted, weights="sum")


@pytest.mark.parametrize("k", [0, -1, 2.5, NUM_TRAIN + 1])
def test_bad_k_is_refused(tracin, k):
    with pytest.raises(ValueError, match=row("k")):
        tracin.top_k(TEST, k, verbose=0)


def test_an_uncompiled_model_needs_a_loss(trained):
    _, run = trained
    model = build(compiled=False)
    with pytest.raises(ValueError, match=row("uncompiled")):
        kt.TracIn(model, TRAIN, run)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    expected, scale, _ = oracle(trained)
    scores = kt.TracIn(model, TRAIN, run, loss=loss).influence(TEST, verbose=0)
    assert_close(scores.scores, expected, scale)


def test_queries_may_have_another_form_than_training(tracin, influence):
    weighted = (*TEST, np.ones(NUM_TEST, "float32"))
    found = tracin.influence(weighted, verbose=0)
    np.testing.assert_allclose(found.scores, influence.scores, atol=1e-6)


def test_losses_from_activations_are_refused_unless_loss_is_given(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, activity_regularizer="l2"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    data = np.ones((6, 4), "float32"), np.arange(6) % 3
    model.fit(*data, verbose=0, callbacks=[kt.TracInCheckpoint(tmp_path / "r")])
    with pytest.raises(
        ValueError, match=row("added-losses", "activity_regularizer")
    ):
        kt.TracIn(model, data, tmp_path / "r").self_influence(verbose=0)
    tracin = kt.TracIn(model, data, tmp_path / "r", loss=loss)
    assert len(tracin.self_influence(verbose=0)) == 6


def test_short_work_and_verbose_zero_are_quiet(tracin, capsys, monkeypatch):
    tracin.influence(TEST, verbose=0)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(progress_module, "_PATIENCE", 0.0)  # all work is long
    tracin.influence(TEST, verbose=0)
    assert capsys.readouterr().out == ""
    tracin.influence(TEST, verbose=1)
    shown = capsys.readouterr().out
    assert "37 training examples" in shown
    assert "3 checkpoints" in shown
    assert "MB of memory" in shown


def test_the_plan_tells_what_scoring_takes(tracin):
    plan = tracin.plan(TEST)
    assert (plan.num_train, plan.num_queries, plan.num_checkpoints) == (
        NUM_TRAIN,
        NUM_TEST,
        3,
    )
    assert plan.memory > 0
    assert tracin.plan().num_queries == 0


PROJECTIONS = (
    kt.TensorSketch(256),
    kt.GaussianProjection(256),
    kt.FactoredProjection(256),
    kt.FactoredProjection(256, joint=False),
)


@functools.cache
def projected_by(projection, model, run):
    """The method with a projection, traced once for the calls of all tests."""
    return kt.TracIn(model, TRAIN, run, projection=projection)


@pytest.mark.parametrize("projection", PROJECTIONS, ids=repr)
def test_projected_scores_are_near_the_exact_ones(trained, projection):
    expected, scale, _ = oracle(trained)
    projected = projected_by(projection, *trained)
    scores = projected.influence(TEST, verbose=0).scores
    errors = (scores - expected) / scale
    # A Gaussian's standard error is between 1/16 and √2/16 of the scale.
    assert 0.001 < np.sqrt(np.mean(errors**2)) < 0.2


def test_every_call_takes_the_same_projected_gradients(trained):
    _, _, own = oracle(trained)
    projected = projected_by(PROJECTIONS[0], *trained)
    scores = projected.influence(TEST, verbose=0).scores
    top = projected.top_k(TEST, 3, verbose=0).proponents
    order = np.argsort(-scores, axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(top.ids, order)
    summed = projected.influence(TEST, aggregate=True, verbose=0).scores
    atol = 1e-4 * np.abs(scores).max()
    np.testing.assert_allclose(summed[0], scores.sum(axis=0), atol=atol)
    found = projected.self_influence(verbose=0).scores
    full = projected.influence(TRAIN, verbose=0).scores
    np.testing.assert_allclose(found, np.diag(full), rtol=1e-3)
    assert np.corrcoef(found, own)[0, 1] > 0.9


class Rotation:
    """A test double: an orthonormal square matrix, which loses nothing."""

    def __init__(self, size):
        rng = np.random.default_rng(0)
        self.dim = size
        self.matrix = np.linalg.qr(rng.normal(size=(size, size)))[0]

    def sketch(self, factors, position=0):
        """`[n, p]` in other coordinates, the same at all checkpoints."""
        rows = flat.rows(factors)
        return rows @ tf.constant(self.matrix, rows.dtype)


def test_an_orthonormal_projection_changes_nothing(trained, influence):
    model, run = trained
    rotation = Rotation(
        sum(v.value.shape.num_elements() for v in model.trainable_variables)
    )
    rotated = kt.TracIn(model, TRAIN, run, projection=rotation)
    found = rotated.influence(TEST, verbose=0)
    np.testing.assert_allclose(found.scores, influence.scores, atol=1e-4)


def test_what_is_no_projection_is_refused(trained):
    model, run = trained
    with pytest.raises(TypeError, match=r"`projection` should be .* 'tall'"):
        kt.TracIn(model, TRAIN, run, projection="tall")


def test_the_final_checkpoint_alone_is_warned_of(trained, recwarn):
    model, run = trained
    kt.TracIn(model, TRAIN, run[:1])
    kt.TracIn(model, TRAIN, run)
    assert not [w for w in recwarn if "final checkpoint" in str(w.message)]
    with pytest.warns(UserWarning, match="final checkpoint only .epoch 3"):
        kt.TracIn(model, TRAIN, run[-1:])


def test_blocks_of_queries_may_read_the_data_in_another_order(
    trained, influence
):
    model, run = trained
    data = kt.with_ids(TRAIN).shuffle(NUM_TRAIN).batch(8)
    shuffled = kt.TracIn(model, data, run, memory_limit=1_000)
    assert shuffled.plan(TEST).num_blocks > 1
    received = shuffled.influence(TEST, verbose=0)
    np.testing.assert_allclose(
        received.scores[:, np.argsort(received.train_ids)],
        influence.scores,
        atol=1e-5 * np.abs(influence.scores).max(),
    )


def test_data_that_holds_other_examples_when_read_again_is_refused(trained):
    model, run = trained
    some = kt.with_ids(TRAIN).shuffle(NUM_TRAIN).take(NUM_TRAIN // 2).batch(8)
    method = kt.TracIn(model, some, run, memory_limit=1_000)
    with pytest.raises(ValueError, match=row("other-reading", "the ids [")):
        method.influence(TEST, verbose=0)
