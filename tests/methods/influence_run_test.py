"""Influence functions over a run's checkpoints, and with class weights."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_tracin as kt
from keras_tracin.engine import progress
from keras_tracin.runs import run_weights
from tests.error_rows import row
from tests.gradients.oracle import precision, sequential

NUM_TRAIN, CLASSES, DAMPING = 12, 3, 0.2
WEIGHTS = {0: 1.0, 1: 3.0, 2: 0.5}
CURVATURES = {
    "hessian": {"solver": kt.CG(tol=1e-9)},
    "gauss_newton": {"curvature": "gauss_newton", "solver": kt.Exact()},
    "ekfac": {"curvature": "ekfac"},
}
every_curvature = pytest.mark.parametrize(
    "options", CURVATURES.values(), ids=CURVATURES
)
pytestmark = pytest.mark.filterwarnings("ignore:The model has not converged")


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    with precision("float64"):
        yield


def examples(count, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 3)), rng.integers(CLASSES, size=count)


TRAIN, TEST = examples(NUM_TRAIN, 0), examples(2, 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small model, and its run of three checkpoints."""
    keras.utils.set_random_seed(0)
    regularizer = keras.regularizers.L2(0.02)
    head = layers.Dense(CLASSES, "softmax", kernel_regularizer=regularizer)
    model = sequential((3,), head)
    model.compile(keras.optimizers.SGD(0.5), "sparse_categorical_crossentropy")
    directory = tmp_path_factory.mktemp("run")
    model.fit(
        *TRAIN,
        epochs=3,
        batch_size=NUM_TRAIN,
        verbose=0,
        callbacks=[kt.TracInCheckpoint(directory)],
    )
    return model, kt.TrainingRun(directory)


def influence(trained, run, **options):
    options = {"damping": DAMPING, **options}
    return kt.InfluenceFunctions(trained[0], TRAIN, run=run, **options)


@pytest.fixture(scope="module")
def over_two(trained):
    """EK-FAC's method over two checkpoints, fitted once for all tests."""
    return influence(trained, trained[1][::2], curvature="ekfac")


def scores_of(method):
    return method.influence(TEST, verbose=0).scores


def self_scores_of(method):
    return method.self_influence(verbose=0).scores


BOTH_CALLS = scores_of, self_scores_of


def one_by_one(trained, run, calls=(scores_of,), **options):
    """Results of single objects at each checkpoint's weights, by call."""
    results = []
    with run_weights(trained[0]) as load:
        for checkpoint in run:
            load(checkpoint)
            method = influence(trained, None, **options)
            results.append([call(method) for call in calls])
    return [np.stack(apart) for apart in zip(*results, strict=True)]


@every_curvature
def test_over_a_run_scores_are_the_mean_over_its_checkpoints(
    trained, over_two, options
):
    run = trained[1][::2]
    before = trained[0].get_weights()
    is_ekfac = options == CURVATURES["ekfac"]
    method = over_two if is_ekfac else influence(trained, run, **options)
    results = one_by_one(trained, run, BOTH_CALLS, **options)
    for call, apart in zip(BOTH_CALLS, results, strict=True):
        assert np.abs(apart[0] - apart[1]).max() > 1e-3 * np.abs(apart).max()
        np.testing.assert_allclose(call(method), apart.mean(axis=0), rtol=1e-5)
    for now, then in zip(trained[0].get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_a_run_of_one_checkpoint_gives_its_scores_whatever_the_model_has(
    trained,
):
    run = trained[1][:1]
    ((expected,),) = one_by_one(trained, run, curvature="ekfac")
    model = trained[0]
    before = model.get_weights()
    try:
        model.set_weights([weight + 0.1 for weight in before])
        method = influence(trained, run, curvature="ekfac")
        np.testing.assert_allclose(scores_of(method), expected, rtol=1e-6)
    finally:
        model.set_weights(before)


@pytest.mark.parametrize("relative", ["loss", "parameters"])
def test_relative_scores_are_relative_at_each_checkpoint(trained, relative):
    run = trained[1][::2]
    options = {"curvature": "ekfac", "relative": relative}
    (apart,) = one_by_one(trained, run, **options)
    method = influence(trained, run, **options)
    np.testing.assert_allclose(scores_of(method), apart.mean(0), rtol=1e-6)


def test_rankings_over_a_run_are_those_of_all_scores(over_two):
    expected = over_two.influence(TEST, verbose=0).top_k(4)
    ranked = over_two.top_k(TEST, 4, verbose=0)
    for side in ("proponents", "opponents"):
        a, b = getattr(ranked, side), getattr(expected, side)
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_allclose(a.scores, b.scores)


def test_finished_parts_over_a_run_are_those_of_its_checkpoints(
    trained, over_two, tmp_path
):
    expected = scores_of(over_two)
    for _ in range(2):
        kept = over_two.influence(TEST, directory=tmp_path, verbose=0).scores
        np.testing.assert_array_equal(kept, expected)
    others = influence(trained, trained[1][1:], curvature="ekfac")
    with pytest.raises(ValueError, match="another"):
        others.influence(TEST, directory=tmp_path, verbose=0)


@every_curvature
def test_class_weights_are_sample_weights_of_the_training_examples(
    trained, options
):
    x, y = TRAIN
    weighted = x, y, np.array([WEIGHTS[label] for label in y])
    by_class = influence(trained, None, class_weight=WEIGHTS, **options)
    by_sample = kt.InfluenceFunctions(
        trained[0], weighted, damping=DAMPING, **options
    )
    for call in BOTH_CALLS:
        np.testing.assert_allclose(call(by_class), call(by_sample), rtol=1e-6)
    plain = scores_of(influence(trained, None, **options))
    assert not np.allclose(scores_of(by_class), plain, rtol=0.1)


def test_an_inverse_of_one_set_of_weights_serves_no_run(trained, tmp_path):
    run = trained[1]
    solver = kt.RandomizedSketch(4, method="cg")
    sketch = influence(trained, None, solver=solver).inverse
    with pytest.raises(
        ValueError, match=row("inverse-of-run", "a run of 3 checkpoints")
    ):
        influence(trained, run, solver=sketch)
    with pytest.raises(ValueError, match="inverse for each checkpoint"):
        _ = influence(trained, run, solver=solver).inverse


def test_a_run_without_checkpoints_is_refused(trained):
    with pytest.raises(ValueError, match="need a checkpoint"):
        influence(trained, trained[1][:0])


def test_other_weights_than_at_first_are_refused(trained):
    model = trained[0]
    before = model.get_weights()
    method = influence(trained, None, curvature="ekfac")
    try:
        model.set_weights([weight + 0.1 for weight in before])
        for call in *BOTH_CALLS, lambda m: m.inverse:
            with pytest.raises(ValueError, match=row("other-weights")):
                call(method)
    finally:
        model.set_weights(before)
    scores_of(method)


def test_preparing_and_solving_are_announced(trained, monkeypatch, capsys):
    monkeypatch.setattr(progress, "_PATIENCE", -1.0)
    method = influence(trained, trained[1][::2], curvature="ekfac")
    scores_of(method)
    assert not capsys.readouterr().out
    method = influence(trained, trained[1][::2], curvature="ekfac")
    method.influence(TEST, verbose=1)
    printed = capsys.readouterr().out
    announced = "Influence functions: inverse of the curvature, by EKFAC"
    assert printed.count(announced) == 2
    method = influence(trained, None, solver=kt.CG(tol=1e-9))
    method.influence(TEST, verbose=1)
    announced = "Influence functions: 2 systems of equations, by CG"
    assert announced in capsys.readouterr().out


def test_a_plan_tells_the_work_of_all_checkpoints(trained):
    run = str(trained[1].directory)
    method = influence(trained, run, curvature="ekfac", relative="loss")
    plan = method.plan(TEST)
    assert (plan.num_train, plan.num_queries) == (NUM_TRAIN, 2)
    assert plan.num_checkpoints == 3
    assert plan.seconds > 0
    assert method.plan().num_checkpoints == 3
    fresh = influence(trained, trained[1], curvature="ekfac", relative="loss")
    np.testing.assert_array_equal(scores_of(method), scores_of(fresh))


def test_a_plan_does_not_keep_the_warning_back(trained):
    method = influence(trained, None, curvature="ekfac")
    method.plan()
    with pytest.warns(UserWarning, match="not converged"):
        scores_of(method)
