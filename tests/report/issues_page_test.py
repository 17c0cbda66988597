"""Suggested labels in a real browser: seen, accepted, changed and exported."""

import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys

import keras_tracin as kt
from tests.report import pages
from tests.report.browser import Page, needs_chromium

pytestmark = needs_chromium

NAMES = ["ant", "bee", "cat"]
ISSUES = pages.issues()
IDS = ISSUES.ids.astype(str).tolist()


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    """Label issues of images, and queries."""
    top, _ = pages.results()
    path = tmp_path_factory.mktemp("issues") / "issues.html"
    kt.report.write_html(
        path,
        train=(pages.grey_images(), pages.labels()),
        top_k=top,
        label_issues=ISSUES,
        max_suspects=30,
        class_names=NAMES,
        train_predictions=pages.labels(),  # not what is suggested
    )
    return Page(browser, path)


def names_of(place):
    """The given and the suggested label of a suspect."""
    given, suggested = ISSUES.given_labels, ISSUES.suggested_labels
    return NAMES[given[place]], NAMES[suggested[place]]


def facts(page):
    """What is told of the current example."""
    words = [fact.text.split("\n") for fact in page.all("#review .facts > div")]
    return dict(words)


def test_suggestions_and_the_estimate_can_be_seen(page):
    page.open("review")
    given, suggested = names_of(0)
    shown = facts(page)
    assert shown["Given label"] == given
    assert shown["Suggested label"] == f"{suggested} (90%)"
    assert shown["Estimate"] == "likely wrong"
    assert "Self-influence" not in shown
    assert float(shown["Suspicion"]) == pytest.approx(
        ISSUES.scores[0], rel=0.01
    )
    row = page.text("#review .row .labels").split()
    assert (row[0], row[-2:]) == (given, [suggested, "(90%)"])
    assert page.text(".row .doubt").endswith("wrong?")

    page.keys(*[Keys.ARROW_DOWN] * 8)  # the first that is no issue
    shown = facts(page)
    assert shown["Suggested label"].startswith("the given one")
    assert shown["Estimate"] == "likely right"
    page.keys("?")
    help_text = page.text("#about")
    assert "Suspicion is large" in help_text
    assert "Self-influence" not in help_text
    page.keys(Keys.ESCAPE)


def test_a_suggestion_is_accepted_by_two_keys_or_another_label_chosen(
    page, downloads
):
    page.open("review")
    page.keys("r")
    options = [
        option.text.split() for option in page.all("#relabel-options > *")
    ]
    assert options[0] == [names_of(0)[1], "suggested"]
    page.keys(Keys.ESCAPE)
    assert page.all("#review .row .chip") == []
    assert f"id {IDS[0]}" in page.focused()

    page.keys("r", Keys.ENTER)
    assert page.text("#review .row .chip").endswith(names_of(0)[1])
    given, suggested = names_of(1)
    (other,) = set(NAMES) - {given, suggested}
    page.keys("r", *other, Keys.ENTER, "k")
    rows = page.exported(downloads)
    assert [row["id"] for row in rows] == IDS[:3]
    assert [row["decision"] for row in rows] == ["relabel", "relabel", "keep"]
    expected = [names_of(0)[1], other, ""]
    assert [row["new_name"] for row in rows] == expected
    assert rows[0]["new_label"] == str(ISSUES.suggested_labels[0])
    assert rows[0]["given_label"] == str(ISSUES.given_labels[0])

    y = pages.labels()
    _, applied = kt.report.apply_decisions(
        (pages.grey_images(), y), downloads / "issues-decisions.csv"
    )
    y[ISSUES.ids[0]] = ISSUES.suggested_labels[0]
    y[ISSUES.ids[1]] = NAMES.index(other)
    np.testing.assert_array_equal(applied, y)


def test_those_estimated_to_be_wrong_can_be_listed_alone(page):
    page.open("review")
    page.choose("issue", "Estimated to be wrong (8)")
    assert set(page.row_ids()) <= set(IDS[:8])
    assert page.text(".filters .shown").startswith("8 of 30")
    page.choose("issue", "Estimated to be right")
    assert page.row_ids()[0] == IDS[8]


def test_it_fits_a_phone_and_the_browser_complains_of_nothing(page):
    page.open("review", width=360, height=640)
    page.complaints()
    overflow = (
        "[...document.querySelectorAll('.side *, .detail *')]"
        ".filter(e => !e.closest('.unseen')"
        " && e.getBoundingClientRect().right > 361).length"
    )
    assert page.run(overflow) == 0
    page.click("#review .row")
    assert page.run(overflow) == 0
    page.keys(Keys.ESCAPE)
    assert page.complaints() == []


def test_of_too_many_classes_to_list_the_suggested_one_is_offered(
    browser, tmp_path, downloads
):
    n = 1_200
    issues = kt.LabelIssues(
        *(np.arange(n), np.arange(n, 0, -1.0), 3, "loss", ()),
        given_labels=np.arange(n),
        suggested_labels=np.arange(n)[::-1],
        suggested_probabilities=np.full(n, 0.5),
    )
    path = kt.report.write_html(
        tmp_path / "many.html",
        train=(np.array([f"text {i}" for i in range(n)]), np.arange(n)),
        label_issues=issues,
        max_suspects=n,
    )
    page = Page(browser, path).open("review")
    page.keys("r", Keys.ENTER)
    (row,) = page.exported(downloads)
    assert (row["given_label"], row["new_label"]) == ("0", "1199")
