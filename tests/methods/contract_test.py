"""What every method does: one table of tests over all of them."""

import json
import re
import sys

import keras
import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.engine.parts import Parts
from tests.error_rows import row

NUM_TRAIN, NUM_TEST = 20, 3
RNG = np.random.default_rng(0)
X = RNG.normal(size=(NUM_TRAIN, 4)).astype("float32")
Y = RNG.integers(0, 3, NUM_TRAIN)
IDS = np.arange(100, 100 + NUM_TRAIN)
QUERY_IDS = np.array(["a", "b", "c"])
TRAIN = kt.with_ids((X, Y), IDS).batch(8)
TEST = kt.with_ids((X[:3] + 1, Y[:3]), QUERY_IDS).batch(2)

pytestmark = pytest.mark.filterwarnings("ignore:The model has not converged")


def influence(model, run, **options):
    options = {"damping": 0.1, "curvature": "gauss_newton"} | options
    return kt.InfluenceFunctions(model, TRAIN, **options)


def representer(model, run, **options):
    return kt.RepresenterPoints(model, TRAIN, l2=0.01, verbose=0, **options)


def tracin(model, run, **options):
    return kt.TracIn(model, TRAIN, run, **options)


def unrolled(model, run):
    return kt.UnrolledInfluence(model, TRAIN, run)


METHODS = {
    "TracIn": tracin,
    "TracIn, projected": lambda model, run: tracin(
        model, run, projection=kt.TensorSketch(16)
    ),
    "TracIn, optimizer-aware": lambda model, run: tracin(
        model, run, optimizer_aware=True
    ),
    "InfluenceFunctions, CG": influence,
    "InfluenceFunctions, ekfac, relative": lambda model, run: influence(
        model, run, curvature="ekfac", relative="loss"
    ),
    "SOURCE": lambda model, run: kt.SOURCE(model, TRAIN, run),
    "TRAK": lambda model, run: kt.TRAK(
        model, TRAIN, run, projection=kt.TensorSketch(8)
    ),
    "RepresenterPoints": representer,
    "RepresenterPoints, lje": lambda model, run: representer(
        model, run, method="lje"
    ),
    "UnrolledInfluence": unrolled,
    "EmbeddingSimilarity": lambda model, run: kt.evaluation.EmbeddingSimilarity(
        model, TRAIN
    ),
    "Ensemble": lambda model, run: kt.Ensemble(
        [tracin(model, run), tracin(model, run[-1:])]
    ),
    "Ensemble, scaled": lambda model, run: kt.Ensemble(
        [representer(model, run), unrolled(model, run)], scale="query"
    ),
}
AT_PRESENT_WEIGHTS = (
    "InfluenceFunctions",
    "RepresenterPoints",
    "EmbeddingSimilarity",
)
WITHOUT_SELF_INFLUENCE = {
    "UnrolledInfluence": row("no-self-influence", "Use `kt.TracIn`"),
    "EmbeddingSimilarity": row("no-self-similarity"),
    "Ensemble, scaled": row("no-self-influence", "Use `kt.TracIn`"),
}


class Made:
    """A method of the table, its model, and the answers to its plain calls."""

    def __init__(self, name, model, run):
        self.name, self.model = name, model
        self.method = METHODS[name](model, run)
        self.scores = self.method.influence(TEST, verbose=0)

    @property
    def has_self_influence(self):
        return self.name not in WITHOUT_SELF_INFLUENCE

    def calls(self):
        """The three calls as functions of keywords; two for some methods."""
        method = self.method
        calls = {
            "influence": lambda **o: {
                "scores": method.influence(TEST, verbose=0, **o).scores
            },
            "top_k": lambda **o: rankings(
                method.top_k(TEST, 4, verbose=0, **o)
            ),
        }
        if self.has_self_influence:
            calls["self_influence"] = lambda **o: vars(
                method.self_influence(verbose=0, **o)
            )
        return calls


def rankings(top):
    return {
        f"{side} {part}": getattr(getattr(top, side), part)
        for side in ("proponents", "opponents")
        for part in ("ids", "scores")
    }


def assert_same(received, expected):
    assert received.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(received[name], array, err_msg=name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model, trained once for all methods, and its run."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, activation="tanh"),
            keras.layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05, epsilon=1e-3), loss)
    directory = tmp_path_factory.mktemp("contract")
    kt.record_training(model, TRAIN, directory, epochs=2)
    return model, kt.TrainingRun(directory)


@pytest.fixture(scope="module", params=METHODS)
def made(request, trained):
    return Made(request.param, *trained)


def state(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(v).copy() for v in variables]


def assert_unchanged(model, before):
    for old, new in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(old, new)
    assert not any("call" in vars(x) for x in model._flatten_layers())


def test_scores_carry_the_ids_of_the_data(made):
    assert made.scores.scores.shape == (NUM_TEST, NUM_TRAIN)
    assert np.isfinite(made.scores.scores).all()
    assert np.abs(made.scores.scores).max() > 0
    np.testing.assert_array_equal(made.scores.train_ids, IDS)
    np.testing.assert_array_equal(made.scores.query_ids, QUERY_IDS)
    if made.has_self_influence:
        own = made.method.self_influence(verbose=0)
        np.testing.assert_array_equal(own.ids, IDS)
        assert own.scores.shape == (NUM_TRAIN,)


def test_top_k_is_the_ranking_of_influence(made):
    top = rankings(made.method.top_k(TEST, 4, verbose=0))
    assert_same(top, rankings(made.scores.top_k(4)))


def test_groups_are_the_sums_of_their_members(made):
    groups = {"first": IDS[:3], "some": IDS[[1, 5, 7]]}
    received = made.method.influence(TEST, groups=groups, verbose=0)
    scores = made.scores.scores.astype("float64")
    expected = np.stack(
        [scores[:, :3].sum(axis=1), scores[:, [1, 5, 7]].sum(axis=1)], axis=1
    )
    size = np.abs(scores).max()
    np.testing.assert_allclose(
        received.scores, expected, rtol=1e-4, atol=1e-5 * size
    )
    assert received.train_ids.tolist() == ["first", "some"]
    np.testing.assert_array_equal(received.query_ids, QUERY_IDS)
    same = made.method.group_influence(TEST, groups, verbose=0)
    np.testing.assert_array_equal(same.scores, received.scores)
    alone = made.method.group_influence(TEST, IDS[:3], verbose=0)
    assert alone.train_ids.tolist() == ["group"]
    with pytest.raises(ValueError, match=row("group-ids", "[7]")):
        made.method.influence(TEST, groups={"none": [7]}, verbose=0)


def test_among_scores_some_of_the_training_examples(made):
    some = made.method.among(IDS[4:9])
    received = some.influence(TEST, verbose=0)
    np.testing.assert_array_equal(received.train_ids, IDS[4:9])
    expected = made.scores.scores[:, 4:9]
    if made.name != "Ensemble, scaled":  # has other deviations
        size = np.abs(expected).max()
        np.testing.assert_allclose(
            received.scores, expected, rtol=1e-4, atol=1e-5 * size
        )
    top = some.top_k(TEST, 5, verbose=0)
    assert_same(rankings(top), rankings(received.top_k(5)))
    with pytest.raises(ValueError, match=row("k", "k=6 with 5 examples")):
        some.top_k(TEST, 6, verbose=0)
    again = made.method.influence(TEST, verbose=0)
    np.testing.assert_array_equal(again.scores, made.scores.scores)


def test_a_restricted_method_tells_the_number_of_its_examples(made):
    assert made.method.among(IDS[4:9]).num_train == 5
    assert made.method.among(IDS[4:9]).among(IDS[6:9]).num_train == 3


def test_scores_stay_within_other_limits(made):
    size = np.abs(made.scores.scores).max()
    limited = made.method.within(batch_sizes=(4, 4), memory_limit=2**16)
    received = limited.influence(TEST, verbose=0)
    np.testing.assert_allclose(
        received.scores, made.scores.scores, rtol=1e-4, atol=1e-5 * size
    )
    some = limited.among(IDS[4:9]).within(memory_limit=2**17)
    ids = some.influence(TEST, verbose=0).train_ids
    np.testing.assert_array_equal(ids, IDS[4:9])
    with pytest.raises(TypeError, match="jit_compile"):
        made.method.within(jit_compile=True)


def test_data_may_be_read_in_another_order_each_time(
    made, trained, monkeypatch
):
    shuffled = kt.with_ids((X, Y), IDS).shuffle(NUM_TRAIN).batch(8)
    monkeypatch.setattr(sys.modules[__name__], "TRAIN", shuffled)
    method = METHODS[made.name](*trained)
    if made.name.startswith("Ensemble"):
        with pytest.raises(ValueError, match=row("ensemble-order", "ids")):
            method.influence(TEST, verbose=0)
        return
    scores = method.influence(TEST, verbose=0)
    order = np.argsort(scores.train_ids)
    np.testing.assert_array_equal(scores.train_ids[order], IDS)
    scale = np.abs(made.scores.scores).max()
    np.testing.assert_allclose(
        scores.scores[:, order], made.scores.scores, atol=1e-4 * scale
    )
    if made.has_self_influence:
        expected = made.method.self_influence(verbose=0).scores
        again = method.self_influence(verbose=0)
        np.testing.assert_allclose(
            again.scores[np.argsort(again.ids)],
            expected,
            atol=1e-4 * np.abs(expected).max(),
        )


def test_a_call_that_was_stopped_goes_on_to_the_same_bits(
    made, tmp_path, monkeypatch
):
    put = Parts.put
    for name, call in made.calls().items():
        directory = tmp_path / name

        def stop(self, *args, **kwargs):
            put(self, *args, **kwargs)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Parts, "put", stop)
            with pytest.raises(KeyboardInterrupt):
                call(directory=directory)
        resumed = call(directory=directory)
        assert_same(resumed, call(directory=tmp_path / f"{name} whole"))
        with monkeypatch.context() as patch:
            patch.delattr(Parts, "put")  # all is there
            assert_same(call(directory=directory), resumed)
        for received, expected in zip(
            resumed.values(), call().values(), strict=True
        ):
            if expected.dtype.kind == "f":
                size = np.abs(expected).max()
                np.testing.assert_allclose(
                    received, expected, rtol=1e-4, atol=1e-5 * size
                )
    with pytest.raises(ValueError, match=row("other-parts", "k=3")):
        made.method.top_k(TEST, 3, directory=tmp_path / "top_k", verbose=0)
    with pytest.raises(ValueError, match=row("other-parts")):
        made.method.top_k(TEST, 4, directory=tmp_path / "influence", verbose=0)


def test_the_plan_says_what_a_call_will_take(made):
    plan = made.method.plan(TEST)
    # The number of batches, three of eight, tells a dataset's size nearly.
    assert plan.num_train in (NUM_TRAIN, 24)
    assert plan.num_train == NUM_TRAIN or "about 24" in str(plan)
    assert plan.num_queries in (NUM_TEST, 4)
    assert plan.memory > 0
    assert re.search(r"\d.* MB of memory", str(plan))
    if made.has_self_influence:
        assert "training examples" in str(made.method.plan())
    else:
        message = WITHOUT_SELF_INFLUENCE[made.name]
        with pytest.raises(NotImplementedError, match=message):
            made.method.plan()


def test_the_description_is_json_and_the_repr_is_readable(made):
    described = made.method.describe()
    assert json.loads(json.dumps(described)) == described
    kind = type(made.method).__name__
    assert described["method"] == kind
    shown = repr(made.method)
    assert shown.startswith(f"{kind}(")
    assert shown.count("\n") <= 4
    assert " at 0x" not in shown
    assert " object" not in shown


OTHER = kt.with_ids((X[3:6] - 1, Y[3:6]), QUERY_IDS).batch(2)


def test_a_contrast_takes_the_scores_of_other_queries_off(made, tmp_path):
    if made.name == "Ensemble, scaled":
        with pytest.raises(ValueError, match=row("contrast-scale", "'query'")):
            made.method.influence(TEST, contrast=OTHER, verbose=0)
        return
    other = made.method.influence(OTHER, verbose=0).scores
    expected = made.scores.scores - other
    assert np.abs(other).max() > 0
    for directory in (None, tmp_path / "parts"):
        both = made.method.influence(
            TEST, contrast=OTHER, directory=directory, verbose=0
        )
        np.testing.assert_allclose(both.scores, expected, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(both.query_ids, QUERY_IDS)
        np.testing.assert_array_equal(both.train_ids, made.scores.train_ids)


def test_a_contrast_has_one_query_for_each(made):
    if made.name == "Ensemble, scaled":
        pytest.skip("scores that are scaled by query take no contrast")
    with pytest.raises(ValueError, match=row("contrast-count", "3 queries")):
        made.method.influence(
            TEST, contrast=OTHER.unbatch().take(2).batch(2), verbose=0
        )


@pytest.mark.parametrize("k", [0, 2.5, True, NUM_TRAIN + 1])
def test_a_k_that_cannot_be_is_refused(made, k):
    with pytest.raises(ValueError, match=row("k")):
        made.method.top_k(TEST, k, verbose=0)


def test_the_model_is_as_it_was_also_after_an_error(made):
    before = state(made.model)
    for call in made.calls().values():
        call()
    assert_unchanged(made.model, before)
    narrow = X[:3, :2], Y[:3]
    broken = np.full([3, 4], np.nan, "float32"), Y[:3]
    for test in (narrow, broken):
        with pytest.raises(ValueError, match=r"."):
            made.method.influence(test, verbose=0)
        assert_unchanged(made.model, before)


def test_other_weights_change_no_scores_in_silence(made):
    before = made.model.get_weights()
    made.model.set_weights([2 * weight for weight in before])
    try:
        fitted = made.name.startswith(AT_PRESENT_WEIGHTS)
        if fitted or made.name == "Ensemble, scaled":
            for call in (
                *made.calls().values(),
                lambda: made.method.plan(TEST),
            ):
                with pytest.raises(ValueError, match=row("other-weights")):
                    call()
        else:
            scores = made.method.influence(TEST, verbose=0).scores
            np.testing.assert_array_equal(scores, made.scores.scores)
    finally:
        made.model.set_weights(before)
    scores = made.method.influence(TEST, verbose=0).scores
    np.testing.assert_array_equal(scores, made.scores.scores)


def test_silence_is_kept(made, capsys):
    for call in made.calls().values():
        call()
    assert capsys.readouterr().out == ""


def test_self_influence_that_a_method_has_not_is_one_error(made, tmp_path):
    if made.has_self_influence:
        pytest.skip("the method has self-influence")
    for options in ({}, {"verbose": 0}, {"directory": tmp_path}):
        message = WITHOUT_SELF_INFLUENCE[made.name]
        with pytest.raises(NotImplementedError, match=message):
            made.method.self_influence(**options)
    assert not list(tmp_path.iterdir())


def twice(y_true, y_pred):
    return 2 * keras.losses.sparse_categorical_crossentropy(
        y_true, y_pred, from_logits=True
    )


# Two methods of one class whose scores have other units, and these units.
UNITS = {
    "measures of a query": (
        tracin,
        lambda model, run: tracin(model, run, query_loss="margin"),
        ("TracIn(...query_loss='loss')", "TracIn(...query_loss='margin')"),
    ),
    "losses of training": (
        tracin,
        lambda model, run: tracin(model, run, loss="poisson"),
        ("TracIn(loss=SparseCategoricalCrossentropy", "loss='poisson'"),
    ),
    "losses that points are made of": (
        representer,
        lambda model, run: representer(model, run, loss=twice),
        ("loss=SparseCategoricalCrossentropy", "twice"),
    ),
    "learning rates and updates": (
        tracin,
        METHODS["TracIn, optimizer-aware"],
        ("TracIn(...query_loss='loss', optimizer_aware=True)",),
    ),
    "lengths": (
        influence,
        lambda model, run: influence(model, run, relative="loss"),
        ("relative='loss'",),
    ),
    "representer points": (
        representer,
        METHODS["RepresenterPoints, lje"],
        ("method='l2'", "method='lje'"),
    ),
    "measures, unrolled": (
        unrolled,
        lambda model, run: kt.UnrolledInfluence(
            model, TRAIN, run, query_loss="margin"
        ),
        ("query_loss='loss'", "query_loss='margin'"),
    ),
}


@pytest.mark.parametrize(
    ("make", "make_other", "named"), UNITS.values(), ids=UNITS
)
def test_an_ensemble_averages_scores_of_one_unit(
    trained, make, make_other, named
):
    one, other = make(*trained), make_other(*trained)
    for pair in ([one, one], [other, other]):
        assert kt.Ensemble(pair).unit == pair[0].unit
    with pytest.raises(ValueError, match=row("ensemble-units", *named)):
        kt.Ensemble([one, other])
    assert kt.Ensemble([one, other], scale="query").attributors == [one, other]
