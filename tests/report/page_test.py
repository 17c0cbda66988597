"""The page in a real browser: what a user sees, clicks, types and exports."""

import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys

import keras_tracin as kt
from tests.report import pages
from tests.report.browser import Page, needs_chromium

pytestmark = needs_chromium

NAMES = ["ant", "bee", "cat"]
HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def images(browser, tmp_path_factory):
    """Grey images of three classes, with predictions."""
    top, own = pages.results()
    path = tmp_path_factory.mktemp("images") / "images.html"
    probabilities = np.random.default_rng(2).dirichlet(np.ones(3), 40)
    kt.report.write_html(
        path,
        train=(pages.grey_images(), pages.labels()),
        test=(pages.grey_images(6, 3), pages.labels(6)),
        top_k=top,
        self_influence=own,
        max_suspects=30,
        class_names=NAMES,
        train_predictions=probabilities,
    )
    return Page(browser, path)


@pytest.fixture(scope="module")
def hostile(browser, tmp_path_factory):
    """Texts, labels, ids and a title that would like to be markup."""
    top, own = pages.results(4, 1)
    ids = np.array([f"{HOSTILE}{i}" for i in range(4)])
    top = kt.TopK(
        *(
            kt.Ranking(ids[side.ids], side.scores)
            for side in (top.proponents, top.opponents)
        ),
        np.array(["query"]),
    )
    texts = np.array([f"{HOSTILE} {{{{7*7}}}} text {i}" for i in range(4)])
    labels = np.array([HOSTILE, "=1+2", HOSTILE, 'a "quoted", label'])
    path = tmp_path_factory.mktemp("hostile") / "hostile.html"
    kt.report.write_html(
        path,
        title=f"{HOSTILE} {{{{7*7}}}}",
        train=kt.with_ids((texts, labels), ids).batch(2),
        test=kt.with_ids((texts[:1], labels[:1]), ["query"]).batch(1),
        top_k=top,
        self_influence=kt.SelfInfluence(own.scores, ids),
    )
    return Page(browser, path)


def ranked_ids(count):
    _, own = pages.results()
    return own.ranking().ids[:count].astype(str).tolist()


def test_suspects_are_listed_by_score_and_shown_with_their_images(images):
    images.open("review")
    shown = images.row_ids()
    assert shown == ranked_ids(len(shown))
    assert len(shown) >= 5
    assert images.text(".detail h2") == f"Training example {shown[0]}"
    sides = (
        "[...document.querySelectorAll('.row img')].map(i => i.naturalWidth)"
    )
    images.until(lambda: set(images.run(sides)) == {6})
    assert images.text("#progress-text") == "0 of 30 reviewed"


def test_filters_and_orders_choose_what_is_listed(images):
    images.open("review")
    y = pages.labels()
    ranking = [int(one) for one in ranked_ids(30)]
    images.choose("label", "bee")
    expected = [str(i) for i in ranking if y[i] == 1]
    shown = images.row_ids()
    assert shown == expected[: len(shown)]
    assert f"{len(expected)} of 30" in images.text(".filters .shown")

    images.choose("order", "Lowest")
    shown = images.row_ids()
    assert shown == expected[::-1][: len(shown)]

    images.click(".filters .shown button")
    images.one("input[type=search]").send_keys("nothing like this")
    assert images.row_ids() == []
    assert images.text(".none") == "Nothing matches the filter."
    assert images.all(".marks button") == []


def test_keys_move_mark_and_undo(images):
    images.open("review")
    ids = ranked_ids(5)
    assert f"id {ids[0]}" in images.focused()
    images.keys(Keys.ARROW_DOWN)
    assert f"id {ids[1]}" in images.focused()
    assert images.text(".detail h2").endswith(f" {ids[1]}")
    images.keys(Keys.ARROW_UP, "k", "x")
    assert images.text("#progress-text") == "2 of 30 reviewed"
    assert f"id {ids[2]}" in images.focused()
    chips = [chip.text for chip in images.all(".row .chip")]
    assert chips == ["✓ Keep", "✕ Remove"]

    images.keys("z")
    assert f"id {ids[1]}" in images.focused()
    assert images.text("#progress-text") == "1 of 30 reviewed"
    images.keys("u", Keys.HOME, "n")
    assert f"id {ids[2]}" in images.focused()
    images.keys(Keys.HOME, Keys.BACKSPACE)
    assert images.text("#progress-text") == "1 of 30 reviewed"
    images.keys(Keys.END)
    assert f"id {ranked_ids(30)[-1]}" in images.focused()


def test_focus_can_be_seen(images):
    images.open("review")
    images.keys(Keys.ARROW_DOWN)
    outline = images.run(
        "getComputedStyle(document.activeElement).outlineStyle"
    )
    assert outline == "solid"


def test_letters_in_the_search_field_mark_nothing(images):
    images.open("review")
    images.keys("/", "k", "x", Keys.BACKSPACE)
    assert images.run("document.activeElement.value") == "k"
    assert images.text("#progress-text") == "0 of 30 reviewed"
    images.keys(Keys.ESCAPE)
    assert images.run("document.activeElement.value") == ""
    images.keys(Keys.ESCAPE)
    assert f"id {ranked_ids(1)[0]}" in images.focused()


def test_enter_goes_to_the_example_and_escape_back(images):
    images.open("review")
    row = images.focused()
    images.keys(Keys.ENTER)
    assert images.run("document.activeElement.className") == "detail"
    images.keys(Keys.ESCAPE)
    assert images.focused() == row


def test_a_click_on_a_button_leaves_the_focus_on_it(images):
    images.open("review")
    images.click(".marks [data-kind=keep]")
    assert images.focused().startswith("✓ Keep")
    assert images.text(".detail h2").endswith(f" {ranked_ids(2)[1]}")


def test_relabelling_offers_the_prediction_and_finds_a_class(images):
    images.open("review")
    given = images.text(".facts b")
    predicted = images.text(".facts > div:nth-child(2) dd").split(" ")[0]
    images.keys("r")
    options = [each.text for each in images.all("#relabel-options > div")]
    assert given not in options
    if predicted != given:
        assert options[0].split() == [predicted, "predicted"]
    other = next(name for name in NAMES if name != given)
    images.keys(*other[:2], Keys.ENTER)
    assert images.all("#relabel") == []
    assert images.text(".row .chip").startswith("→")
    assert images.text(".row .chip").endswith(other)
    assert f"id {ranked_ids(2)[1]}" in images.focused()

    images.keys("r", *"nonsense", Keys.ENTER)
    assert images.text("#relabel-error") == "No other class fits “nonsense”."
    images.keys(Keys.ESCAPE)
    assert images.text("#progress-text") == "1 of 30 reviewed"


def test_decisions_are_exported_and_survive_a_reload(images, downloads):
    images.open("review")
    ids, y = ranked_ids(30), pages.labels()
    _, own = pages.results()
    images.keys("k", "x", "u", Keys.END, "r", Keys.ENTER)
    images.reload()
    assert images.text("#progress-text") == "4 of 30 reviewed"
    assert images.text(".detail h2").endswith(f" {ids[3]}"), "the next one"

    rows = images.exported(downloads)
    assert [row["id"] for row in rows] == [*ids[:3], ids[-1]]
    assert [row["decision"] for row in rows] == [
        "keep",
        "remove",
        "unsure",
        "relabel",
    ]
    for row in rows:
        at = int(row["id"])
        assert row["given_label"] == str(y[at])
        assert row["given_name"] == NAMES[y[at]]
        assert np.float32(row["score"]) == own.scores[at]
    new = rows[-1]
    assert new["new_label"] in {"0", "1", "2"} - {new["given_label"]}
    assert new["new_name"] == NAMES[int(new["new_label"])]
    assert {row["new_label"] for row in rows[:-1]} == {""}


def test_exported_decisions_can_be_loaded(images, downloads):
    images.open("review")
    images.keys("k", "x", "r", Keys.ENTER)
    before = images.exported(downloads)
    file = downloads / "images-decisions.csv"
    with open(file, "a") as table:
        table.write("999,0,ant,keep,,,1.5\r\n")
    images.open("review")
    images.driver.find_element("css selector", "#file").send_keys(str(file))
    images.until(lambda: images.text("#notice"))
    assert images.text("#notice").startswith("3 decisions loaded")
    assert "1 row was left out" in images.text("#notice")
    assert images.exported(downloads) == before
    images.keys("z")
    assert images.text("#progress-text") == "0 of 30 reviewed"


def test_queries_stand_with_their_proponents_and_opponents(images):
    images.open("queries")
    top, _ = pages.results()
    images.keys(Keys.ARROW_DOWN)
    assert images.text(".detail h2") == "Query 1"
    for side, sign in (("proponents", "+"), ("opponents", "\u2212")):
        ranking = getattr(top, side)
        cards = images.all(f".ranking.{side} .card")
        found = [int(card.get_attribute("data-example")) for card in cards]
        shown_ids = images.run(
            "JSON.parse(document.getElementById('data').textContent)"
            ".sets.train.ids"
        )
        assert [int(shown_ids[at]) for at in found] == ranking.ids[1].tolist()
        for card, score in zip(cards, ranking.scores[1], strict=True):
            shown = card.find_element("css selector", ".score").text
            assert shown.startswith(sign)
            assert float(shown[1:]) == pytest.approx(abs(score), rel=0.01)
        assert side[:-1] in images.text(f".ranking.{side} h3").lower()


def test_queries_are_filtered_and_sorted(images):
    images.open("queries")
    top, _ = pages.results()
    images.choose("order", "Strongest opponent")
    order = np.argsort(top.opponents.scores[:, 0])
    assert images.row_ids() == order.astype(str).tolist()
    y = pages.labels(6)
    images.choose("label", NAMES[y[0]])
    expected = [str(i) for i in order if y[i] == y[0]]
    assert images.row_ids() == expected


def test_a_proponent_can_be_opened_marked_and_found_in_the_review(images):
    images.open("queries")
    images.click(".card")
    opened = images.text("#example h2")
    images.keys("x")
    assert images.text("#example .facts .chip") == "✕ Remove"
    images.keys(Keys.ESCAPE)
    assert images.text(".card .chip") == "✕ Remove"
    images.keys("z")
    assert images.all(".card .chip") == []
    is_suspect = opened.split(" ")[-1] in ranked_ids(30)
    images.click(".card")
    assert bool(images.all("#example [data-act=review]")) == is_suspect
    if is_suspect:
        images.click("#example [data-act=review]")
        assert images.text("#review h2") == opened


def test_an_example_leads_to_the_queries_that_it_moved(images):
    images.open("review")
    top, _ = pages.results()
    moved = np.hstack([top.proponents.ids, top.opponents.ids])
    ids = ranked_ids(30)
    place = next(at for at, one in enumerate(ids) if int(one) in moved)
    images.keys(*[Keys.ARROW_DOWN] * place)
    query = images.text(".moved .link")
    assert int(ids[place]) in moved[int(query)]
    images.click(".moved .link")
    assert images.text("#queries h2") == f"Query {query}"


def test_what_looks_like_markup_stays_text(hostile, downloads):
    hostile.open("review")
    hostile.complaints()
    assert hostile.driver.title == f"{HOSTILE} {{{{7*7}}}}"
    assert hostile.text("h1") == f"{HOSTILE} {{{{7*7}}}}"
    assert HOSTILE in hostile.text(".detail .text")
    assert "{{7*7}}" in hostile.text(".detail .text")
    hostile.keys("r", *"<b>new", Keys.ENTER)
    hostile.click("#tab-queries")
    assert HOSTILE in hostile.text(".card .excerpt")
    hostile.click(".card")
    assert HOSTILE in hostile.text("#example h2")
    hostile.keys(Keys.ESCAPE)
    assert hostile.run("document.images.length") == 0
    assert hostile.run("document.scripts.length") == 2
    assert hostile.driver.title.startswith("</script>")
    assert hostile.complaints() == []
    (row,) = hostile.exported(downloads)
    assert row["new_label"] == "<b>new"
    assert HOSTILE in row["id"]


@pytest.mark.parametrize(
    "attempt",
    [
        "const e = document.createElement('div');"
        "e.setAttribute('onclick', 'window.owned = 1');"
        "document.body.append(e); e.click();",
        "const e = document.createElement('script');"
        "e.textContent = 'window.owned = 1'; document.body.append(e);",
        "document.body.insertAdjacentHTML('beforeend',"
        "'<img src=x onerror=\"window.owned = 1\">');",
    ],
)
def test_the_policy_lets_no_other_script_run(images, attempt):
    images.open("review")
    images.driver.execute_script(f"try {{ {attempt} }} catch {{}}")
    assert images.run("window.owned === undefined")
    assert images.complaints(), "the browser says that it refused"


def test_the_page_asks_nothing_of_the_network_and_complains_of_nothing(images):
    images.open("review")
    images.requests()
    images.complaints()
    images.reload()
    images.keys("k", "?", Keys.ESCAPE)
    images.click("#tab-queries")
    images.click(".card")
    assert images.requests() == []
    assert images.complaints() == []


@pytest.mark.parametrize("view", ["review", "queries"])
def test_a_phone_shows_everything_in_its_width(images, view):
    images.open(view, width=360, height=640)

    def overflow():
        return images.run(
            "[document.documentElement, ...document.querySelectorAll("
            "'.top *, .side *, .detail *')]"
            ".filter(e => !e.closest('.scroller, .unseen')"
            " && e.getBoundingClientRect().right > 361).length"
        )

    assert images.run("document.documentElement.scrollWidth") == 360
    assert overflow() == 0
    assert images.all(f"#{view} .detail") == []
    images.click(f"#{view} .row")
    assert images.text(f"#{view} .position").startswith("1 of ")
    assert overflow() == 0
    if view == "review":
        images.click("#review .marks [data-kind=unsure]")
        assert images.text("#review .position").startswith("2 of ")
    images.keys(Keys.ESCAPE)
    assert images.all(f"#{view} .detail") == []


def test_both_colour_schemes_have_contrast(images):
    backgrounds = {}
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        images.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [feature]}
        )
        images.open("review")
        backgrounds[scheme] = [
            images.run(f"getComputedStyle(document.body).{what}")
            for what in ("backgroundColor", "color")
        ]
    images.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {})
    brightness = {
        scheme: [sum(map(int, colour[4:-1].split(","))) for colour in both]
        for scheme, both in backgrounds.items()
    }
    page, text = brightness["light"]
    assert page - text > 500
    page, text = brightness["dark"]
    assert text - page > 500


def test_ten_thousand_rows_are_few_in_the_document(browser, tmp_path):
    n = 10_000
    texts = np.array([f"row number {i}" for i in range(n)])
    own = kt.SelfInfluence(np.arange(n, 0, -1.0), np.arange(n))
    path = kt.report.write_html(
        tmp_path / "large.html",
        train=(texts, np.arange(n) % 10),
        self_influence=own,
        max_suspects=n,
    )
    page = Page(browser, path).open()
    page.keys("k")

    def nodes():
        return page.run("document.querySelectorAll('*').length")

    few = nodes()
    assert few < 700
    page.keys(Keys.END)
    assert page.text("#review h2") == "Training example 9999"
    assert page.text(".detail .text") == "row number 9999"
    page.run("document.querySelector('#review .list').scrollTop = 340000")
    page.until(lambda: any("number 500" in each for each in page.row_ids()))
    assert nodes() < 700
    page.one("input[type=search]").send_keys("number 777")
    found = sum("777" in str(i) for i in range(n))
    assert page.text(".filters .shown").startswith(f"{found} of 10,000")
    assert path.stat().st_size < 120 * n


def test_where_the_browser_keeps_nothing_the_page_says_so(images):
    command = "Page.addScriptToEvaluateOnNewDocument"
    source = (
        "Object.defineProperty(window, 'localStorage',"
        "{get() { throw new Error('no storage'); }});"
    )
    made = images.driver.execute_cdp_cmd(command, {"source": source})
    try:
        images.driver.get("about:blank")
        images.driver.get(f"{images.path.as_uri()}#view=review")
        assert "Export them before you close it" in images.text("#notice")
        images.keys("k")
        assert images.text("#progress-text") == "1 of 30 reviewed"
        images.keys("z")
    finally:
        images.driver.execute_cdp_cmd(
            "Page.removeScriptToEvaluateOnNewDocument", made
        )
