"""The preflight says what scoring will cover and what is in the way."""

import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.check import job
from keras_tracin.check.report import CheckReport, Finding
from keras_tracin.engine.engine import Engine
from tests.error_rows import row, rows, says
from tests.states import Centred, flip, last_weights, state

layers, ops = keras.layers, keras.ops
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Scaled(layers.Layer):
    """A layer of the user's, without a rule of its own."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x, training=False):
        return x * self.scale


def examples(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 4)).astype("float32")
    return x, rng.integers(0, 3, count)


TRAIN, TEST = examples(30, 0), examples(6, 1)


def make_model(*inside, loss=CROSSENTROPY):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, name="frozen", trainable=False),
            layers.BatchNormalization(name="norm"),
            layers.Dropout(0.5, name="dropout"),
            Scaled(name="scaled"),
            *inside,
            layers.Dense(3, kernel_regularizer="l2", name="logits"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), loss)
    return model


def small(*inside):
    """A single layer, for what is not about other layers than these."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), *inside, layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.1), CROSSENTROPY)
    return model


def fit(model, directory):
    callbacks = [kt.TracInCheckpoint(directory)]
    model.fit(*TRAIN, epochs=3, verbose=0, callbacks=callbacks)
    return model, directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return fit(make_model(), tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return fit(small(), tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture(scope="module")
def report(trained):
    return kt.check(trained[0], TRAIN, trained[1], TEST, verbose=0)


def one(findings, topic, *words):
    """The only finding on a topic that has these words, in any order."""
    found = [
        finding
        for finding in findings
        if finding.topic == topic and re.search(says(*words), finding.message)
    ]
    assert len(found) == 1, findings
    return found[0]


def test_a_sound_job_has_no_errors_and_no_warnings(report):
    assert report.ok
    assert report.errors == report.warnings == ()
    assert str(report).endswith(f"ready: {len(report.notes)} notes")


def test_it_names_each_layer_and_how_its_gradients_are_made(report):
    found = {
        layer.name.split("/")[-1]: (layer.kind, layer.method, layer.parameters)
        for layer in report.layers
    }
    assert found == {
        "norm": ("BatchNormalization", "rule", 10),
        "scaled": ("Scaled", "fallback", 5),
        "logits": ("Dense", "rule", 18),
    }
    assert report.parameters == 33


def test_it_says_what_is_left_out_and_why(trained, report):
    assert report.left_out == {
        "frozen (not trainable)": 25,
        "statistics and other state": 10,
    }
    named = kt.check(trained[0], TRAIN, layers=["logits"], verbose=0)
    assert named.parameters == 18
    assert named.left_out["other layers than `layers=` names"] == 15
    # All of the model's numbers are on one side or the other.
    for each in (report, named):
        total = each.parameters + sum(each.left_out.values())
        assert total == trained[0].count_params()


def test_it_names_layers_that_differ_in_training(report):
    message = one(report.notes, "model", "training").message
    for name in ("norm", "dropout", "scaled"):
        assert name in message
    for name in ("logits", "frozen"):
        assert name not in message


def test_it_tells_of_the_loss_and_regularisers(plain, report):
    one(report.notes, "loss", "sparse_categorical_crossentropy, mean over")
    assert "logits" in one(report.notes, "model", "regularisers").message
    summed = keras.losses.MeanSquaredError(reduction="sum")
    given = kt.check(
        plain[0],
        (TRAIN[0], np.eye(3)[TRAIN[1]]),
        loss=summed,
        verbose=0,
    )
    one(given.notes, "loss", "mean_squared_error, summed", "`loss=`")
    assert given.ok


def test_a_train_step_of_its_own_is_a_warning():
    class Own(keras.Sequential):
        def train_step(self, data):
            return super().train_step(data)

    model = Own(small().layers)
    model.compile(loss=CROSSENTROPY)
    found = kt.check(model, TRAIN, verbose=0)
    one(found.warnings, "loss", "train_step", "Own", "`loss=`")
    assert found.ok


def test_it_prints_what_it_returns(trained, capsys):
    found = kt.check(trained[0], TRAIN, trained[1])
    printed = capsys.readouterr().out
    assert printed.strip() == str(found).strip()
    assert max(map(len, printed.splitlines())) <= 80


def test_everything_is_as_it_was(trained):
    model, directory = trained
    before = state(model, directory)
    for inside in (TRAIN, (TRAIN[0], TRAIN[1] + 7)):
        kt.check(model, inside, directory, TEST, verbose=0)
    assert state(model, directory) == before


# --- The data


def test_a_sound_order_is_a_note(report):
    one(report.notes, "train", "30 examples twice, in the same order")
    one(report.notes, "test", "6 examples twice, in the same order")


def test_an_order_that_changes_late_is_found(plain):
    """The methods look at the beginning alone."""
    first = tf.data.Dataset.from_tensor_slices(TRAIN)
    late = first.concatenate(first.shuffle(30)).batch(10)
    found = kt.check(plain[0], late, verbose=0)
    one(found.errors, "train", "60 examples twice", "order", "kt.with_ids")
    bounded = kt.check(plain[0], late, max_examples=20, verbose=0)
    one(bounded.notes, "train", "20 examples twice, in the same order")
    assert bounded.ok


def test_ids_make_any_order_a_note(plain):
    data = kt.with_ids(TRAIN).shuffle(30).batch(10)
    found = kt.check(plain[0], data, verbose=0)
    one(found.notes, "train", "different orders", "ids")
    assert found.ok


def test_ids_do_not_help_against_augmentation(plain):
    rng = np.random.default_rng(0)

    def noisy(x, y):
        noise = tf.numpy_function(lambda: rng.normal(size=4), [], tf.float64)
        return x + tf.cast(tf.ensure_shape(noise, [4]), x.dtype), y

    data = kt.with_ids(TRAIN).map(noisy).batch(10)
    found = kt.check(plain[0], data, verbose=0)
    one(found.warnings, "train", "[0, 1, 2", "20 more", "augmentation")


def test_ids_that_repeat_are_a_warning(plain):
    data = kt.with_ids(TRAIN, [5, 5, *range(7, 34), 33]).batch(10)
    found = kt.check(plain[0], data, verbose=0)
    one(found.warnings, "train", "more than once", "[5, 33]")
    assert found.ok


def test_bad_labels_numbers_and_weights_are_named_by_id(plain):
    x, y = (leaf.copy() for leaf in TRAIN)
    x[3], y[21] = np.nan, 3
    weight = np.ones(30, "float32")
    weight[11] = -1
    data = kt.with_ids((x, y, weight), np.arange(100, 130)).batch(7)
    found = kt.check(plain[0], data, verbose=0)
    one(found.errors, "train", "NaN or infinite values", "[103]")
    one(found.errors, "train", "Labels outside of the classes", "[121]")
    one(found.warnings, "train", "Negative sample weights", "[111]")


def test_data_that_cannot_be_opened_are_an_error(plain):
    found = kt.check(plain[0], (TRAIN[0], TRAIN[1][1:]), verbose=0)
    one(found.errors, "train", rows()["unequal-lengths"])
    assert found.plan is None
    unbatched = tf.data.Dataset.from_tensor_slices(TEST)
    found = kt.check(plain[0], TRAIN, test=unbatched, verbose=0)
    one(found.errors, "test", rows()["unbatched"], "`test`")


# --- The run


def test_the_checkpoints_are_counted(report):
    one(report.notes, "run", "3 checkpoints", "of which scores use 3")


def test_a_single_checkpoint_is_worth_a_note(plain):
    run = kt.TrainingRun(plain[1])[-1:]
    found = kt.check(plain[0], TRAIN, run, verbose=0)
    one(found.notes, "run", "A single checkpoint")
    assert found.ok


@pytest.mark.parametrize(("rate", "rests"), [(1e-5, True), (0.1, False)])
def test_steps_lost_in_half_precision_are_a_warning(rate, rests, tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(8, dtype="bfloat16"),
            layers.Dense(3, dtype="bfloat16"),
        ]
    )
    model.compile(keras.optimizers.SGD(rate), CROSSENTROPY)
    report = kt.check(model, TRAIN, fit(model, tmp_path)[1], verbose=0)
    lost = [w for w in report.warnings if "weights in bfloat16" in w.message]
    assert len(lost) == rests
    assert all("mixed_bfloat16" in one.remedy for one in lost)


def test_a_checkpoint_at_rate_zero_is_a_warning(plain):
    paths = [c.path for c in kt.TrainingRun(plain[1])]
    run = kt.TrainingRun.from_weights(paths, [0.1, 0.0, 0.1])
    found = kt.check(plain[0], TRAIN, run, verbose=0)
    one(found.warnings, "run", "Skipping", paths[1].name)
    one(found.notes, "run", "of which scores use 2")
    assert found.plan.num_checkpoints == 2


def test_each_checkpoint_that_does_not_load_is_an_error(plain, tmp_path):
    model, directory = plain
    copy = shutil.copytree(directory, tmp_path / "run")
    flip(last_weights(copy))
    found = kt.check(model, TRAIN, copy, verbose=0)
    one(found.errors, "run", last_weights(copy).name, "damaged")
    assert found.plan.num_checkpoints == 2
    found = kt.check(model, TRAIN, tmp_path / "absent", verbose=0)
    one(found.errors, "run", rows()["missing-run"])


def test_weights_that_do_not_fit_or_are_nan_are_errors(plain, tmp_path):
    model, directory = plain
    other = keras.Sequential([keras.Input((4,)), layers.Dense(4)])
    other.compile(loss=CROSSENTROPY)
    found = kt.check(other, TRAIN, directory, verbose=0)
    assert len(found.errors) == 3
    assert all(
        re.search(row("other-architecture"), f.message) for f in found.errors
    )
    printed = " ".join(str(found).split())
    assert printed.count("is not the one whose training wrote") == 1
    assert "And 2 more like this. fix: Pass the model" in printed
    paths = [c.path for c in kt.TrainingRun(directory)]
    twin = small()
    twin.set_weights([w * np.nan for w in model.get_weights()])
    path = tmp_path / "nan.weights.h5"
    twin.save_weights(path)
    run = kt.TrainingRun.from_weights([*paths, path], 0.1)
    found = kt.check(model, TRAIN, run, verbose=0)
    one(found.errors, "run", "nan.weights.h5", rows()["nan-weights"])
    # Where they are the ones to be used, the present weights count.
    one(kt.check(twin, TRAIN, verbose=0).errors, "model", "NaN or infinite in")
    found = kt.check(twin, TRAIN, directory, verbose=0)
    one(found.warnings, "model", "NaN or infinite in")
    assert found.ok


# --- The model and the job


def test_an_unbuilt_model_is_built(trained):
    model = keras.Sequential([layers.Dense(3)])
    model.compile(loss=CROSSENTROPY)
    found = kt.check(model, TRAIN, verbose=0)
    assert found.ok
    assert found.parameters == 15


def test_a_model_without_a_loss_is_an_error():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    found = kt.check(model, TRAIN, verbose=0)
    one(found.errors, "model", rows()["uncompiled"])
    assert not found.ok


def test_a_layer_that_mixes_examples_is_an_error():
    found = kt.check(small(Centred(name="centred")), TRAIN, verbose=0)
    one(found.errors, "job", "centred", rows()["mixing-layer"])
    assert found.plan is None


def test_gradients_alone_and_together_are_compared(trained, monkeypatch):
    """As where an output does not show what a gradient does."""
    model, _ = trained
    scorer = Engine(model, TRAIN)
    job.check_gradients(scorer, "")  # raises nothing

    @tf.custom_gradient
    def shared(x):
        return tf.identity(x), lambda grad: grad + tf.reduce_mean(grad, axis=0)

    class Sharing(layers.Layer):
        def call(self, x):
            return shared(x)

    found = kt.check(make_model(Sharing()), TRAIN, verbose=0)
    one(found.errors, "job", "sharing", rows()["mixing-layer"], "passes back")


def test_a_layer_that_is_random_is_a_warning():
    class Noisy(layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.seeds = keras.random.SeedGenerator(0)

        def call(self, x):
            return x + keras.random.normal(ops.shape(x), seed=self.seeds)

    model = small(Noisy(name="noisy"))
    before = state(model)
    found = kt.check(model, TRAIN, verbose=0)
    one(found.warnings, "job", "noisy", "random")
    assert state(model) == before


def test_the_plan_is_that_of_the_method(plain, report):
    tracin = kt.TracIn(plain[0], TRAIN, plain[1], memory_limit=10**7)
    limited = {"memory_limit": 10**7, "verbose": 0}
    found = kt.check(plain[0], TRAIN, plain[1], TEST, **limited)
    assert found.plan == tracin.plan(TEST)
    found = kt.check(plain[0], TRAIN, plain[1], **limited)
    assert found.plan == tracin.plan()
    assert report.seconds > 0


def test_examples_at_fault_are_named_once(plain):
    y = TRAIN[1].copy()
    y[[7, 21]] = 3
    found = kt.check(plain[0], (TRAIN[0], y), verbose=0)
    one(found.errors, "train", "Labels outside of the classes", "[7, 21]")
    assert len(found.errors) == 1


def test_a_missing_loss_is_told_beside_data_that_cannot_be_opened():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    data = tf.data.Dataset.from_tensor_slices(TRAIN).shuffle(30).batch(8)
    found = kt.check(model, data, test=TEST, verbose=0)
    one(found.errors, "train", rows()["unstable-data"])
    one(found.errors, "model", rows()["uncompiled"])


def test_the_cost_comes_first_and_what_is_covered(report):
    first, work, covered, *_ = str(report).splitlines()
    assert re.fullmatch(
        r"cost of TracIn.top_k: .*, about \d+ MB of memory", first
    )
    assert work.startswith("  for 30 training examples × 6 queries × 3 check")
    assert covered.startswith("covered: 33 parameters in 3 layers; left out")
    assert "/scaled (Scaled)" in str(report)


def test_findings_are_short_and_say_what_to_do_on_a_line_of_its_own(report):
    for finding in report.notes:
        text = f"{finding.severity}, {finding.topic}: {finding.message}"
        assert len(text) < 190, text
    finding = Finding("error", "run", "Files are gone. Pass others, or wait.")
    assert (finding.fault, finding.remedy) == (
        "Files are gone.",
        "Pass others, or wait.",
    )
    lines = str(CheckReport((), {}, (finding,), None)).splitlines()
    assert lines[1:3] == [
        "error, run: Files are gone.",
        "  fix: Pass others, or wait.",
    ]
    whole = Finding("note", "run", "Pass through.")
    assert (whole.fault, whole.remedy) == ("Pass through.", "")


def test_a_report_orders_what_it_says():
    findings = tuple(
        Finding(severity, "run", f"{severity} message " * 20)
        for severity in ("error", "warning", "note")
    )
    report = CheckReport((), {}, findings, None)
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "cost: not known before errors are fixed"
    assert lines[1].startswith("error, run: error message")
    assert lines[-1] == "not ready: 1 error, 1 warning, 1 note"
    assert str(CheckReport((), {}, (), None)) == "ready: no findings"
