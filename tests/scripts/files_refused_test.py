"""Files that a program cannot use, or not rightly, are refused in one line."""

import re
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_tracin.check.report import Finding
from keras_tracin.scripts import score
from keras_tracin.scripts._model_file import FilesError
from keras_tracin.scripts._program import UsageError
from keras_tracin.scripts._scaling import OF_PIXELS, Evidence, Scaling, choose
from tests.error_rows import row
from tests.scripts.helpers import TASK
from tests.scripts.trained_files import (
    SPARSE,
    files_task,
    images,
    train,
    write_csv,
    write_images,
)

layers = keras.layers
PHOTOS = ("--model=photos.keras", "--run=runs/photos")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(shape, units=3, loss=SPARSE, dtype="float32", name="m.keras"):
    """A model that was not trained."""
    inputs = keras.Input(shape, dtype=dtype)
    hidden = inputs
    if dtype == "string":
        hidden = layers.TextVectorization(
            output_sequence_length=3, vocabulary=["a", "b"]
        )(hidden)
        hidden = layers.Embedding(9, 2)(hidden)
    if None not in shape:
        hidden = layers.Flatten()(hidden)
    else:
        hidden = layers.GlobalAveragePooling2D()(hidden)
    model = keras.Model(inputs, layers.Dense(units)(hidden))
    if loss is not None:
        model.compile("sgd", loss)
    model.save(name)


def refusal(*arguments):
    """What is said of files that are opened and prepared."""
    with pytest.raises((FilesError, UsageError)) as caught:
        files_task(*arguments).train()
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--class_names=cat,bee,ant"], row("other-losses", "photos/train")),
        (["--scale=1"], row("other-losses", "--scale=1")),
        (["--scale=127.5", "--offset=-1"], row("other-losses", "--offset=-1")),
        (["--data=photos"], row("folder-form", "'test' without any")),
        (["--data=photos/tarin"], row("no-data", "does not exist")),
        (["--data=runs/photos/run.json"], row("no-data", "run.json")),
        (["--data=photos/test"], row("class-count", "2 of ... ant, cat")),
        ([TASK], row("two-descriptions", "--task and --model, --data")),
        (["--scale=0"], "--scale divides"),
        (["--scale=0", "--offset=2"], "--scale divides"),
    ],
)
def test_other_data_than_the_run_s_end_a_program_with_one_line(
    there, change, message
):
    flags = (*PHOTOS, "--data=photos/train", "--scale=255")
    line = there.refused(score, *flags, "--test_data=photos/test", *change)
    assert re.search(message, line), line


@pytest.mark.parametrize("compare", ["--compare_losses", "--nocompare_losses"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_image_that_cannot_be_read_is_named(there, part, compare):
    shutil.copytree("photos", "damaged", dirs_exist_ok=True)
    broken = next(Path("damaged", part).glob("*/*.png"))
    broken.write_bytes(broken.read_bytes()[:40])
    train = "damaged/train" if part == "train" else "photos/train"
    line = there.refused(
        score,
        *PHOTOS,
        f"--data={train}",
        f"--test_data=damaged/{part}",
        "--scale=255",
        "--quiet",
        compare,
    )
    assert re.search(row("broken-image", str(broken)), line), line
    shutil.rmtree("damaged")


def test_neither_task_nor_files_is_misuse(there):
    assert re.search(row("no-description"), there.refused(score, "--k=3"))
    line = there.refused(score, *PHOTOS)
    assert "--model needs the --data" in line
    line = there.refused(score, *PHOTOS[1:], "--data=photos/train")
    assert "--data needs the --model" in line
    task = files_task(*PHOTOS, "--data=photos/train", "--scale=255")
    with pytest.raises(UsageError, match=row("no-queries", "--test_data")):
        task.test()


def test_data_of_other_losses_can_be_insisted_on(there):
    flags = (*PHOTOS, "--data=photos/train", "--scale=127.5")
    files_task(*flags, "--nocompare_losses")


def test_scale_of_pixels_is_asked_for_without_a_run_that_tells(there):
    flags = ("--model=photos.keras", "--data=photos/train")
    assert re.search(row("pixel-scale", "nothing on record"), refusal(*flags))


def evidence(gap, ratio, severity="note"):
    finding = Finding(severity, "train", "of `train`: words")
    return Evidence(finding, gap, ratio, 1.0)


def test_a_scale_is_chosen_only_where_all_others_differ():
    plain, unit, signed = OF_PIXELS
    right = evidence(0, 0.02)
    wrong = {plain: evidence(20, 4, "error"), signed: evidence(0.4, 0.3)}
    assert choose({**wrong, unit: right}) == unit
    assert choose({**wrong, unit: right, signed: evidence(0, 0.1)}) is None
    assert choose({**wrong, unit: right, signed: evidence(0.2, 0.1)}) is None
    # Far above before an epoch and far below after it, as wrong scales have.
    swings = evidence(0, 1.5)
    assert choose({**wrong, unit: right, plain: swings}) == unit
    assert choose({**wrong, unit: swings}) is None
    assert choose({}) is None
    assert not swings.agrees
    assert not swings.differs
    assert swings.words == "--data may not be what `fit` was trained on: words"


def test_losses_of_a_model_that_has_learnt_nothing_tell_nothing(here):
    write_images("photos", dict.fromkeys(("ant", "bee", "cat"), 4))
    inputs = keras.Input((6, 6, 1))
    model = keras.Model(inputs, layers.Dense(3)(layers.Flatten()(inputs)))
    trained = train("m", model, images("photos"), epochs=2, rate=1e-6)
    flags = (*trained.flags, "--data=photos", "--scale=255")
    with pytest.warns(UserWarning, match="has learnt little"):
        files_task(*flags)


def test_pixels_are_scaled_as_flags_say():
    x = np.array([0, 255], np.uint8)
    assert Scaling().apply(x) is x
    np.testing.assert_allclose(Scaling(127.5, -1.0).apply(x), [-1, 1])


def test_model_that_keras_alone_cannot_load_is_refused(here):
    write_csv("d.csv", a=[1.0], y=[0])
    flags = ("--data=d.csv", "--label_column=y")

    class Own(layers.Layer):
        def call(self, inputs):
            return inputs

    for layer in (Own(), layers.Lambda(lambda x: x * 2)):
        model = keras.Sequential([keras.Input((1,)), layer, layers.Dense(3)])
        model.compile("sgd", SPARSE)
        model.save("own.keras")
        said = refusal("--model=own.keras", *flags)
        assert re.search(row("own-classes", "'own.keras'", "--task"), said)
    save((1,), loss=None)
    assert re.search(row("uncompiled"), refusal("--model=m.keras", *flags))
    said = refusal("--model=m.h5", *flags)
    assert re.search(row("model-file", "'m.h5'"), said)
    assert "is no file" in refusal("--model=lost.keras", *flags)


TABLE = ("--model=m.keras", "--data=d.csv", "--label_column=y")
COLUMNS = {"a": [1.5, 2], "b": [3, 4], "y": [0, 2]}


@pytest.mark.parametrize(
    ("columns", "flags", "message"),
    [
        ({}, TABLE[:2], row("label-column", "['a', 'b', 'y']")),
        ({}, (*TABLE[:2], "--label_column=z"), row("no-column", "'z'")),
        ({}, (*TABLE, "--id_column=z"), row("no-column", "--id_column")),
        ({}, (*TABLE, "--feature_columns=a,z"), row("no-column", "'z'")),
        ({}, (*TABLE, "--feature_columns=a"), row("column-count", "['a']")),
        ({"c": [5, 6]}, TABLE, row("column-count", "2 values", "3 columns")),
        ({"b": [3, ""]}, TABLE, row("column-numbers", "'b'", "'' in row 1")),
        ({"y": [0, 3]}, TABLE, row("label-range", "2. Received: 3 in row 1")),
        ({"y": [0, 0.5]}, TABLE, row("label-range", "Received: 0.5 in row 1")),
        (
            {"y": ["dog", "cat"]},
            TABLE,
            row("word-labels", "all 3 classes", "'cat'"),
        ),
        (
            {"y": ["dog", "cat"]},
            (*TABLE, "--class_names=dog,cow,eel"),
            row("word-labels", "'cat'"),
        ),
        ({}, (*TABLE, "--class_names=p,q"), row("class-count", "p, q")),
        (
            {"n": [7, 7], "b": ["7", "8"]},
            (*TABLE, "--id_column=n"),
            row("file-ids", "7 more than once"),
        ),
    ],
)
def test_table_that_does_not_fit_the_model_is_refused(
    here, columns, flags, message
):
    save((2,))
    write_csv("d.csv", **{**COLUMNS, **columns})
    assert re.search(message, refusal(*flags))


def test_words_in_the_place_of_labels_are_told_with_their_order(here):
    save((2,), 2)
    write_csv("d.csv", a=[1, 2], b=[3, 4], y=["dog", "cat"])
    assert re.search(row("word-labels", "=cat,dog"), refusal(*TABLE))
    save((2,), 1, "mse")
    write_csv("d.csv", a=[1, 2], b=[3, 4], y=[0.5, ""])
    said = refusal(*TABLE)
    assert re.search(row("number-labels", "'' in row 1"), said), said


def test_what_is_no_table_is_refused(here):
    save((2,))
    for text, said in (
        ("a,b,y\n1,2,0\n3,4\n", "2 values in row 1"),
        ("a,a,y\n1,2,0\n", "['a', 'a', 'y']"),
        ("a,b,y\n", "0 rows"),
    ):
        Path("d.csv").write_text(text)
        assert re.search(row("table-form", said), refusal(*TABLE))
    Path("d.csv").write_bytes("a,b,y\n1,2,é\n".encode("latin-1"))
    assert re.search(row("table-encoding"), refusal(*TABLE))
    Path("d.csv").write_text("a,b,y\n1,2," + "c" * 200_000)
    assert re.search(row("table-encoding"), refusal(*TABLE))


def test_columns_of_queries_are_those_of_the_training(here):
    save((2,))
    values = {"a": [0.5, 1], "b": [3, 4], "y": [0, 2]}
    write_csv("d.csv", **values)
    test = "--test_data=test.csv"
    write_csv("test.csv", **{name: values[name] for name in ("y", "b", "a")})
    said = refusal(*TABLE, test)
    assert re.search(row("column-order", "b, a", "a, b"), said), said
    task = files_task(*TABLE, test, "--feature_columns=a,b")
    np.testing.assert_array_equal(task.test()[0], task.train()[0])
    write_csv("test.csv", c=[0.5, 1], b=[3, 4], y=[0, 2])
    assert re.search(row("column-order"), refusal(*TABLE, test))


def test_numbers_that_are_names_of_other_classes_are_refused(here):
    save((2,))
    flags = (*TABLE, "--class_names=1,2,3")
    write_csv("d.csv", a=[1, 2], b=[3, 4], y=[2, 1])
    said = refusal(*flags)
    assert re.search(row("label-readings", "'2'"), said), said
    for y, expected in (([3, 1], [2, 0]), ([2, 0], [2, 0])):
        write_csv("d.csv", a=[1, 2], b=[3, 4], y=y)
        assert files_task(*flags).train()[1].tolist() == expected
    said = refusal(*TABLE, "--class_names=ant,bee,ant")
    assert re.search(row("names-distinct"), said), said


def test_numbers_that_the_model_cannot_take_are_refused(here):
    inputs = keras.Input((1,), dtype="int32")
    hidden = layers.Flatten()(layers.Embedding(5, 2)(inputs))
    x, y = np.arange(12)[:, None] % 5, np.arange(12) % 3
    model = keras.Model(inputs, layers.Dense(3)(hidden))
    trained = train("words", model, (x, y))
    flags = (*trained.flags, "--data=d.csv", "--label_column=y")
    write_csv("d.csv", i=[*x[1:, 0], 10**12], y=y)
    said = refusal(*flags)
    assert re.search(row("column-numbers", "1000000000000"), said), said
    write_csv("d.csv", i=[*x[1:, 0], 77], y=y)
    said = refusal(*flags)
    assert re.search(row("no-losses", "77 is not in"), said), said


def test_arrays_that_do_not_fit_the_model_are_refused(here):
    save((2,))
    flags = ("--model=m.keras", "--data=d.npz")
    x, y = np.zeros([4, 2], "float32"), np.arange(4) % 3

    def said_of(**arrays):
        np.savez("d.npz", **arrays)
        return refusal(*flags)

    assert re.search(row("npz-arrays", "['x']"), said_of(x=x))
    assert re.search(row("npz-arrays"), said_of(x=x, y=y, x_train=x, y_train=y))
    assert re.search(row("npz-lengths"), said_of(x=x, y=y[:3]))
    assert re.search(row("npz-lengths"), said_of(x=x, y=y, ids=y[:3]))
    said = said_of(x=np.zeros([4, 5]), y=y)
    assert re.search(row("file-shape", "(5,)", "(2,)"), said)
    said = said_of(x=x, y=np.array([0, 1, 2, -1]))
    assert re.search(row("label-range", "-1 in row 3"), said)
    for name in ("ids", "sample_weight"):  # of the training, or of a test?
        said = said_of(x_train=x, y_train=y, **{name: np.arange(4)})
        assert re.search(row("npz-arrays", name), said), said
    for wrong in (x.astype(str), x + 1j):
        said = said_of(x=wrong, y=y)
        assert re.search(row("npz-words", "'x'"), said), said
    said = said_of(x=x, y=y, sample_weight=y.astype(str))
    assert re.search(row("npz-words", "'sample_weight'"), said), said
    pixels = np.zeros([4, 2], np.uint8)
    np.savez("pixels.npz", x=pixels, y=y)
    np.savez("d.npz", x=x, y=y)
    said = refusal(*flags, "--test_data=pixels.npz")
    assert re.search(row("mixed-inputs", "'pixels.npz'"), said)


def test_folder_that_does_not_fit_the_model_is_refused(here):
    write_images("photos", {"ant": 1, "bee": 1, "cat": 1})
    flags = ("--model=m.keras", "--data=photos", "--scale=1")
    save((6, 6, 1), 3, "mse")
    assert re.search(row("no-classes", "mean_squared_error"), refusal(*flags))
    save((None, None, 1))
    assert re.search(row("image-size", "(None, None, 1)"), refusal(*flags))
    save((), dtype="string")
    assert re.search(row("folder-kind", "holds images"), refusal(*flags))
    save((6, 6, 1))
    write_images("more", {"ant": 1})
    (here / "more" / "ant").rename(here / "more" / "dog")
    said = refusal(*flags, "--test_data=more")
    assert re.search(row("folder-class", "'dog'", "--class_names"), said)
    inputs = [keras.Input((2,), name="left"), keras.Input((2,), name="right")]
    model = keras.Model(inputs, layers.Dense(3)(layers.Add()(inputs)))
    model.compile("sgd", SPARSE)
    model.save("m.keras")
    said = refusal(*flags)
    assert re.search(row("one-input", "['left', 'right']"), said)


def test_data_that_tfds_has_not_prepared_are_not_downloaded(here):
    save((28, 28, 1))
    flags = ("--model=m.keras", f"--data_dir={here}")
    for spec in ("tfds:mnist", "tfds:mnist:train[:10]", "tfds:no_such_data"):
        said = refusal(*flags, f"--data={spec}")
        assert re.search(row("tfds-data", spec, str(here)), said), said
    assert "should be tfds:NAME" in refusal(*flags, "--data=tfds:mnist[:3]")
    assert not list(here.glob("mnist"))


def test_a_file_that_is_no_image_is_told(here):
    write_images("photos", {"ant": 9, "bee": 9, "cat": 9})
    model = keras.Sequential(
        [keras.Input((6, 6, 1)), layers.Flatten(), layers.Dense(3)]
    )
    trained = train("photos", model, images("photos"))
    (here / "photos" / "bee" / "03.png").write_bytes(b"no image")
    said = refusal(*trained.flags, "--data=photos", "--scale=255")
    assert re.search(row("broken-image", "03.png"), said), said
