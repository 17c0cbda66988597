"""Why a label is suspected, and all of them together, in a real browser."""

import dataclasses

import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys

import keras_tracin as kt
from keras_tracin.labels import TrainingDynamics
from keras_tracin.results import Ranking, TopK
from tests.error_rows import row
from tests.report import pages
from tests.report.browser import Page, needs_chromium

NAMES = ["ant", "bee", "cat"]
ISSUES = pages.issues()
N = len(ISSUES)
LISTED = 30  # of 40
EXPLAINED = 4  # suspects


def ranked():
    """A `TopK` in which every suspect is its own first proponent."""
    rng = np.random.default_rng(0)
    ids = ISSUES.ids[:EXPLAINED]
    others = np.stack(
        [rng.permutation(np.delete(np.arange(N), own))[:5] for own in ids]
    )
    up = np.c_[ids, others[:, :2]]
    scores = np.array([[9.0, 2.0, 1.0]] * EXPLAINED)
    return TopK(Ranking(up, scores), Ranking(others[:, 2:], -scores), ids)


def dynamics():
    """Probabilities `[2, n]` whose means and deviations are known."""
    mean = np.linspace(0.1, 0.9, N)
    return TrainingDynamics(
        ids=np.arange(N),
        epochs=np.array([1, 2]),
        kind="classes",
        loss=np.ones((2, N)),
        probability=np.stack([mean - 0.05, mean + 0.05]),
    )


WHY = ranked()


def write(path, **options):
    defaults = {
        "train": (pages.grey_images(), pages.labels()),
        "label_issues": ISSUES,
        "max_suspects": LISTED,
        "class_names": NAMES,
        "overwrite": True,
    }
    return kt.report.write_html(path, **defaults | options)


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    path = tmp_path_factory.mktemp("summary") / "summary.html"
    write(path, explanation=WHY, neighbours=WHY, dynamics=dynamics())
    return Page(browser, path)


def cards(page, kind):
    """Ids and scores on the cards of a row beside the suspect."""
    found = page.all(f"#review .ranking.{kind} .card")
    ids = [each.find_element("css selector", ".id").text for each in found]
    scores = [
        each.find_element("css selector", ".score").text for each in found
    ]
    return [int(text.removeprefix("id ")) for text in ids], scores


@needs_chromium
def test_beside_a_suspect_stands_what_contradicts_it_and_what_is_near(page):
    page.open("review")
    for place in range(2):
        ids, scores = cards(page, "opponents")
        assert ids == WHY.opponents.ids[place].tolist()
        assert [score[1:] for score in scores] == ["9", "2", "1"]
        # It agrees with itself, which tells nothing.
        assert cards(page, "proponents")[0] == (
            WHY.proponents.ids[place, 1:].tolist()
        )
        assert cards(page, "neighbours")[0] == (
            WHY.proponents.ids[place, 1:].tolist()
        )
        page.keys("n" if place else "u")
    page.keys(Keys.END)
    assert page.all("#review .ranking") == []  # this one is not explained


@needs_chromium
def test_a_card_can_be_marked_and_opened(page):
    page.open("review")
    card = "#review .ranking.opponents .card"
    page.run("document.querySelector(arguments[0]).focus()", card)
    page.keys("x")
    other = WHY.opponents.ids[0, 0]
    assert page.text(f"{card} .decided").endswith("Remove")
    page.click(card)
    assert page.text("#example h2") == f"Training example {other}"


@needs_chromium
def test_the_summary_counts_and_leads_to_the_list(page):
    page.open("summary")
    assert page.text(".estimate").startswith("8 of 40 labels (20%)")
    y, wrong = pages.labels(), ISSUES.given_labels[:8]
    for place, line in enumerate(
        page.all("#summary section:first-of-type tbody tr")
    ):
        cells = [cell.text for cell in line.find_elements("css selector", "*")]
        assert NAMES[place] in cells
        assert str((y == place).sum()) in cells
        assert str((wrong == place).sum()) in cells
    pair = page.one("#summary section:nth-of-type(2) tbody .link")
    given, suggested = map(NAMES.index, pair.text.split(" → "))
    assert suggested == (given + 1) % 3
    pair.click()
    expected = ISSUES.ids[:8][wrong == given]
    assert page.row_ids() == expected.astype(str).tolist()


@needs_chromium
def test_a_point_of_the_map_opens_its_example(page):
    page.open("summary")
    example = int(ISSUES.ids[3])
    at = (
        "((map) => { const box = map.getBoundingClientRect();"
        " const [x, y] = [0.05 / 0.5, arguments[0]];"
        " return [box.left + 40 + x * (box.width - 48),"
        " box.top + box.height - 40 - y * (box.height - 48)]; })"
        "(document.querySelector('canvas'))"
    )
    page.run("document.querySelector('canvas').scrollIntoView()")
    x, y = page.run(at, float(np.linspace(0.1, 0.9, N)[example]))
    for kind in ("mousePressed", "mouseReleased"):
        page.driver.execute_cdp_cmd(
            "Input.dispatchMouseEvent",
            {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1},
        )
    page.until(lambda: page.all("#review h2"))
    assert page.text("#review h2") == f"Training example {example}"


@needs_chromium
def test_it_fits_a_phone_and_the_browser_complains_of_nothing(page):
    page.complaints()
    page.open("summary", width=360, height=640)
    assert page.run(
        "document.scrollingElement.scrollWidth <= 360 && "
        "document.querySelector('#summary').scrollWidth <= 360"
    )
    page.open("review", width=360, height=640)
    page.click("#review .row")
    assert page.run("document.querySelector('.detail').scrollWidth <= 360")
    assert page.complaints() == []


def test_classes_of_no_suspect_are_counted_too(tmp_path):
    y = np.zeros(N, int)
    y[ISSUES.ids[-1]] = 7  # not listed, and of a class that none has
    issues = dataclasses.replace(
        ISSUES,
        given_labels=y[ISSUES.ids],
        suggested_labels=np.where(np.arange(N) < 8, 1, y[ISSUES.ids]),
    )
    data = pages.embedded(
        write(
            tmp_path / "report.html",
            train=(pages.grey_images(), y),
            label_issues=issues,
            class_names=None,
        )
    )
    values = [int(value) for value, _ in data["classes"]]
    counts = data["suspects"]["counts"]
    told = [(values[c], total, wrong) for c, total, wrong in counts["classes"]]
    assert told == [(0, N - 1, 8), (7, 1, 0)]
    (pair,) = counts["pairs"]
    assert [values[pair[0]], values[pair[1]], pair[2]] == [0, 1, 8]


def test_points_are_those_of_the_data_map(tmp_path):
    data = pages.embedded(write(tmp_path / "report.html", dynamics=dynamics()))
    drawn = data["suspects"]["map"]
    ids = [int(data["sets"]["train"]["ids"][at]) for at in drawn["of"]]
    assert ids == ISSUES.ids[:LISTED].tolist()
    confidence = np.linspace(0.1, 0.9, N)
    expected = np.c_[np.full(LISTED, 0.05), confidence[ids]]
    np.testing.assert_allclose(drawn["points"], expected, atol=5.1e-4)
    assert len(drawn["others"]) == N - LISTED
    assert drawn["total"] == N


def test_what_does_not_belong_to_suspects_is_refused(tmp_path):
    path = tmp_path / "report.html"
    other = dataclasses.replace(WHY, query_ids=np.arange(100, 104))
    with pytest.raises(ValueError, match=row("report-explanation", "100")):
        write(path, explanation=other)
    with pytest.raises(ValueError, match=row("report-beside")):
        write(path, label_issues=None, top_k=WHY, explanation=WHY)
    with pytest.raises(TypeError, match="`dynamics` should be"):
        write(path, dynamics=WHY)
    diverged = dataclasses.replace(
        dynamics(), probability=np.full((2, N), np.nan)
    )
    with pytest.raises(ValueError, match="`dynamics` should have finite"):
        write(path, dynamics=diverged)
    others = dataclasses.replace(dynamics(), ids=np.arange(100, 100 + N))
    with pytest.raises(ValueError, match=row("figure-id", "dynamics")):
        write(path, dynamics=others)
    assert not path.exists()
