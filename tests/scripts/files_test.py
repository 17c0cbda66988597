"""Programs on a saved model and its data: scores are those of the library."""

import os
import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import flags

import keras_tracin as kt
from keras_tracin.scripts import (
    check,
    index,
    label_issues,
    query,
    report,
    score,
    self_influence,
)
from keras_tracin.scripts._model_file import FilesError
from keras_tracin.scripts._program import Note, UsageError
from keras_tracin.scripts._reading import adopt_reading
from tests.error_rows import row
from tests.report.pages import embedded
from tests.scripts.helpers import Workplace, table
from tests.scripts.trained_files import (
    files_task,
    images,
    train,
    write_csv,
)

DATA = pathlib.Path(os.environ.get("KERAS_TRACIN_DATA", "../shared/data"))
layers = keras.layers

PHOTOS = (
    "--model=photos.keras",
    "--run=runs/photos",
    "--data=photos/train",
    "--scale=255",
)
ASKED = (*PHOTOS, "--test_data=photos/test")


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """A directory for files of a test's own."""
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    return Workplace(tmp_path, capsys)


def assert_scored(work, trained, data, test, *flags):
    """`score` gives what the library gives of data that were read by hand."""
    work.run(score, *trained.flags, *flags, "--output=scores.npz")
    found = kt.Attribution.load("scores.npz")
    tracin = kt.TracIn(trained.model, data, trained.run)
    expected = tracin.influence(test, verbose=0)
    size = np.abs(expected.scores).max()
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5 * size)
    np.testing.assert_array_equal(found.train_ids, expected.train_ids)
    np.testing.assert_array_equal(found.query_ids, expected.query_ids)


def test_folder_of_images_is_scored_as_by_the_library_with_labels(there):
    rows = table(there.run(score, *ASKED, "--k=3"))
    model = keras.models.load_model("photos.keras")
    # Of the queries, the folder lacks "bee": "cat" is the third class still.
    queries = images("photos/test").map(lambda x, y: (x, 2 * y))
    tracin = kt.TracIn(model, images("photos/train"), "runs/photos")
    top = tracin.top_k(queries, 3, verbose=0)
    assert [
        line["train_id"] for line in rows if line["side"] == "proponent"
    ] == (top.proponents.ids.ravel().tolist())
    scores = [
        float(line["score"]) for line in rows if line["side"] == "opponent"
    ]
    np.testing.assert_allclose(scores, top.opponents.scores.ravel(), 1e-4)
    for line in rows:
        for side, id_ in (("query", "query_id"), ("train", "train_id")):
            name = pathlib.Path(line[id_]).parent.name
            assert line[f"{side}_name"] == name
            assert line[f"{side}_label"] == str("ant bee cat".index(name) // 4)


def test_classes_and_the_comparison_with_the_run_are_told(there, capsys):
    assert check.main([*PHOTOS, "--epochs=11,12"]) == 0
    out, err = capsys.readouterr()
    assert "--data is the folder 'photos/train', read as 6 × 6" in err
    assert "note: the classes are 0 ant, 1 bee, 2 cat." in err
    assert "agrees with the losses on record" in out
    self_influence.main([*PHOTOS, "--epochs=3,4", "--quiet", "--output=x.csv"])
    assert "note: " not in capsys.readouterr().err, "quiet"
    rows = table((there.directory / "x.csv").read_text())
    columns = "rank train_id self_influence train_label train_name"
    assert " ".join(rows[0]) == columns
    assert all(line["train_name"] in line["train_id"] for line in rows)


def test_scale_of_pixels_is_told_by_the_losses_of_the_run(there):
    with pytest.warns(Note, match="--scale=255, by which alone"):
        task = files_task(*PHOTOS[:3])
    x, y = next(iter(task.train()))
    x_expected, y_expected = next(iter(images("photos/train").rebatch(256)))
    np.testing.assert_array_equal(x, x_expected)
    np.testing.assert_array_equal(y, y_expected)


def test_names_of_classes_go_with_suspected_labels(there):
    rows = table(there.run(label_issues, *PHOTOS))
    names = ["ant", "bee", "cat"]
    for line in rows:
        assert line["given_name"] == names[int(line["given_label"])]
        assert line["given_name"] in line["train_id"]
        assert line["suggested_name"] == names[int(line["suggested_label"])]


def test_index_is_asked_without_the_training_data(there):
    there.run(index, *PHOTOS, "--epochs=4", "--dim=64", "--index=index")
    ask = ("--model=photos.keras", "--test_data=photos/test", "--index=index")
    flags = ("--class_names=ant,bee,cat", "--scale=255", "--k=2")
    rows = table(there.run(query, *ask, *flags))
    assert [line["query_name"] for line in rows[::4]] == ["ant", "cat", "cat"]
    assert "train_label" not in rows[0]
    # What was left out is as it was for the index.
    assert table(there.run(query, *ask, "--k=2")) == rows
    for flag in ("--scale=1", "--class_names=cat,bee,ant"):
        with pytest.raises(UsageError, match=row("index-reading")):
            adopt_reading(query_flags(*ask, flag), "index")
    np.savez("test.npz", x=np.zeros((2, 6, 6, 1), "float32"), y=[0, 1])
    other = ask[0], "--test_data=test.npz", ask[2]
    said = there.refused(query, *other, "--quiet")
    assert re.search(row("index-kind"), said)


def test_columns_of_queries_are_those_of_the_index(here):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40)).astype("float32")
    y = (a > b).astype(int)
    dense = keras.Sequential([keras.Input((2,)), layers.Dense(2)])
    work = train("pair", dense, (np.stack([a, b], 1), y))
    write_csv("train.csv", a=a, b=b, y=y)
    write_csv("test.csv", y=y[:3], b=b[:3], a=a[:3])
    labelled = "--label_column=y"
    here.run(
        index, *work.flags, "--data=train.csv", labelled, "--dim=64",
        "--index=index",
    )  # fmt: skip
    ask = (work.flags[0], "--test_data=test.csv", labelled, "--index=index")
    rows = table(here.run(query, *ask, "--k=2"))
    built = kt.InfluenceIndex("index", work.model)
    expected = built.query((np.stack([a, b], 1)[:3], y[:3]), 2)
    ids = [int(line["train_id"]) for line in rows]
    both = np.stack([expected.proponents.ids, expected.opponents.ids], 1)
    assert ids == both.ravel().tolist()
    swapped = query_flags(*ask, "--feature_columns=b,a")
    with pytest.raises(UsageError, match=row("index-reading")):
        adopt_reading(swapped, "index")


def query_flags(*arguments):
    """Parsed flags of a query."""
    values = flags.FlagValues()
    query._define(values)
    values(["query", *arguments])
    return values


def test_report_shows_images_as_they_are_in_their_files(there):
    there.run(
        report, *ASKED, "--k=2", "--epochs=4", "--max_suspects=0",
        "--output=page.html",
    )  # fmt: skip
    page = embedded(there.directory / "page.html")
    assert page["classes"][2] == ["2", "cat"]
    assert len(page["sets"]["test"]["images"]) == 3


def test_folder_of_texts_is_scored(here):
    words = {"bad": "poor dull", "good": "fine great"}
    for part, count in (("train", 12), ("test", 1)):
        for name, said in words.items():
            folder = here.directory / part / name
            folder.mkdir(parents=True)
            for at in range(count):
                text = " ".join([*said.split()[: 1 + at % 2], "film", str(at)])
                (folder / f"{at:02}.txt").write_text(text)

    def texts(part):
        return keras.utils.text_dataset_from_directory(
            part, batch_size=8, shuffle=False, verbose=False
        )

    vectorize = layers.TextVectorization(20, output_sequence_length=4)
    vectorize.adapt(texts("train").map(lambda x, y: x))
    inputs = keras.Input((), dtype="string")
    hidden = layers.Embedding(20, 4)(vectorize(inputs))
    outputs = layers.Dense(1, "sigmoid")(layers.Flatten()(hidden))
    model = keras.Model(inputs, outputs)
    trained = train("texts", model, texts("train"), "binary_crossentropy")
    assert_scored(
        here, trained, texts("train"), texts("test"),
        "--data=train", "--test_data=test",
    )  # fmt: skip


def blobs(count, seed=0):
    """Three classes around centres of their own."""
    centres = np.random.default_rng(7).normal(size=(3, 4), scale=2)
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, count)
    return (centres[y] + rng.normal(size=(count, 4))).astype("float32"), y


def test_arrays_are_scored_with_ids_and_one_hot_labels_where_needed(here):
    (x, y), (x_test, y_test) = blobs(40), blobs(3, seed=1)
    ids = np.array([f"row {at}" for at in range(40)])
    np.savez(
        "blobs.npz", x_train=x, y_train=y, ids_train=ids, x_test=x_test,
        y_test=y_test,
    )  # fmt: skip
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, "softmax")])
    one_hot = x, keras.utils.to_categorical(y, 3)
    trained = train("blobs", model, one_hot, "categorical_crossentropy")
    data = kt.with_ids(one_hot, ids).batch(16)
    test = x_test, keras.utils.to_categorical(y_test, 3)
    assert_scored(
        here, trained, data, test,
        "--data=blobs.npz", "--test_data=blobs.npz",
    )  # fmt: skip


def test_columns_of_a_table_are_stacked_and_words_are_classes(here):
    (x, y), (x_test, y_test) = blobs(40), blobs(3, seed=1)
    names = np.array(["red", "blue", "green"])
    for path, features, labels in (
        ("train.csv", x, y),
        ("test.csv", x_test, y_test),
    ):
        columns = dict(zip("abcd", features.T.tolist(), strict=True))
        number = [f"n{at:03}" for at in range(len(labels))]
        write_csv(path, number=number, colour=names[labels], **columns)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    trained = train("table", model, (x, y))
    flags = (
        "--data=train.csv", "--test_data=test.csv", "--label_column=colour",
        "--id_column=number", "--class_names=red,blue,green",
    )  # fmt: skip
    with pytest.warns(Note, match="of which a, b, c, d go in and 'colour' is"):
        files_task(*trained.flags, *flags)
    data = kt.with_ids((x, y), [f"n{at:03}" for at in range(40)]).batch(16)
    test = kt.with_ids((x_test, y_test), ["n000", "n001", "n002"]).batch(3)
    assert_scored(here, trained, data, test, *flags)


def test_columns_are_the_inputs_of_their_names(here):
    rng = np.random.default_rng(0)
    age = rng.integers(20, 60, 40)
    town = np.where(rng.random(40) < 0.5, "Rome", "Oslo")
    price = (age / 30 + (town == "Rome")).astype("float32")
    write_csv("houses.csv", town=town, age=age, other=age * 2, price=price)
    inputs = {
        "age": keras.Input((1,), name="age"),
        "town": keras.Input((1,), name="town", dtype="string"),
    }
    lookup = layers.StringLookup(
        vocabulary=["Oslo", "Rome"], output_mode="one_hot"
    )
    joined = layers.Concatenate()([inputs["age"] / 30, lookup(inputs["town"])])
    model = keras.Model(inputs, layers.Dense(1)(joined))
    x = {"age": age.reshape(-1, 1), "town": town.reshape(-1, 1)}
    x["age"] = x["age"].astype("float32")
    trained = train("houses", model, (x, price), "mse", rate=0.05)
    assert_scored(
        here, trained, (x, price), (x, price),
        "--data=houses.csv", "--test_data=houses.csv", "--label_column=price",
    )  # fmt: skip
    flags = "--data=houses.csv", "--label_column=price"
    task = files_task(*trained.flags, *flags)
    assert task.option("feature_names") is None  # inputs have their own


def test_columns_go_in_as_they_are_named(here):
    inputs = keras.Input((2,))
    model = keras.Model(inputs, layers.Dense(1)(inputs))
    model.compile("sgd", "mse")
    model.save("m.keras")
    write_csv("d.csv", a=[1, 2], b=[3, 4], c=[5, 6], y=[0.5, 1])
    task = files_task(
        "--model=m.keras", "--data=d.csv", "--label_column=y",
        "--feature_columns=c,a",
    )  # fmt: skip
    x, y = task.train()
    assert task.option("feature_names") == ["c", "a"]
    np.testing.assert_array_equal(x, [[5, 1], [6, 2]])
    np.testing.assert_array_equal(y, [0.5, 1])


def test_arrays_of_several_inputs_have_their_names_and_weights(here):
    inputs = [keras.Input((2,), name="left"), keras.Input((1,), name="right")]
    outputs = layers.Dense(1)(layers.Concatenate()(inputs))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    model.save("m.keras")
    arrays = {"left": np.ones([3, 2]), "right": np.arange(3.0), "y": np.ones(3)}
    np.savez("d.npz", **arrays, sample_weight=np.arange(3))
    x, _, weight = files_task("--model=m.keras", "--data=d.npz").train()
    np.testing.assert_array_equal(x[0], arrays["left"])
    np.testing.assert_array_equal(x[1], arrays["right"])
    np.testing.assert_array_equal(weight, np.arange(3))


@pytest.mark.skipif(
    not (DATA / "tfds" / "mnist").is_dir(),
    reason=f"MNIST is not in {DATA / 'tfds'}; set KERAS_TRACIN_DATA",
)
def test_data_of_tfds_are_scored_with_the_ids_of_tfds(here):
    def load(split):
        data = tfds.load(
            "mnist", split=split, data_dir=str(DATA / "tfds"), download=False,
            read_config=tfds.ReadConfig(add_tfds_id=True),
        )  # fmt: skip
        return (
            kt.with_ids(data, "tfds_id")
            .map(lambda e: (tf_float(e["image"]) / 255, e["label"]))
            .batch(32)
        )

    def tf_float(image):
        return keras.ops.cast(image, "float32")

    # A model of values in a row: images become rows of pixels.
    model = keras.Sequential([keras.Input((784,)), layers.Dense(10)])
    rows = load("train[:200]").map(
        lambda x, y: (keras.ops.reshape(x, [-1, 784]), y)
    )
    trained = train("mnist", model, rows, epochs=6)
    test = load("test[:2]").map(
        lambda x, y: (keras.ops.reshape(x, [-1, 784]), y)
    )
    assert_scored(
        here, trained, rows, test, f"--data_dir={DATA / 'tfds'}", "--scale=255",
        "--data=tfds:mnist:train[:200]", "--test_data=tfds:mnist:test[:2]",
    )  # fmt: skip
    task_flags = (
        *trained.flags, f"--data_dir={DATA / 'tfds'}", "--scale=255",
        "--data=tfds:mnist:3.0.1:train[:200]",
    )  # fmt: skip
    task = files_task(*task_flags)
    assert task.option("class_names") is None, "they are the numbers"
    order = "9,8,7,6,5,4,3,2,1,0"
    turned = files_task(
        *task_flags, f"--class_names={order}", "--nocompare_losses"
    )
    labels = [next(iter(each.train()))[1].numpy() for each in (task, turned)]
    np.testing.assert_array_equal(labels[0], 9 - labels[1])
    with pytest.raises(FilesError, match=row("tfds-classes", "['zero'")):
        files_task(*task_flags, "--class_names=zero,one")


def test_labels_of_a_hinge_loss_stay_below_and_above_zero(here):
    x = np.linspace(-1, 1, 24).reshape(12, 2).astype("float32")
    y = np.sign(x[:, 0])
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    trained = train("hinge", model, (x, y[:, None]), "hinge")
    np.savez("d.npz", x=x, y=y)
    task = files_task(*trained.flags, "--data=d.npz")
    np.testing.assert_array_equal(task.train()[1], y)
