"""Snapshots of layers that Keras does not save as they are.

What is right is what a callback of the tests kept at each epoch's end, put into
the model by assigning its variables.
"""

import json
import shutil

import keras
import numpy as np
import pytest
from keras import layers

import keras_tracin as kt
from keras_tracin.losses.per_example import per_example_loss
from keras_tracin.runs import (
    RunWriter,
    TrainingRun,
    exact,
    recorded_state,
    run_weights,
)
from tests.error_rows import row
from tests.zoo.one_by_one import gradients_one_by_one

RATE = 0.05
EPOCHS, STEPS = 2, 2
RNG = np.random.default_rng(0)
X = RNG.normal(size=[12, 4]).astype("float32")
TOKENS = RNG.integers(0, 6, size=[12, 4])
Y = RNG.normal(size=[12, 2]).astype("float32")


class Lossy(layers.Layer):
    """Saves half of its kernel, and not its bias."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 3), name="kernel")
        self.bias = self.add_weight(shape=(3,), name="bias")

    def call(self, x):
        return x @ self.kernel + self.bias

    def save_own_variables(self, store):
        store["kernel"] = self.kernel * 0.5

    def load_own_variables(self, store):
        self.kernel.assign(store["kernel"])


class Scaled(layers.Dense):
    """Adds a weight that `Dense.save_own_variables` knows nothing of."""

    def build(self, shape):
        super().build(shape)
        self.scale = self.add_weight(shape=(3,), name="scale")

    def call(self, x):
        return super().call(x) * (1 + self.scale)


class Halving(layers.Layer):
    """Changes its own weight as it is saved, as DINOv2's embeddings do."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 3), name="kernel")

    def call(self, x):
        return x @ self.kernel

    def save_own_variables(self, store):
        self.kernel.assign(self.kernel / 2)
        super().save_own_variables(store)


def dense(**options):
    return layers.Dense(3, activation="tanh", **options)


def chain(layer, inputs=None, quantize=None, rank=None):
    inputs = keras.Input((4,)) if inputs is None else inputs
    model = keras.Sequential(
        [
            inputs,
            layer,
            layers.Flatten(),
            layers.Dense(2, dtype="float32"),
        ]
    )
    if quantize:
        layer.quantize(quantize)
    if rank:
        layer.enable_lora(rank)
    return model


def einsum():
    return layers.EinsumDense("ab,bc->ac", output_shape=3, bias_axes="c")


def embedding():
    return layers.Embedding(6, 3)


def tokens():
    return keras.Input((4,), dtype="int32")


# Whether they need a second file.
CASES = {
    "dense": (lambda: chain(dense(), rank=4), True),
    "einsum": (lambda: chain(einsum(), rank=2), True),
    "embedding": (lambda: chain(embedding(), tokens(), rank=2), True),
    "bfloat16": (lambda: chain(dense(dtype="mixed_bfloat16"), rank=2), True),
    "stored bfloat16": (lambda: chain(dense(dtype="bfloat16"), rank=2), True),
    "int8": (lambda: chain(dense(), quantize="int8", rank=2), True),
    "int4": (lambda: chain(dense(), quantize="int4", rank=2), True),
    "lossy": (lambda: chain(Lossy()), True),
    "scaled": (lambda: chain(Scaled(3)), True),
    "halving": (lambda: chain(Halving()), True),
    "plain": (lambda: chain(dense()), False),
    "plain bfloat16": (lambda: chain(dense(dtype="bfloat16")), False),
    "int8 alone": (lambda: chain(dense(), quantize="int8"), False),
    "shared": (
        lambda: chain(layers.SpectralNormalization(layers.Dense(3))),
        False,
    ),
    "statistics": (lambda: chain(layers.BatchNormalization()), False),
}


def build(name):
    keras.utils.set_random_seed(1)
    model = CASES[name][0]()
    # A few steps of a small model take less time than to compile one.
    model.compile(keras.optimizers.Adam(RATE), "mse", run_eagerly=True)
    return model


def inputs_of(model):
    return TOKENS if "int" in str(model.inputs[0].dtype) else X


def values(model):
    return [keras.ops.convert_to_numpy(w) for w in model.weights]


def put(model, kept):
    for weight, value in zip(model.weights, kept, strict=True):
        weight.assign(value)


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


class Keep(keras.callbacks.Callback):
    """The weights before the first step and after each epoch."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def on_train_batch_begin(self, batch, logs=None):
        if not self.kept:
            self.kept.append(values(self.model))

    def on_epoch_end(self, epoch, logs=None):
        self.kept.append(values(self.model))


def fit(model, *callbacks, epochs=EPOCHS, **options):
    model.fit(
        inputs_of(model),
        Y,
        batch_size=len(Y) // STEPS,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
        **options,
    )


def record(model, directory, **options):
    keep = Keep()
    fit(model, kt.TracInCheckpoint(directory), keep, **options)
    return TrainingRun(directory), keep.kept


def forget(directory):
    """Makes a run what the first version of the library would have written."""
    path = directory / "run.json"
    manifest = json.loads(path.read_text())
    manifest["format_version"] = 1
    for entry in [manifest["initial"], *manifest["checkpoints"]]:
        beside = entry.pop("exact", None)
        if beside:
            (directory / beside["file"]).unlink()
    for entry in manifest["checkpoints"]:
        del entry["weights_digest"]
    path.write_text(json.dumps(manifest))
    return TrainingRun(directory)


def oracle(model, kept):
    """TracIn's scores at weights that are assigned."""
    x, before = inputs_of(model), values(model)
    total = 0.0
    for weights in kept:
        put(model, weights)
        rows = gradients_one_by_one(model, x, Y, per_example_loss(model))
        total = total + RATE * rows.astype("float64") @ rows.T.astype("float64")
    put(model, before)
    return total


@pytest.mark.parametrize("name", CASES)
def test_a_snapshot_gives_back_every_weight_as_it_was(tmp_path, name):
    model = build(name)
    run, kept = record(model, tmp_path)
    after = values(model)
    assert_same(after, kept[-1])  # recording did not change the training
    assert any(
        not np.array_equal(a, b) for a, b in zip(kept[0], kept[1], strict=True)
    )
    with run_weights(model) as load:
        for snapshot, weights in zip([run.initial, *run], kept, strict=True):
            load(snapshot)
            assert_same(values(model), weights)
            load(getattr(snapshot, "path", snapshot))
            assert_same(values(model), weights)
    assert_same(values(model), after)
    files = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    needed = CASES[name][1]
    assert (run[-1].exact is not None) == needed
    assert any(file.endswith(exact.ENDING) for file in files) == needed
    run.verify()


@pytest.mark.parametrize("name", ["dense", "embedding"])
def test_scores_are_of_the_weights_that_training_had(tmp_path, name):
    model = build(name)
    run, kept = record(model, tmp_path)
    data = (inputs_of(model), Y)
    scores = kt.TracIn(model, data, run).influence(data, verbose=0).scores
    expected = oracle(model, kept[1:])
    np.testing.assert_allclose(
        scores, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize("name", ["dense", "int8"])
def test_a_run_is_continued_as_if_it_had_not_stopped(tmp_path, name):
    whole = build(name)
    record(whole, tmp_path / "whole", epochs=2)
    record(build(name), tmp_path / "run", epochs=1)

    model = build(name)  # as in another process
    run = TrainingRun(tmp_path / "run")
    run.restore(model)
    assert int(model.optimizer.iterations) == STEPS
    fit(model, kt.TracInCheckpoint(tmp_path / "run"), epochs=1)
    assert_same(values(model), values(whole))
    run = TrainingRun(tmp_path / "run")
    assert [c.step for c in run] == [STEPS, 2 * STEPS]
    run.verify()


def test_going_back_to_a_checkpoint_restores_it_all(tmp_path):
    model = build("dense")
    run, kept = record(model, tmp_path)
    run[0].restore(model)
    assert_same(values(model), kept[1])
    with pytest.warns(UserWarning, match="at step 2 .* up to step 4"):
        fit(model, kt.TracInCheckpoint(tmp_path), epochs=1)
    files = sorted(p.name for p in (tmp_path / "checkpoints").glob("*.npz"))
    assert files == [f"step-{step:08d}.exact.npz" for step in (0, 2, 4)]
    assert [c.step for c in TrainingRun(tmp_path)] == [2, 4]


def test_a_run_without_checkpoints_restores_its_beginning(tmp_path):
    model = build("dense")
    run, kept = record(model, tmp_path, epochs=1)
    assert len(run.select([])) == 0
    run.select([]).restore(model)
    assert_same(values(model), kept[0])


def test_loading_by_keras_is_not_taken_for_the_state(tmp_path):
    """LoRA is merged then, and the message says what restores it."""
    model = build("dense")
    run, _ = record(model, tmp_path)
    model.load_weights(run[-1].path)
    with pytest.raises(ValueError, match=r"restore\(model\).* with LoRA"):
        fit(model, kt.TracInCheckpoint(tmp_path))
    run.restore(model)
    fit(model, kt.TracInCheckpoint(tmp_path), epochs=1)
    assert len(TrainingRun(tmp_path)) == EPOCHS + 1


def test_the_optimizer_of_a_model_with_lora_is_read(tmp_path):
    model = build("dense")
    run, _ = record(model, tmp_path)
    velocities = model.optimizer._velocities
    with recorded_state(model, run[-1]) as state:
        assert_same(
            [state.slot("_velocities", v) for v in model.trainable_variables],
            [keras.ops.convert_to_numpy(v) for v in velocities],
        )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dense", row("merged-lora", "'dense...Record the run again")),
        ("embedding", row("merged-lora", "'embedding...Record the run again")),
        (
            "lossy",
            row(
                "own-saving",
                "'lossy... code of their own...Record the run again",
            ),
        ),
        ("halving", row("own-saving", "'halving... code of their own")),
    ],
)
def test_runs_of_an_earlier_version_are_refused(tmp_path, name, message):
    model = build(name)
    _, kept = record(model, tmp_path)
    data = (inputs_of(model), Y)
    run = forget(tmp_path)
    with pytest.raises(ValueError, match=message):
        kt.TracIn(model, data, run).influence(data, verbose=0)
    with pytest.raises(ValueError, match=message):
        run.restore(model)
    assert_same(values(model), kept[-1])


def test_other_runs_of_an_earlier_version_are_read(tmp_path):
    model = build("statistics")
    _, kept = record(model, tmp_path)
    run = forget(tmp_path)
    with run_weights(model) as load:
        load(run[1])
        assert_same(values(model), kept[2])


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_adopted_files_with_merged_lora_are_refused(tmp_path, suffix):
    model = build("dense")
    path = tmp_path / f"a{suffix}"
    (model.save if suffix == ".keras" else model.save_weights)(path)
    run = TrainingRun.from_weights([path], RATE)
    with pytest.raises(
        ValueError, match=row("merged-lora", "LoRA in the layers")
    ):
        kt.TracIn(model, (X, Y), run)


def test_adopted_files_that_lack_a_weight_are_refused(tmp_path):
    model = build("lossy")
    before = values(model)
    model.save_weights(tmp_path / "a.weights.h5")
    run = TrainingRun.from_weights([tmp_path / "a.weights.h5"], RATE)
    tracin = kt.TracIn(model, (X, Y), run)
    with pytest.raises(
        ValueError, match=row("missing-weight", "weight ...bias")
    ):
        tracin.self_influence(verbose=0)
    assert_same(values(model), before)


def test_snapshots_can_be_adopted_with_what_lies_beside_them(tmp_path):
    model = build("dense")
    run, kept = record(model, tmp_path / "run")
    copies = tmp_path / "copies"
    shutil.copytree(tmp_path / "run" / "checkpoints", copies)
    for paths in (
        [c.path for c in run],
        [copies / c.path.name for c in run],
    ):
        adopted = TrainingRun.from_weights(paths, RATE)
        with run_weights(model) as load:
            load(adopted[1])
            assert_same(values(model), kept[2])


def test_a_damaged_or_missing_second_file_is_named(tmp_path):
    model = build("dense")
    run, _ = record(model, tmp_path)
    path = run[-1].exact
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=row("flipped-bit", "exact.npz is")):
        run.verify()
    with pytest.raises(ValueError, match=row("flipped-bit", "exact.npz is")):
        kt.TracIn(model, (X, Y), run)
    path.unlink()
    with pytest.raises(ValueError, match=row("missing-exact")):
        TrainingRun(tmp_path)


def test_a_layer_that_keras_skips_is_in_the_second_file(tmp_path):
    """Keras saves no layer of a container in an attribute it passes over."""

    class Hidden(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = layers.Dense(3)
            self.second = layers.Dense(3)

        def call(self, x):
            return self.second(self.first(x))

        def __dir__(self):
            names = super().__dir__()
            return [
                n for n in names if n not in ("second", "_layers", "layers")
            ]

    model = Hidden()
    model(X[:1])
    writer = RunWriter.create(tmp_path, model)
    writer.close()
    kept = values(model)
    listed = exact._read(tmp_path / "checkpoints/step-00000000.exact.npz")
    assert sorted(listed) == [2, 3]
    put(model, [weight * 0 for weight in kept])
    TrainingRun(tmp_path).restore(model)
    assert_same(values(model), kept)


def test_adapters_of_a_keras_hub_backbone_are_kept(tmp_path):
    hub = pytest.importorskip("keras_hub")
    keras.utils.set_random_seed(0)
    backbone = hub.models.GPT2Backbone(
        vocabulary_size=8,
        num_layers=1,
        num_heads=2,
        hidden_dim=4,
        intermediate_dim=6,
        dropout=0.0,
        max_sequence_length=5,
    )
    backbone.enable_lora(2)
    ids = {
        "token_ids": keras.Input((5,), dtype="int32", name="token_ids"),
        "padding_mask": keras.Input((5,), dtype="int32", name="padding_mask"),
    }
    pooled = layers.GlobalAveragePooling1D()(backbone(ids))
    model = keras.Model(ids, layers.Dense(2)(pooled))
    model.compile(keras.optimizers.Adam(RATE), "mse", run_eagerly=True)
    data = {
        "token_ids": RNG.integers(0, 8, [6, 5]),
        "padding_mask": np.ones([6, 5], "int32"),
    }
    keep = Keep()
    model.fit(
        data,
        Y[:6],
        batch_size=3,
        epochs=2,
        verbose=0,
        callbacks=[kt.TracInCheckpoint(tmp_path), keep],
    )
    run = TrainingRun(tmp_path)
    with run_weights(model) as load:
        for checkpoint, weights in zip(run, keep.kept[1:], strict=True):
            load(checkpoint)
            assert_same(values(model), weights)
    rows = 0.0
    for weights in keep.kept[1:]:
        put(model, weights)
        g = gradients_one_by_one(model, data, Y[:6], per_example_loss(model))
        rows = rows + RATE * np.sum(g.astype("float64") ** 2, axis=1)
    found = kt.TracIn(model, (data, Y[:6]), run).self_influence(verbose=0)
    np.testing.assert_allclose(found.scores, rows, rtol=1e-3)
    assert np.all(rows > 0)
