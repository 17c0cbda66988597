"""Texts of tokens on the page: marks, values, keys and narrow screens."""

import numpy as np
import pytest
from selenium.webdriver.common.keys import Keys

import keras_tracin as kt
from tests.error_rows import row
from tests.report import pages
from tests.report.browser import Page, needs_chromium

MINUS = "\N{MINUS SIGN}"
HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">"
TOKENS = [
    ["▁the", "▁un", "believ", "able", "▁cat", "<pad>"],
    ["▁a", "▁dog", "<0xE4>", "<0xBD>", "<0xA0>", "▁東京"],
    ["▁שלום", "▁עולם", "▁20", "\n", "<pad>", "<pad>"],
    [f"▁{HOSTILE}", "▁{{7*7}}", "▁&amp;", "▁so", "<pad>", "<pad>"],
]
VOCABULARY = sorted({token for tokens in TOKENS for token in tokens})
IDS = np.array([[VOCABULARY.index(token) for token in row_] for row_ in TOKENS])
SCORES = np.zeros((2, 4, 6))
SCORES[0, 0] = [0.125, -0.5, 0.25, 1, 0, 0]
SCORES[0, 1] = [0, 0.25, 0.01, 0.01, 0.03, 0]
SCORES[0, 2] = [-0.5, -0.25, 0.125, 0, 0, 0]
SCORES[0, 3] = [-1, -1, 0, 0.001, 0, 0]
SCORES[1] = -SCORES[0]
REST = np.zeros((2, 4))
REST[0, 0] = 0.125
INFLUENCE = kt.TokenInfluence(SCORES, REST, np.arange(2), np.arange(4))
ASKED = np.array([[0, 0, 1, 1, 0], [1, 1, 1, 1, 1]], "float32")
QUERIES = IDS[:2, :-1], IDS[:2, 1:], ASKED


def write(path, **changes):
    arguments = {
        "train": IDS,
        "test": QUERIES,
        "top_k": INFLUENCE.attribution.top_k(2),
        "token_influence": INFLUENCE,
        "tokenizer": VOCABULARY,
    }
    return kt.report.write_html(path, **arguments | changes)


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "tokens.html"
    return Page(browser, write(path))


def test_the_page_holds_pieces_and_their_shares(tmp_path):
    data = pages.embedded(write(tmp_path / "a.html"))
    train = data["sets"]["train"]
    assert train["tokens"][0] == ["the", " un", "believ", "able", " cat"]
    assert train["tokens"][1] == ["a", " dog", "你", " 東京"]
    assert data["sets"]["test"]["asked"] == [[3, 4], []]
    first = dict(
        zip(
            data["queries"]["proponents"]["examples"][0],
            data["shares"]["proponents"][0],
            strict=True,
        )
    )
    assert first[0] == [0.125, -0.5, 0.25, 1, 0, 0.125]
    assert first[1] == [0, 0.25, 0.05, 0, 0]


def test_tokens_without_shares_are_texts(tmp_path):
    plain = write(tmp_path / "a.html", token_influence=None)
    data = pages.embedded(plain)
    assert "".join(data["sets"]["train"]["tokens"][0]) == "the unbelievable cat"
    assert data["shares"] == {}
    changes = {"train": np.array(TOKENS), "test": np.array(["?", "!"])}
    path = write(tmp_path / "b.html", tokenizer=None, **changes)
    data = pages.embedded(path)
    assert data["sets"]["train"]["tokens"][1] == ["a", " dog", "你", " 東京"]
    assert data["sets"]["test"]["tokens"] == [["?"], ["!"]]
    some = kt.TokenInfluence(SCORES[:1, 1:2], REST[:1, 1:2], [0], [1])
    some = kt.TokenInfluence(*map(np.asarray, vars(some).values()))
    data = pages.embedded(write(tmp_path / "c.html", token_influence=some))
    found = [
        share is not None
        for side in data["shares"].values()
        for query in side
        for share in query
    ]
    assert sum(found) == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"token_influence": INFLUENCE.attribution},
            TypeError,
            row("report-token-result", "Attribution"),
        ),
        (
            {
                "top_k": None,
                "self_influence": kt.SelfInfluence(np.ones(4), np.arange(4)),
            },
            ValueError,
            row("report-tokens-alone"),
        ),
        (
            {
                "token_influence": kt.TokenInfluence(
                    SCORES, REST, np.arange(7, 9), np.arange(4)
                )
            },
            ValueError,
            row("report-other-tokens", "[7, 8]"),
        ),
        ({"train": IDS[:, :4]}, ValueError, row("token-texts", "of 6 tokens")),
        ({"tokenizer": VOCABULARY[:2]}, ValueError, row("tokenizer-id")),
        (
            {
                "token_influence": kt.TokenInfluence(
                    np.nan * SCORES, REST, np.arange(2), np.arange(4)
                )
            },
            ValueError,
            "Shares should be finite",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    changes, error, message, tmp_path
):
    with pytest.raises(error, match=message):
        write(tmp_path / "page.html", **changes)
    assert not list(tmp_path.iterdir())


def token(page, text):
    """The first token on the page with this text."""
    return next(t for t in page.all(".tokens .token") if t.text == text)


def style(page, element, name):
    return page.run(f"getComputedStyle(arguments[0])['{name}']", element)


@needs_chromium
def test_sign_and_size_can_be_told_without_colour(page):
    page.open("queries")
    lines = {
        text: (
            style(page, token(page, text), "text-decoration-style"),
            float(
                style(
                    page, token(page, text), "text-decoration-thickness"
                ).removesuffix("px")
            ),
        )
        for text in ("able", "believ", "un")
    }
    assert [kind for kind, _ in lines.values()] == ["solid", "solid", "dashed"]
    assert lines["able"][1] > lines["un"][1] > lines["believ"][1] > 0
    plain = token(page, "cat")
    assert style(page, plain, "text-decoration-line") == "none"
    assert style(page, token(page, "able"), "background-color") != style(
        page, plain, "background-color"
    )


@needs_chromium
def test_subwords_are_joined_and_padding_is_left_out(page):
    page.open("queries")
    texts = [each.text for each in page.all(".tokens")]
    assert "the unbelievable cat" in texts
    assert not any("<pad>" in text for text in texts)


@needs_chromium
def test_the_query_stands_beside_with_what_it_asks_about(page):
    page.open("queries", 1280)
    question, answers = page.one(".question"), page.one(".answers")
    assert question.rect["x"] + question.rect["width"] <= answers.rect["x"]
    asked = [each.text for each in page.all(".question .asked-about")]
    assert [text.strip() for text in asked] == ["able", "cat"]
    assert page.text(".question .text") == "the unbelievable cat"
    assert "Asks about\nable cat" in page.text(".question .facts")
    page.open("queries", 390, 844)
    page.click(".row")
    question, answers = page.one(".question"), page.one(".answers")
    assert question.rect["y"] + question.rect["height"] <= answers.rect["y"]
    assert page.run("document.documentElement.scrollWidth") == 390
    assert page.run(
        "[...document.querySelectorAll('.tokens')]"
        ".every(e => e.scrollWidth <= e.clientWidth)"
    )


@needs_chromium
def test_values_are_told_to_a_pointer_a_reader_and_by_keys(page):
    page.open("queries")
    able = token(page, "able")
    assert able.get_attribute("title") == "+1"
    assert able.get_attribute("aria-label") == "able, +1"
    card = page.one(".tokens-card")
    assert "Of no token: +0.125" in card.text
    page.run("document.querySelector('.tokens').focus()")
    page.keys(Keys.ARROW_DOWN)  # from the largest share to the next
    listed = page.one(".tokens")
    current = listed.get_attribute("aria-activedescendant")
    assert page.text(f"#{current}") == "un"
    assert page.one(f"#{current}").get_attribute("aria-selected") == "true"
    assert page.text(".readout") == f"un {MINUS}0.5, {MINUS}50% of the score"
    page.keys(Keys.ARROW_RIGHT)
    assert page.text(".readout").startswith("believ +0.25, 25%")
    page.keys(Keys.HOME, Keys.ARROW_LEFT)
    assert page.text(".readout").startswith("the +0.125")
    page.keys(Keys.END)
    assert page.text(".readout").startswith("cat +0")
    token(page, "able").click()
    assert page.text(".readout") == "able +1, 100% of the score"
    page.keys("k")  # marks the example whose tokens have the focus
    assert page.text(".tokens-card .chip") == "✓ Keep"


@needs_chromium
def test_what_is_read_leftwards_goes_leftwards(page):
    page.open("queries")
    hebrew = next(t for t in page.all(".tokens") if "שלום" in t.text)
    assert style(page, hebrew, "direction") == "rtl"
    words = hebrew.find_elements("css selector", ".token")
    assert words[0].rect["x"] > words[1].rect["x"] > words[2].rect["x"]
    words[0].click()
    page.keys(Keys.ARROW_LEFT)
    assert words[1].get_attribute("aria-selected") == "true"
    assert words[3].get_attribute("aria-label").startswith("line break, ")


@needs_chromium
def test_tokens_are_never_markup(page):
    page.open("queries")
    page.complaints()
    hostile = next(t for t in page.all(".tokens") if "{{7*7}}" in t.text)
    assert hostile.text.startswith(HOSTILE)
    assert "&amp;" in hostile.text
    assert page.all(".tokens img") == []
    assert page.run("document.title") != "owned"
    assert page.requests() == []
    assert page.complaints() == []


@needs_chromium
def test_details_open_the_example_and_the_search_finds_its_text(page):
    page.open("queries")
    page.click(".tokens-card button")
    assert page.text("#example h2").startswith("Training example")
    page.keys(Keys.ESCAPE)
    page.one("input[type=search]").send_keys("unbelievable")
    assert len(page.row_ids()) == 1
