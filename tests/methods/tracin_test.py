"""TracIn against the definition, computed slowly in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.engine import progress as progress_module
from keras_tracin.gradients import flat

NUM_TRAIN, NUM_TEST, CLASSES = 37, 5, 3


def build(dtype="float32", compiled=True):
    """A small network with a convolution, statistics and a shared layer."""
    keras.utils.set_random_seed(1)
    options = {"dtype": dtype}
    shared = keras.layers.Dense(6, activation="tanh", **options)
    inputs = keras.Input((6, 5, 2), dtype=dtype)
    x = keras.layers.Conv2D(4, 3, activation="relu", **options)(inputs)
    x = keras.layers.BatchNormalization(momentum=0.5, **options)(x)
    x = keras.layers.Flatten(**options)(x)
    x = keras.layers.Dense(6, **options)(x)
    x = shared(shared(x))
    x = keras.layers.Dropout(0.5, **options)(x)
    outputs = keras.layers.Dense(CLASSES, **options)(x)
    model = keras.Model(inputs, outputs)
    if compiled:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.02), loss)
    return model


def examples(count, seed):
    """Random images and labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 6, 5, 2)).astype("float32")
    return x, rng.integers(0, CLASSES, count)


TRAIN, TEST = examples(NUM_TRAIN, 0), examples(NUM_TEST, 1)


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


def gradients(checkpoint, x, y, weight=None, value=None):
    """Per-example gradients `[n, p]` in float64, by `tape.jacobian`."""
    twin, source = build("float64", compiled=False), build(compiled=False)
    source.load_weights(checkpoint.path)
    twin.set_weights([w.astype("float64") for w in source.get_weights()])
    weight = np.ones(len(x)) if weight is None else np.asarray(weight)
    with tf.GradientTape() as tape:
        logits = twin(x.astype("float64"), training=False)
        if value is None:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
        else:
            losses = value(tf.constant(y), logits)
        losses *= weight
    jacobian = tape.jacobian(losses, [v.value for v in twin.trainable_weights])
    return np.hstack([np.reshape(part, (len(x), -1)) for part in jacobian])


def oracle(trained, rates=None, train_weight=None, value=None):
    """Σ_k η_k ∇ℓ(w_k, z')·∇ℓ(w_k, z), and √(s_ii s_jj) for its scale."""
    _, run = trained
    rates = [c.learning_rate for c in run] if rates is None else rates
    scores, own_test, own_train = 0.0, 0.0, 0.0
    for checkpoint, rate in zip(run, rates, strict=True):
        train = gradients(checkpoint, *TRAIN, weight=train_weight)
        test = gradients(checkpoint, *TEST, value=value)
        scores = scores + rate * test @ train.T
        own_train = own_train + rate * (train**2).sum(1)
        own_test = own_test + rate * (test**2).sum(1)
    return scores, np.sqrt(np.outer(own_test, own_train)), own_train


def assert_close(scores, expected, scale, tolerance=1e-4):
    """The issue's measure: differences relative to √(s_ii s_jj)."""
    assert np.max(np.abs(scores - expected) / scale) < tolerance


def test_influence_is_the_sum_over_checkpoints(trained):
    expected, scale, _ = oracle(trained)
    found = kt.TracIn(trained[0], TRAIN, trained[1]).influence(TEST, verbose=0)
    assert_close(found.scores, expected, scale)
    np.testing.assert_array_equal(found.train_ids, np.arange(NUM_TRAIN))
    np.testing.assert_array_equal(found.query_ids, np.arange(NUM_TEST))


def test_a_run_may_be_given_by_its_directory(trained):
    model, run = trained
    by_run = kt.TracIn(model, TRAIN, run).influence(TEST, verbose=0)
    by_path = kt.TracIn(model, TRAIN, str(run.directory))
    again = by_path.influence(TEST, verbose=0)
    np.testing.assert_array_equal(by_run.scores, again.scores)  # same bits


def test_self_influence_is_the_diagonal(trained):
    _, _, expected = oracle(trained)
    tracin = kt.TracIn(trained[0], TRAIN, trained[1])
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


def test_aggregate_is_the_sum_over_queries(trained):
    tracin = kt.TracIn(trained[0], TRAIN, trained[1])
    each = tracin.influence(TEST, verbose=0).scores
    summed = tracin.influence(TEST, aggregate=True, verbose=0)
    np.testing.assert_allclose(summed.scores, each.sum(0)[None], atol=1e-5)
    assert summed.query_ids.tolist() == ["sum"]


def test_top_k_agrees_with_all_scores(trained):
    tracin = kt.TracIn(trained[0], TRAIN, trained[1])
    expected = tracin.influence(TEST, verbose=0).top_k(4)
    found = tracin.top_k(TEST, 4, verbose=0)
    for side in ("proponents", "opponents"):
        a, b = getattr(found, side), getattr(expected, side)
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-5)


def test_small_memory_gives_the_same_scores_in_pieces(trained):
    model, run = trained
    whole = kt.TracIn(model, TRAIN, run).influence(TEST, verbose=0)
    tracin = kt.TracIn(model, TRAIN, run, memory_limit=1)
    tracin = tracin.within(batch_sizes=(4, 4), query_batch=2)
    pieces = tracin.influence(TEST, verbose=0)
    assert tracin.plan(TEST).chunk == tracin.plan(TEST).batch_size == 4
    np.testing.assert_array_equal(pieces.train_ids, whole.train_ids)
    np.testing.assert_array_equal(pieces.query_ids, whole.query_ids)
    np.testing.assert_allclose(pieces.scores, whole.scores, atol=1e-6)
    top = tracin.top_k(TEST, 7, verbose=0)
    expected = whole.top_k(7).proponents
    np.testing.assert_array_equal(top.proponents.ids, expected.ids)
    np.testing.assert_allclose(
        tracin.self_influence(verbose=0).scores,
        kt.TracIn(model, TRAIN, run).self_influence(verbose=0).scores,
        rtol=1e-5,
    )


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_a_dataset_scores_like_its_arrays(trained, batch):
    model, run = trained
    expected = kt.TracIn(model, TRAIN, run).influence(TEST, verbose=0)
    train = tf.data.Dataset.from_tensor_slices(TRAIN).batch(batch)
    test = tf.data.Dataset.from_tensor_slices(TEST).batch(batch)
    found = kt.TracIn(model, train, run).influence(test, verbose=0)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)


def test_scores_follow_ids_through_a_shuffle(trained):
    model, run = trained
    expected = kt.TracIn(model, TRAIN, run).influence(TEST, verbose=0)
    shuffled = kt.with_ids(TRAIN).shuffle(NUM_TRAIN).batch(6)
    found = kt.TracIn(model, shuffled, run).influence(TEST, verbose=0)
    assert found.train_ids.tolist() != expected.train_ids.tolist()
    order = np.argsort(found.train_ids)
    np.testing.assert_allclose(
        found.scores[:, order], expected.scores, atol=1e-6
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


def test_layers_split_the_score(trained):
    model, run = trained
    whole = kt.TracIn(model, TRAIN, run).influence(TEST, verbose=0).scores
    parts = [
        kt.TracIn(model, TRAIN, run, layers=layer)
        .influence(TEST, verbose=0)
        .scores
        for layer in model.layers
        if layer.trainable_variables
    ]
    np.testing.assert_allclose(sum(parts), whole, atol=1e-5)


def state(model):
    """All that belongs to the user: weights, seeds, and the optimizer's."""
    variables = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(v).copy() for v in variables]


def assert_untouched(model, before):
    """Nothing of the model or its optimizer has changed."""
    for old, new in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(old, new)
    assert all("call" not in vars(lay) for lay in model._flatten_layers())


def test_the_model_gets_everything_back(trained):
    model, run = trained
    before = state(model)
    tracin = kt.TracIn(model, TRAIN, run)
    tracin.influence(TEST, verbose=0)
    tracin.influence(TEST, aggregate=True, verbose=0)
    tracin.top_k(TEST, 2, verbose=0)
    tracin.self_influence(verbose=0)
    assert_untouched(model, before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_model_gets_everything_back_after(trained, error, monkeypatch):
    model, run = trained
    before = state(model)
    tracin = kt.TracIn(model, TRAIN, run)

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


def test_nan_in_the_data_is_named_by_id(trained):
    model, run = trained
    before = state(model)
    x = TRAIN[0].copy()
    x[11] = np.nan
    tracin = kt.TracIn(model, (x, TRAIN[1]), run)
    for call in (
        lambda: tracin.influence(TEST, verbose=0),
        lambda: tracin.self_influence(verbose=0),
    ):
        with pytest.raises(ValueError, match=r"training.*ids \[11\].*`x`"):
            call()
    bad = TEST[0].copy()
    bad[2] = np.inf
    tracin = kt.TracIn(model, TRAIN, run)
    with pytest.raises(ValueError, match=r"query examples with ids \[2\]"):
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
        pytest.raises(ValueError, match="above zero"),
        pytest.warns(UserWarning, match="learning rate is 0"),
    ):
        kt.TracIn(model, TRAIN, kt.TrainingRun.from_weights(paths, 0.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "median"}, "'mean' or 'sum'.*'median'"),
        ({"layers": "nowhere"}, "'nowhere', which fits no layer"),
        ({"layers": "dropout"}, "no trainable variables"),
        ({"query_loss": 3}, "'loss', 'logit', 'margin'.*3"),
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
def test_bad_k_is_refused(trained, k):
    model, run = trained
    with pytest.raises(ValueError, match="`k` should"):
        kt.TracIn(model, TRAIN, run).top_k(TEST, k, verbose=0)


def test_an_uncompiled_model_needs_a_loss(trained):
    _, run = trained
    model = build(compiled=False)
    with pytest.raises(ValueError, match="no compiled loss"):
        kt.TracIn(model, TRAIN, run)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    expected, scale, _ = oracle(trained)
    scores = kt.TracIn(model, TRAIN, run, loss=loss).influence(TEST, verbose=0)
    assert_close(scores.scores, expected, scale)


def test_queries_may_have_another_form_than_training(trained):
    model, run = trained
    expected = kt.TracIn(model, TRAIN, run).influence(TEST, verbose=0)
    weighted = (*TEST, np.ones(NUM_TEST, "float32"))
    found = kt.TracIn(model, TRAIN, run).influence(weighted, verbose=0)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)


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
    with pytest.raises(ValueError, match="activity_regularizer"):
        kt.TracIn(model, data, tmp_path / "r").self_influence(verbose=0)
    tracin = kt.TracIn(model, data, tmp_path / "r", loss=loss)
    assert len(tracin.self_influence(verbose=0)) == 6


def test_short_work_and_verbose_zero_are_quiet(trained, capsys, monkeypatch):
    model, run = trained
    tracin = kt.TracIn(model, TRAIN, run)
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


def test_the_plan_tells_what_scoring_takes(trained):
    tracin = kt.TracIn(trained[0], TRAIN, trained[1])
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


@pytest.mark.parametrize("projection", PROJECTIONS, ids=repr)
def test_projected_scores_are_near_the_exact_ones(trained, projection):
    expected, scale, own = oracle(trained)
    tracin = kt.TracIn(trained[0], TRAIN, trained[1], projection=projection)
    scores = tracin.influence(TEST, verbose=0).scores
    errors = (scores - expected) / scale
    # A Gaussian's standard error is between 1/16 and √2/16 of the scale.
    assert 0.001 < np.sqrt(np.mean(errors**2)) < 0.2
    top = tracin.top_k(TEST, 3, verbose=0).proponents
    order = np.argsort(-scores, axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(top.ids, order)
    summed = tracin.influence(TEST, aggregate=True, verbose=0).scores
    atol = 1e-4 * np.abs(scores).max()
    np.testing.assert_allclose(summed[0], scores.sum(axis=0), atol=atol)
    found = tracin.self_influence(verbose=0).scores
    full = tracin.influence(TRAIN, verbose=0).scores
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


def test_an_orthonormal_projection_changes_nothing(trained):
    model, run = trained
    expected = kt.TracIn(model, TRAIN, run).influence(TEST, verbose=0)
    rotation = Rotation(
        sum(v.value.shape.num_elements() for v in model.trainable_variables)
    )
    tracin = kt.TracIn(model, TRAIN, run, projection=rotation)
    found = tracin.influence(TEST, verbose=0)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


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
