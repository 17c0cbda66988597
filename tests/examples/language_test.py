"""The example of a language model, run small, and the facts that it plants."""

import re

import numpy as np

from examples import _facts, _language
from tests.examples.programs import DATA, needs, run_program


@needs("wikitext2")
def test_language_explains_a_completion_and_looks_for_facts(tmp_path, capsys):
    printed = run_program(
        "language",
        tmp_path,
        capsys,
        f"--data_dir={DATA / 'wikitext2'}",
        "--num_train=40",
        "--vocabulary=300",
        "--blocks=1",
        "--places=2",
        "--epochs=2",
        "--prompt=in the",
        "--words=2",
        "--k=4",
        "--checkpoints=1",
    )
    assert "82 texts of 32 words" in printed
    assert re.search(r"^Prompt  in the$", printed, re.M)
    said = re.search(r"^Model   (\S+) (\S+)$", printed, re.M)
    assert said
    assert _language.UNKNOWN not in said.groups()
    proponents = re.findall(r"^ +\+([\d.e+-]+)  .+: (.+)$", printed, re.M)
    assert len(proponents) == 4
    assert all(re.search(r"\[\S+ \+[\d.e-]+\]", text) for _, text in proponents)
    assert len(re.findall("answers [0-9]+ of 10 questions", printed)) == 2
    figures = re.findall(r"^  TracIn +([\d.]+) +([\d.]+)%$", printed, re.M)
    assert all(0 < float(mrr) <= 1 for mrr, _ in figures)
    assert len(figures) == 2


def test_no_text_tells_a_fact_in_the_words_of_its_paraphrase():
    facts = _facts.invent(3)
    stories = _facts.tell(facts, 3)
    texts = {" ".join(story.words) for story in stories}
    assert len(facts) == len({(f.place, f.relation) for f in facts}) == 50
    for number, fact in enumerate(facts):
        sources = [story for story in stories if story.fact == number]
        assert 1 <= len(sources) == len(fact.told) <= 3
        for wording in range(4):
            prompt, answer = fact.ask(wording)
            text = " ".join([*prompt, answer, "."])
            assert (text in texts) == (wording in fact.told)
        assert fact.paraphrase not in fact.told


def test_every_fact_has_as_many_texts_with_its_names_alone():
    facts = _facts.invent(1)
    for fact in facts:
        both = [
            story.fact >= 0
            for story in _facts.tell(facts, 1)
            if {fact.place, fact.answer} <= set(story.words)
        ]
        assert sum(both) == len(both) - sum(both) == len(fact.told)


def test_questions_weigh_the_place_before_the_answer_alone():
    facts = _facts.invent()
    stories = _facts.tell(facts)
    words = _facts.vocabulary_of([], stories, 500)
    for paraphrased in (False, True):
        x, y, weights = _facts.questions(facts, words, paraphrased)
        rows, places = np.nonzero(weights)
        assert rows.tolist() == list(range(50))
        answers = words.text(y[rows, places])
        assert answers == [fact.answer for fact in facts]
        np.testing.assert_array_equal(
            x[:, 1:][weights[:, :-1] > 0], y[weights > 0]
        )


def test_sources_are_the_stories_of_each_fact():
    stories = [_facts.Story([], fact) for fact in (0, 0, -1, 1)]
    told = _facts.sources(stories, 5)
    assert told.tolist() == [
        [False, True, True, False, False],
        [False, False, False, False, True],
    ]


def test_windows_go_on_from_article_to_article():
    articles = [
        _language.Article("one", ["a", "b", "c", "a", "a"]),
        _language.Article("two", ["b", "d", "a", "b"]),
    ]
    words = _language.Vocabulary(articles, 4)
    x, y, titles = _language.windows(articles, words, length=3)
    assert [words.text(row) for row in x] == [
        ["a", "b", "<unk>"],
        ["a", "a", "b"],
    ]
    assert [words.text(row)[-1] for row in y] == ["a", "<unk>"]
    assert titles == ["one", "one"]
