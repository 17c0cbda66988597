"""Label issues on the page: suggested labels and the estimate, in the file."""

import dataclasses

import numpy as np
import pytest

import keras_tracin as kt
from tests.error_rows import row
from tests.report import pages
from tests.report.pages import embedded, in_words

X, Y = pages.grey_images(), pages.labels()
ISSUES = pages.issues()
SEVERAL = np.random.default_rng(4).integers(0, 2, (40, 3))
REVERSED = pages.issues(
    SEVERAL, SEVERAL[:, ::-1], np.full((40, 3), [1, 1, 0.7])
)


def write(directory, issues=ISSUES, **options):
    """Writes a page of label issues, and reads what it holds."""
    path = directory / "report.html"
    defaults = {"train": (X, Y), "label_issues": issues, "overwrite": True}
    kt.report.write_html(path, **defaults | options)
    return embedded(path)


def suggestions(data):
    """Suggested labels by the examples' ids."""
    suspects = data["suspects"]
    ids = [data["sets"]["train"]["ids"][at] for at in suspects["examples"]]
    names = [
        data["classes"][code][1] if isinstance(code, int) else code
        for code in suspects["suggested"]
    ]
    return dict(zip(ids, names, strict=True))


def test_suspects_are_the_first_issues_with_their_suggestions(tmp_path):
    names = ["ant", "bee", "cat", "dog"]
    data = write(tmp_path, max_suspects=12, class_names=names)
    assert suggestions(data) == {
        str(id_): names[label]
        for id_, label in zip(
            ISSUES.ids[:12], ISSUES.suggested_labels[:12], strict=True
        )
    }
    assert in_words(data)[str(ISSUES.ids[3])] == names[Y[ISSUES.ids[3]]]
    suspects = data["suspects"]
    assert suspects["total"] == 40
    assert (suspects["num_issues"], suspects["score_name"]) == (8, "Suspicion")
    np.testing.assert_allclose(
        suspects["probabilities"],
        ISSUES.suggested_probabilities[:12],
        atol=1e-4,
    )
    assert suspects["scores"] == pytest.approx(ISSUES.scores[:12].tolist())


@pytest.mark.parametrize(
    "train",
    [
        (X, np.eye(3)[Y]),
        (X, np.eye(3)[Y] * 0.8 + 0.1),
        (X,),
        (X, np.array(["an ant", "a bee", "a cat"])[Y]),
    ],
)
def test_labels_are_those_of_the_issues_however_they_are_given(tmp_path, train):
    data = write(tmp_path, train=train)
    assert in_words(data) == {str(i): str(y) for i, y in enumerate(Y)}
    assert set(suggestions(data).values()) == {"0", "1", "2"}


def test_a_class_that_is_only_suggested_is_a_class_of_the_page(tmp_path):
    data = write(tmp_path, pages.issues(suggested=np.full(40, 5)))
    assert data["classes"][-1] == ["5", "5"]
    with pytest.raises(ValueError, match="a name for every label"):
        write(
            tmp_path,
            pages.issues(suggested=np.full(40, 5)),
            class_names=["ant", "bee", "cat"],
        )


def test_several_labels_of_an_example_are_those_that_hold(tmp_path):
    names = ["red", "round", "large"]
    top, _ = pages.results()
    queries = pages.grey_images(6, 3), SEVERAL[:6].astype("float32")
    for given in (SEVERAL, SEVERAL.astype("float32"), {"tags": SEVERAL}):
        data = write(
            tmp_path,
            REVERSED,
            train=(X, given),
            test=queries,
            top_k=top,
            class_names=names,
        )
        expected = {
            str(i): ", ".join(np.array(names)[y == 1]) or "(none)"
            for i, y in enumerate(SEVERAL)
        }
        assert in_words(data) == expected
        assert in_words(data, "test")["2"] == expected["2"]
    reversed_names = np.array(names)[::-1]
    assert suggestions(data)["7"] == (
        ", ".join(reversed_names[SEVERAL[7] == 1][::-1]) or "(none)"
    )
    assert set(data["suspects"]["probabilities"]) == {0.7}, "of the doubtful"
    assert data["is_open"], "other sets of labels can be typed"
    unnamed = write(tmp_path, REVERSED, train=(X, SEVERAL))
    assert in_words(unnamed)["7"] == (
        ", ".join(map(str, np.flatnonzero(SEVERAL[7]))) or "(none)"
    )
    assert in_words(write(tmp_path, REVERSED, train=(X,))) == in_words(unnamed)


def test_numbers_have_no_suggestions(tmp_path):
    issues = dataclasses.replace(
        ISSUES,
        given_labels=None,
        suggested_labels=None,
        suggested_probabilities=None,
    )
    data = write(tmp_path, issues, train=(X, Y / 3))
    assert "suggested" not in data["suspects"]
    assert data["suspects"]["num_issues"] == 8
    assert set(in_words(data).values()) == {"0", "0.333333", "0.666667"}


def test_where_margins_alone_are_known_labels_stay_as_they_are(tmp_path):
    issues = dataclasses.replace(
        ISSUES,
        num_issues=None,
        given_labels=(ISSUES.given_labels > 0).astype(int),
        suggested_labels=None,
        suggested_probabilities=None,
    )
    data = write(tmp_path, issues, train=(X, np.where(Y > 0, 1, -1)))
    assert set(in_words(data).values()) == {"1", "-1"}
    assert data["suspects"]["num_issues"] is None


@pytest.mark.parametrize(
    ("issues", "changes", "message"),
    [
        (
            ISSUES,
            {"self_influence": pages.results()[1]},
            row("report-two-scores"),
        ),
        (ISSUES, {"train": (X, Y[::-1])}, row("report-other-labels")),
        (
            REVERSED,
            {"train": (X, 1 - SEVERAL)},
            row("report-other-labels", "the id"),
        ),
        (
            REVERSED,
            {"train": (X, SEVERAL), "train_predictions": SEVERAL},
            row("report-several-labels"),
        ),
        (
            REVERSED,
            {"train": (X, SEVERAL), "class_names": ["red"]},
            "a name for every label. Received: 1 names, and 3 labels",
        ),
    ],
)
def test_what_does_not_go_with_the_issues_is_refused(
    tmp_path, issues, changes, message
):
    with pytest.raises(ValueError, match=message):
        write(tmp_path, issues, **changes)
    assert not list(tmp_path.iterdir())


def test_what_are_no_issues_is_refused(tmp_path):
    with pytest.raises(TypeError, match="should be a LabelIssues"):
        write(tmp_path, ISSUES.ids)
