"""What is in the file: examples by their ids, labels, and nothing dangerous."""

import base64
import hashlib
import importlib.resources
import io
import re
import sys

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from PIL import Image

import keras_tracin as kt
from keras_tracin.report import page
from tests.report import pages
from tests.report.pages import embedded, in_words

TOP, OWN = pages.results()
X, Y = pages.grey_images(), pages.labels()
QUERIES = pages.grey_images(6, 3), pages.labels(6)


def write(directory, **options):
    """Writes a page of self-influence, and reads what it holds."""
    path = directory / "report.html"
    defaults = {"train": (X, Y), "self_influence": OWN, "overwrite": True}
    kt.report.write_html(path, **defaults | options)
    return embedded(path)


def decoded(uri):
    """An image as an array, and its kind."""
    head, code = uri.split(",")
    image = Image.open(io.BytesIO(base64.b64decode(code)))
    return np.asarray(image), head


def test_suspects_are_the_highest_scores_with_all_their_digits(tmp_path):
    data = write(tmp_path, max_suspects=7)
    suspects = data["suspects"]
    ids = [data["sets"]["train"]["ids"][at] for at in suspects["examples"]]
    best = np.argsort(-OWN.scores)[:7]
    assert ids == best.astype(str).tolist()
    scores = np.array(suspects["scores"], "float32")
    np.testing.assert_array_equal(scores, OWN.scores[best])
    assert suspects["total"] == 40
    assert len(data["sets"]["train"]["ids"]) == 7, "no more than is shown"


def test_queries_hold_both_sides_of_the_ranking(tmp_path):
    data = write(tmp_path, top_k=TOP, test=QUERIES, self_influence=None)
    train, test = (data["sets"][name] for name in ("train", "test"))
    for side in ("proponents", "opponents"):
        found = data["queries"][side]
        ids = [
            [int(train["ids"][at]) for at in row] for row in found["examples"]
        ]
        np.testing.assert_array_equal(ids, getattr(TOP, side).ids)
        np.testing.assert_array_equal(
            np.array(found["scores"], "float32"), getattr(TOP, side).scores
        )
    places = data["queries"]["examples"]
    assert [test["ids"][at] for at in places] == data["queries"]["ids"]
    assert data["suspects"] is None


def test_ids_find_their_examples_in_data_that_shuffles(tmp_path):
    ids = np.array([f"n{i:02}" for i in range(40)])
    own = kt.SelfInfluence(OWN.scores, ids)
    shuffled = kt.with_ids((X, Y), ids).shuffle(40).batch(7)
    data = write(tmp_path, train=shuffled, self_influence=own)
    images = dict(
        zip(
            data["sets"]["train"]["ids"],
            data["sets"]["train"]["images"],
            strict=True,
        )
    )
    expected = np.rint((X - X.min()) / (X.max() - X.min()) * 255)
    for place, name in enumerate(ids):
        pixels, kind = decoded(images[name][0])
        assert kind == "data:image/png;base64"
        np.testing.assert_allclose(pixels, expected[place], atol=1)
    assert in_words(data) == dict(zip(ids, Y.astype(str), strict=True))


def test_arrays_and_datasets_make_the_same_page(tmp_path):
    dataset = tf.data.Dataset.from_tensor_slices((X.astype("float32"), Y))
    pages_made = [
        kt.report.write_html(
            tmp_path / f"{name}.html", train=train, self_influence=OWN
        ).read_bytes()
        for name, train in (("a", (X, Y)), ("b", dataset.batch(11)))
    ]
    assert pages_made[0] == pages_made[1]


def test_ids_beyond_a_browsers_numbers_stay_exact(tmp_path):
    ids = np.arange(40) + 2**62
    data = write(
        tmp_path,
        train=kt.with_ids((X, Y), ids).batch(40),
        self_influence=kt.SelfInfluence(OWN.scores, ids),
    )
    assert data["sets"]["train"]["ids"][0] == str(2**62)


def test_large_photographs_are_shrunk(tmp_path):
    photos = np.random.default_rng(0).integers(0, 256, (40, 400, 300, 3))
    data = write(tmp_path, train=(photos.astype("uint8"), Y), max_suspects=2)
    pixels, kind = decoded(data["sets"]["train"]["images"][0][0])
    assert (pixels.shape, kind) == ((160, 120, 3), "data:image/jpeg;base64")


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(
    ("white", "dtype"), [(255, "uint8"), (255, "float32"), (1, "float32")]
)
def test_small_colour_images_keep_every_pixel(tmp_path, channels, white, dtype):
    shape = (40, 5, 4, channels)
    colours = np.random.default_rng(0).integers(0, 256, shape)
    colours[:20] //= 255  # a batch too dark to tell what white is
    x = (colours * (white / 255)).astype(dtype)
    train = tf.data.Dataset.from_tensor_slices((x, Y)).batch(20)
    data = write(tmp_path, train=train, max_suspects=40)
    for place, (image,) in enumerate(data["sets"]["train"]["images"]):
        np.testing.assert_array_equal(decoded(image)[0], colours[place])


def test_inputs_are_shown_by_what_they_are(tmp_path):
    x = {
        "photo": X,
        "title": np.array([f"title {i}" for i in range(40)]),
        "age": np.arange(40),
        "sizes": np.full((40, 2), 1 / 3),
        "kind": np.array([["a", "b"]] * 40),
    }
    train = write(tmp_path, train=(x, Y), max_suspects=40)["sets"]["train"]
    assert len(train["images"][3]) == 1
    assert train["texts"][3] == "title 3"
    assert train["features"] == [
        "age",
        "kind[0]",
        "kind[1]",
        "sizes[0]",
        "sizes[1]",
    ]
    assert train["rows"][3] == ["3", "a", "b", 0.333333, 0.333333]


@pytest.mark.parametrize(
    "train", [(X,), tf.data.Dataset.from_tensor_slices(X).batch(9)]
)
def test_examples_without_labels_are_shown(tmp_path, train):
    data = write(tmp_path, train=train, max_suspects=2)
    assert set(in_words(data).values()) == {"no label"}
    assert len(data["sets"]["train"]["images"]) == 2


def test_of_labels_with_many_values_the_first_are_shown(tmp_path):
    tokens = np.arange(40 * 12).reshape(40, 12)
    data = write(tmp_path, train=(X, tokens), max_suspects=40)
    assert in_words(data)["1"] == "12 13 14 15 16 17 18 19 … (12 values)"


def test_feature_names_and_missing_values_of_rows(tmp_path):
    x = np.array([[1.0, np.nan]] * 40)
    data = write(tmp_path, train=(x, Y), feature_names=["a", "b"])
    train = data["sets"]["train"]
    assert train["features"] == ["a", "b"]
    assert train["rows"][0] == [1.0, "nan"]
    assert (train["images"], train["texts"]) == ([], [])


@pytest.mark.parametrize("labels", [True, False])
def test_columns_of_a_table_are_names_of_features(tmp_path, labels):
    table = pd.DataFrame({"age": np.arange(40), 7: np.ones(40)})
    train = (table, Y) if labels else table
    data = write(tmp_path, train=train)
    assert data["sets"]["train"]["features"] == ["age", "7"]
    data = write(tmp_path, train=train, feature_names=["a", "b"])
    assert data["sets"]["train"]["features"] == ["a", "b"]


def test_a_table_of_texts_is_shown_as_texts(tmp_path):
    table = pd.DataFrame({"words": ["a text"] * 40})
    train = write(tmp_path, train=(table, Y))["sets"]["train"]
    assert train["texts"][0] == "a text"
    assert train["features"] == []


def test_only_the_first_of_many_values_are_kept(tmp_path):
    data = write(tmp_path, train=(np.zeros((40, 500)), Y))
    train = data["sets"]["train"]
    assert (len(train["rows"][0]), train["hidden"]) == (200, 300)


def test_rendering_can_be_chosen(tmp_path):
    data = write(tmp_path, render="row")
    assert len(data["sets"]["train"]["rows"][0]) == 36
    data = write(tmp_path, train=(np.ones((40, 3), int), Y), render="text")
    assert data["sets"]["train"]["texts"][0] == "1 1 1"


def test_long_texts_are_cut_and_say_so(tmp_path):
    data = write(tmp_path, train=(np.array(["x" * 2_500] * 40), Y))
    text = data["sets"]["train"]["texts"][0]
    assert text == "x" * 2_000 + "… (500 more characters)"


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (Y, Y.astype(str)),
        (Y.astype("float32")[:, None], Y.astype(str)),
        (np.eye(3)[Y], Y.astype(str)),
        (Y == 1, (Y == 1).astype(int).astype(str)),
        (np.array(list("abc"))[Y], np.array(list("abc"))[Y]),
        (Y / 3, np.array(["0", "0.333333", "0.666667"])[Y]),
        (np.stack([Y, 2 - Y], 1), np.array(["0 2", "1 1", "2 0"])[Y]),
        ({"a": Y, "b": Y}, np.array(["0 0", "1 1", "2 2"])[Y]),
    ],
)
def test_labels_of_every_kind_are_named(tmp_path, labels, expected):
    data = write(tmp_path, train=(X, labels), max_suspects=40)
    found = in_words(data)
    assert found == {str(i): name for i, name in enumerate(expected)}
    is_number = np.asarray(expected)[Y == 1][0] == "0.333333"
    assert bool(data["classes"]) != is_number


def test_class_names_stand_for_their_numbers(tmp_path):
    data = write(tmp_path, class_names=["no", "yes", "may be", "never"])
    assert in_words(data)["5"] == ["no", "yes", "may be"][Y[5]]
    assert data["classes"][3] == ["3", "never"]
    assert not data["is_open"]


@pytest.mark.parametrize(
    ("predictions", "confidence"),
    [
        (Y[::-1], None),
        (np.eye(3)[Y[::-1]] * 9, None),
        (np.eye(3)[Y[::-1]] * 0.7 + 0.1, 0.8),
    ],
)
def test_predictions_are_classes_or_scores_of_classes(
    tmp_path, predictions, confidence
):
    data = write(tmp_path, train_predictions=predictions, max_suspects=40)
    found = in_words(data, column="predicted")
    assert found == {str(i): str(y) for i, y in enumerate(Y[::-1])}
    sure = data["sets"]["train"].get("confidence")
    assert sure == (None if confidence is None else [confidence] * 40)


def test_one_number_between_0_and_1_is_the_probability_of_class_1(tmp_path):
    probability = np.linspace(0, 1, 40)[:, None]
    data = write(
        tmp_path,
        train=(X, Y == 1),
        train_predictions=probability,
        max_suspects=40,
    )
    found = in_words(data, column="predicted")
    assert [found[str(i)] for i in (0, 19, 20, 39)] == ["0", "0", "1", "1"]
    assert min(data["sets"]["train"]["confidence"]) >= 0.5


def test_predicted_numbers_stand_beside_numbers(tmp_path):
    data = write(
        tmp_path,
        train=(X, Y / 3),
        train_predictions=Y / 3 + 0.1,
        max_suspects=40,
    )
    place = int(np.argmax(Y == 1))
    assert in_words(data, column="predicted")[str(place)] == "0.433333"


def test_predictions_by_id_serve_data_with_ids(tmp_path):
    ids = np.arange(40) + 100
    arguments = {
        "train": kt.with_ids((X, Y), ids).shuffle(40).batch(8),
        "self_influence": kt.SelfInfluence(OWN.scores, ids),
    }
    by_id = dict(zip(ids.tolist(), Y[::-1], strict=True))
    data = write(tmp_path, **arguments, train_predictions=by_id)
    found = in_words(data, column="predicted")
    assert found == {str(i): str(y) for i, y in by_id.items()}
    with pytest.raises(ValueError, match="should be a dict by id"):
        write(tmp_path, **arguments, train_predictions=Y)


def test_queries_without_data_have_their_ids(tmp_path):
    top = kt.TopK(
        *(
            kt.Ranking(side.ids[:1], side.scores[:1])
            for side in (TOP.proponents, TOP.opponents)
        ),
        np.array(["sum"]),
    )
    data = write(tmp_path, top_k=top)
    assert data["queries"]["ids"] == ["sum"]
    assert data["queries"]["examples"] is None


def test_data_cannot_end_its_element_and_the_policy_fits_the_page(tmp_path):
    evil = "<!--<script>]]></script>\u2028\x00\ud800"
    write(tmp_path, train=(np.array([evil] * 40, object), Y), title=evil)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count("<script") == 2
    assert html.count("</script>") == 2
    policy = re.search(r'Security-Policy" content="([^"]*)"', html)[1]
    policy = policy.replace("&#39;", "'")
    for tag in ("script", "style"):
        content = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.S)[-1]
        digest = hashlib.sha256(content.encode()).digest()
        code = base64.b64encode(digest).decode()
        assert f"{tag}-src 'sha256-{code}'" in policy
    assert "default-src 'none'" in policy
    assert not re.search(r"(?:src|href)=\"(?!data:)", html)


def test_every_script_that_is_installed_is_in_the_page(tmp_path):
    write(tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    folder = importlib.resources.files(page.__package__) / "assets"
    scripts = [each for each in folder.iterdir() if each.name.endswith(".js")]
    assert len(scripts) > 5
    assert all(each.read_text(encoding="utf-8") in html for each in scripts)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"self_influence": None}, ValueError, "nothing to show"),
        ({"self_influence": OWN.scores}, TypeError, "should be a SelfInflu"),
        ({"top_k": OWN}, TypeError, "should be a TopK"),
        ({"max_suspects": 0}, ValueError, "1 or more"),
        ({"render": "video"}, ValueError, "'auto' or one of"),
        ({"train": (X[:9], Y[:9])}, ValueError, "no example of `train` has"),
        ({"class_names": ["one"]}, ValueError, "a name for every label"),
        ({"feature_names": ["one"]}, ValueError, "a name for each value"),
        ({"train_predictions": Y[:5]}, ValueError, "one row for each example"),
        ({"train_predictions": {0: 1}}, ValueError, "It lacks"),
        ({"train_predictions": list("ab") * 20}, ValueError, "all be numbers"),
        ({"render": "image", "train": (Y, Y)}, ValueError, r"of shape \(1,\)"),
        (
            {"train": (np.full((40, 4, 4, 3), 2.0), Y)},
            ValueError,
            "floats from 0 to 1",
        ),
        ({"train": (X * np.nan, Y)}, ValueError, "NaN or infinite"),
        (
            {"self_influence": kt.SelfInfluence(OWN.scores * np.nan, OWN.ids)},
            ValueError,
            "Scores should be finite",
        ),
        (
            {"self_influence": kt.SelfInfluence(OWN.scores[:0], OWN.ids[:0])},
            ValueError,
            "should not be empty",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_the_file_stays(
    tmp_path, changes, error, message
):
    path = tmp_path / "report.html"
    path.write_text("as it was")
    with pytest.raises(error, match=message):
        write(tmp_path, **changes)
    assert path.read_text() == "as it was"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_replaced_only_if_asked(tmp_path):
    write(tmp_path)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write(tmp_path, overwrite=False)


@pytest.mark.parametrize("package", ["jinja2", "PIL"])
def test_without_a_package_the_extra_is_named(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"keras_tracin\[report\]"):
        write(tmp_path)
