"""One table of several measures, and the measures that are only there."""

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

import keras_tracin as kt
from keras_tracin import evaluation
from keras_tracin.results import Attribution
from keras_tracin.runs import changed_weights, run_weights
from tests.error_rows import row

N, M = 30, 6


def _data(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 5)).astype("float32")
    return x, (x[:, 0] + x[:, 1] > 0).astype("int32")


TRAIN, TEST = _data(N, 0), _data(M, 1)


def _build(seed=0):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(8, "tanh"),
            keras.layers.Dense(2),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.3), loss)
    return model


def _fit(data):
    model = _build()
    model.fit(*data, epochs=8, batch_size=10, verbose=0)
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    model = _build()
    model.fit(
        *TRAIN,
        epochs=4,
        batch_size=10,
        verbose=0,
        callbacks=[kt.TracInCheckpoint(folder)],
    )
    return model, kt.TrainingRun(folder)


def _weights(model):
    return [keras.ops.convert_to_numpy(w) for w in model.weights]


def test_changed_weights_are_those_of_every_checkpoint(trained):
    model, run = trained
    before = _weights(model)

    def negate(model):
        for variable in model.trainable_variables:
            variable.assign(-variable)

    with changed_weights(model, run, negate) as other:
        for value, own in zip(_weights(model), before, strict=True):
            np.testing.assert_array_equal(value, -own)
        negated = kt.TracIn(model, TRAIN, other).influence(TEST, verbose=0)
    for value, own in zip(_weights(model), before, strict=True):
        np.testing.assert_array_equal(value, own)
    expected = np.zeros([M, N])
    with run_weights(model) as load:
        for checkpoint in run:
            load(checkpoint)
            negate(model)
            grads = [_gradients(model, data) for data in (TEST, TRAIN)]
            expected += checkpoint.learning_rate * grads[0] @ grads[1].T
    np.testing.assert_allclose(negated.scores, expected, rtol=1e-4, atol=1e-6)
    assert [c.learning_rate for c in other] == [c.learning_rate for c in run]
    assert [c.step for c in other] == [c.step for c in run]


def test_the_optimizers_states_are_those_of_the_run(tmp_path):
    keras.utils.set_random_seed(1)
    model = _build()
    model.compile(keras.optimizers.Adam(0.01), model.loss)
    recorder = kt.TracInCheckpoint(tmp_path)
    model.fit(*TRAIN, epochs=2, verbose=0, callbacks=[recorder])
    run = kt.TrainingRun(tmp_path)
    aware = kt.TracIn(model, TRAIN, run, optimizer_aware=True)
    expected = aware.influence(TEST, verbose=0).scores
    model.fit(*TRAIN, epochs=2, verbose=0)  # another state than the run's
    with changed_weights(model, run, lambda model: None) as same:
        again = kt.TracIn(model, TRAIN, same, optimizer_aware=True)
        scores = again.influence(TEST, verbose=0).scores
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-7)


def _gradients(model, data):
    """Gradients of each example's loss by a Jacobian, [n, p]."""
    x, y = data
    variables = [v.value for v in model.trainable_variables]
    with tf.GradientTape() as tape:
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x))
    parts = tape.jacobian(losses, variables)
    return np.concatenate([np.reshape(part, [len(x), -1]) for part in parts], 1)


def test_the_weights_come_back_after_an_error(trained):
    model, run = trained
    before = _weights(model)
    with pytest.raises(RuntimeError), changed_weights(model, run, _zero):
        raise RuntimeError
    for value, own in zip(_weights(model), before, strict=True):
        np.testing.assert_array_equal(value, own)


def _zero(model):
    for variable in model.trainable_variables:
        variable.assign(0 * variable)


def test_shuffled_weights_change_scores_of_gradients_and_no_others(trained):
    model, run = trained

    def tracin(run):
        return kt.TracIn(model, TRAIN, run)

    def of_inputs(run):
        return evaluation.EmbeddingSimilarity(None, TRAIN, encoder=lambda x: x)

    changed = evaluation.model_randomization(
        tracin, model, TEST, run, seed=1, verbose=0
    )
    assert changed.correlations.shape == (M,)
    assert abs(changed.mean) < 0.9
    same = evaluation.model_randomization(
        of_inputs, model, TEST, run, verbose=0
    )
    np.testing.assert_allclose(same.correlations, 1)


def test_flips_of_a_model_without_classes_are_refused_before_any_work():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    train, test = ((x, x[:, 0]) for x, _ in (TRAIN, TEST))

    def never(_):
        raise AssertionError

    with pytest.raises(ValueError, match="outside of the classes"):
        evaluation.scorecard(never, model, train, test, fit=never, verbose=0)


def _ensemble(model, run):
    return kt.Ensemble([kt.TracIn(model, TRAIN, run)])


@pytest.mark.parametrize("make", [_ensemble, kt.TRAK, kt.SOURCE])
def test_a_function_that_ignores_its_run_is_an_error(trained, make):
    model, run = trained

    def ignoring(_):
        given = (model, run) if make is _ensemble else (model, TRAIN, run)
        return make(*given)

    with pytest.raises(ValueError, match=row("made-of-another", str(len(run)))):
        evaluation.model_randomization(ignoring, model, TEST, run, verbose=0)


def test_a_method_that_is_not_made_anew_is_an_error(trained):
    model, run = trained
    method = kt.TracIn(model, TRAIN, run)
    with pytest.raises(ValueError, match=row("made-before")):
        evaluation.model_randomization(
            lambda run: method, model, TEST, run, verbose=0
        )
    with pytest.raises(ValueError, match=row("made-before")):
        evaluation.scorecard(
            {"TracIn": lambda run: method}, model, TRAIN, TEST, run=run,
            verbose=0,
        )  # fmt: skip


def test_correlations_are_spearmans_over_training_examples(trained):
    model, run = trained
    random = np.random.default_rng(0).normal(size=(M, N))
    known = Attribution(random, np.arange(M), np.arange(N))
    with changed_weights(model, run, lambda model: _shuffle(model, 3)) as other:
        shuffled = kt.TracIn(model, TRAIN, other).influence(TEST, verbose=0)
    result = evaluation.model_randomization(
        lambda run: kt.TracIn(model, TRAIN, run),
        model,
        TEST,
        run,
        scores=known,
        seed=3,
        verbose=0,
    )
    expected = [
        scipy.stats.spearmanr(one, two).statistic
        for one, two in zip(random, shuffled.scores, strict=True)
    ]
    np.testing.assert_allclose(result.correlations, expected, rtol=1e-6)
    others = Attribution(random, np.arange(M) + 1, np.arange(N))
    with pytest.raises(ValueError, match="of these queries"):
        evaluation.model_randomization(
            lambda run: kt.TracIn(model, TRAIN, run),
            model,
            TEST,
            run,
            scores=others,
            verbose=0,
        )


def _shuffle(model, seed):
    """Entries of each variable in another order, as documented."""
    for number, variable in enumerate(model.trainable_variables):
        value = keras.ops.convert_to_numpy(variable)
        order = np.random.default_rng([seed, number]).permutation(value.size)
        variable.assign(value.ravel()[order].reshape(value.shape))


# Retrieval.

SCORES = Attribution(
    np.array([[5.0, 1, 4, 9, 0], [5, 1, 4, 9, 8]]), np.arange(2), np.arange(5)
)
RELEVANT = np.array(
    [[False, True, True, False, False], [False, False, False, False, True]]
)


def test_retrieval_by_hand():
    result = evaluation.retrieval(SCORES, RELEVANT)
    np.testing.assert_allclose(result.reciprocal_rank, [1 / 3, 1 / 2])
    np.testing.assert_allclose(
        result.average_precision, [(1 / 3 + 2 / 4) / 2, 1 / 2]
    )
    assert result.recall_at(3).tolist() == [0.5, 1]
    assert result.precision_at(4).tolist() == [0.5, 0.25]


def test_the_same_examples_may_be_relevant_for_all():
    result = evaluation.retrieval(SCORES, RELEVANT[1])
    np.testing.assert_allclose(result.reciprocal_rank, [1 / 5, 1 / 2])


@pytest.mark.parametrize(
    ("relevant", "key"),
    [
        (RELEVANT[:, :3], "retrieval-shape"),
        (RELEVANT.astype(int), "retrieval-shape"),
        (RELEVANT & False, "retrieval-none"),
    ],
)
def test_what_is_relevant_is_checked(relevant, key):
    rows = {
        "retrieval-shape": row("retrieval-shape"),
        "retrieval-none": row("retrieval-none"),
    }
    with pytest.raises(ValueError, match=rows[key]):
        evaluation.retrieval(SCORES, relevant)


def test_retrieval_looks_at_no_more_than_there_are():
    with pytest.raises(ValueError, match="from 1 to 5"):
        evaluation.retrieval(SCORES, RELEVANT).recall_at(6)


# The table.


@pytest.fixture(scope="module")
def card(trained):
    model, run = trained
    wrong = np.zeros(N, bool)
    wrong[:3] = True
    retrained = evaluation.Retrained(
        np.random.default_rng(0).random([12, N]) < 0.5,
        np.random.default_rng(1).normal(size=(12, 2, M)),
        np.arange(N),
        np.arange(M),
    )
    methods = {
        "TracIn": lambda run: kt.TracIn(model, TRAIN, run),
        "cosine": kt.TracIn(model, TRAIN, run, normalize="both"),
    }
    return evaluation.scorecard(
        methods,
        model,
        TRAIN,
        TEST,
        run=run,
        retrained=retrained,
        relevant=TEST[1][:, None] == TRAIN[1],
        is_mislabeled=wrong,
        fit=_fit,
        left_out=5,
        flip_queries=3,
        k=4,
        seed=2,
        verbose=0,
    ), (wrong, retrained)


def test_every_measure_is_that_of_its_own_function(trained, card):
    model, run = trained
    card, (wrong, retrained) = card
    method = kt.TracIn(model, TRAIN, run)
    scores = method.influence(TEST, verbose=0)
    values = card.values["TracIn"]
    score = evaluation.lds(scores, retrained, seed=2)
    assert values["lds"] == pytest.approx(score.mean)
    assert card.intervals["TracIn"]["lds"] == pytest.approx(
        score.confidence_interval
    )
    top = scores.top_k(4)
    assert values["same_proponents"] == top.proponents.overlap
    assert values["same_opponents"] == top.opponents.overlap
    patch = evaluation.tail_patch(scores, model, TRAIN, TEST, k=4, seed=2)
    assert values["tail_patch"] == pytest.approx(patch.mean, rel=1e-4)
    low, high = card.intervals["TracIn"]["tail_patch"]
    assert low < values["tail_patch"] < high
    same = TEST[1][:, None] == TRAIN[1]
    ranks = evaluation.retrieval(scores, same).reciprocal_rank
    assert values["mrr"] == pytest.approx(ranks.mean())
    detection = evaluation.mislabel_detection(
        method.self_influence(verbose=0), wrong
    )
    assert values["mislabel_auc"] == pytest.approx(detection.auc)
    random = evaluation.model_randomization(
        lambda run: kt.TracIn(model, TRAIN, run),
        model,
        TEST,
        run,
        seed=2,
        verbose=0,
    )
    assert values["randomized"] == pytest.approx(random.mean, abs=1e-6)
    few = Attribution(scores.scores[:3], scores.query_ids[:3], scores.train_ids)
    flips = evaluation.brittleness(
        few, TRAIN, (TEST[0][:3], TEST[1][:3]), _fit, counts=(5,), seed=2
    )
    assert values["flips"] == pytest.approx(flips.share[0])
    assert values["seconds"] > 0


def test_what_a_method_has_not_is_empty_and_said(card):
    card, _ = card
    assert "randomized" not in card.values["cosine"]
    assert "mislabel_auc" not in card.values["cosine"]
    text = str(card)
    for note in (
        "cosine was made already",
        "cosine has no self-influence",
        "Ceiling of the LDS",
        "5 proponents left out",
    ):
        assert note in text


def test_the_table_has_a_row_for_each_method_and_a_column_for_each_measure(
    card,
):
    card, _ = card
    head, line, *rows = str(card).splitlines()[:4]
    assert head == (
        "| | LDS | tail patch | flips | MRR | AUC, wrong labels | "
        "shuffled weights | same proponents | same opponents | s |"
    )
    assert [text.split(" | ")[0] for text in rows] == ["| TracIn", "| cosine"]
    assert {text.count("|") for text in (head, line, *rows)} == {11}
    table = card.to_dataframe()
    assert table.index.tolist() == ["TracIn", "cosine"]
    assert table.loc["TracIn", "lds"] == card.values["TracIn"]["lds"]
    assert np.isnan(table.loc["cosine", "randomized"])
    assert {"lds_low", "lds_high", "tail_patch_low"} <= set(table.columns)
    assert card._repr_markdown_().startswith(head)


def test_one_method_alone(trained):
    model, run = trained
    method = kt.TracIn(model, TRAIN, run)
    card = evaluation.scorecard(method, model, TRAIN, TEST, k=2, verbose=0)
    assert list(card.values) == ["TracIn"]
    assert card.measures == [
        "tail_patch",
        "same_proponents",
        "same_opponents",
        "seconds",
    ]


@pytest.mark.parametrize("methods", [{"a": 1}, {"TracIn": kt.TracIn}])
def test_what_is_no_method(trained, methods):
    model, _ = trained
    with pytest.raises(TypeError, match=row("scorecard-method")):
        evaluation.scorecard(methods, model, TRAIN, TEST)


def test_no_methods(trained):
    with pytest.raises(ValueError, match="one method or more"):
        evaluation.scorecard({}, trained[0], TRAIN, TEST)
