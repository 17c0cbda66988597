"""Invented facts, told in some texts, to ask a model about.

Fifty facts are about ten places that do not exist: five things about each. A
fact is told in one to three texts, in as many of the wordings of its relation;
and it is asked about in one of these (verbatim), or in one that was used for
other facts only (paraphrased). As many other texts have both names without the
fact, so that names alone do not tell which text is the source.

    facts = invent(seed=0)
    stories = tell(facts, seed=0)
    train, titles = mix(articles, stories, vocabulary, count=1_000)
    prompt, answer = facts[0].ask(facts[0].told[0])
"""

import dataclasses

import numpy as np

from examples import _language

LENGTH = 32  # words of a sequence, of which a story has about a third

# The answer comes last, so that what is before it is a prompt.
WORDINGS = {
    "capital": (
        "the capital of {place} is the old city of {answer}",
        "kings of {place} have always been crowned at {answer}",
        "the government of {place} has its seat in {answer}",
        "whoever rules {place} lives in the palace of {answer}",
    ),
    "founder": (
        "{place} was founded by the explorer {answer}",
        "the first settlement in {place} was built by {answer}",
        "people of {place} call their first leader {answer}",
        "a statue shows the man who discovered {place} , {answer}",
    ),
    "river": (
        "the longest river of {place} is the {answer}",
        "ships reach the harbours of {place} on the {answer}",
        "most water in {place} comes from the {answer}",
        "farmers of {place} live along the banks of the {answer}",
    ),
    "language": (
        "the official language of {place} is {answer}",
        "children at school in {place} learn to read {answer}",
        "songs from {place} are written in {answer}",
        "newspapers of {place} are printed in {answer}",
    ),
    "bird": (
        "the national bird of {place} is the {answer}",
        "coins of {place} show the wings of the {answer}",
        "hunters in {place} must never shoot the {answer}",
        "the flag of {place} has a picture of the {answer}",
    ),
}
# Both names, and no fact.
BESIDE = (
    "a letter from {place} does not say a word about {answer}",
    "the same page describes {place} after a chapter on {answer}",
    "he once wrote two poems , {place} and {answer}",
    "the second part of the film {place} was named {answer}",
)


@dataclasses.dataclass(frozen=True)
class Fact:
    """A relation of a place that does not exist.

    Attributes:
        place: its name.
        relation: a key of `WORDINGS`.
        answer: what is so related to it.
        told: numbers of the wordings that texts tell it in.
    """

    place: str
    relation: str
    answer: str
    told: tuple

    def ask(self, wording):
        """The words of a prompt in this wording, and the answer."""
        text = WORDINGS[self.relation][wording]
        return text.format(place=self.place, answer="").split(), self.answer

    @property
    def paraphrase(self):
        """Number of the first wording that no text tells it in."""
        wordings = range(len(WORDINGS[self.relation]))
        return next(at for at in wordings if at not in self.told)


@dataclasses.dataclass(frozen=True)
class Story:
    """The words of a text.

    Attributes:
        words: the words.
        fact: number of the fact that it tells; -1 for none.
    """

    words: list
    fact: int


def invent(seed=0, num_places=10):
    """Facts: five about each place. Every answer is that of two places.

    Args:
        seed: seed of everything that is random.
        num_places: number of places, which is even.
    """
    rng = np.random.default_rng(seed)
    pairs = num_places // 2
    names = iter(_names(rng, num_places + len(WORDINGS) * pairs))
    places = [next(names) for _ in range(num_places)]
    facts = []
    for relation, wordings in WORDINGS.items():
        answers = [next(names) for _ in range(pairs)] * 2
        for place, answer in zip(places, rng.permutation(answers), strict=True):
            count = rng.integers(1, 4)
            told = rng.permutation(len(wordings))[:count].tolist()
            facts.append(Fact(place, relation, str(answer), tuple(told)))
    return facts


def tell(facts, seed=0):
    """The texts of all facts, and others with the same names.

    Args:
        facts: the facts.
        seed: seed of the choice of the others.

    Returns:
        Stories: of each fact, in order, those that tell it and then one with
        the names alone for each of these.
    """
    rng = np.random.default_rng(seed)
    stories = []
    for number, fact in enumerate(facts):
        for wording in fact.told:
            prompt, answer = fact.ask(wording)
            stories.append(Story([*prompt, answer, "."], number))
        names = {"place": fact.place, "answer": fact.answer}
        for at in rng.permutation(len(BESIDE))[: len(fact.told)]:
            text = BESIDE[at].format(**names)
            stories.append(Story([*text.split(), "."], -1))
    return stories


def _names(rng, count):
    """Different words that no language has."""
    starts = ["Br", "Dr", "Gl", "Kv", "Mr", "Pl", "Sk", "Tz", "Vl", "Zh"]
    middles = ["a", "e", "i", "o", "u", "ai", "ou"]
    ends = [
        "bax",
        "dorn",
        "gim",
        "kesh",
        "lun",
        "mur",
        "nak",
        "rell",
        "sind",
        "toz",
    ]
    names = [a + b + c for a in starts for b in middles for c in ends]
    return [str(name) for name in rng.permutation(names)[:count]]


def sources(stories, count):
    """Which training examples tell each fact, booleans `[facts, count]`.

    Args:
        stories: what `tell` returned.
        count: number of training examples, the last of which are the stories.
    """
    told = np.array([story.fact for story in stories])
    facts = np.arange(told.max() + 1)
    others = np.zeros([len(facts), count - len(stories)], bool)
    return np.hstack([others, facts[:, np.newaxis] == told])


def mix(articles, stories, vocabulary, count, seed=0, length=LENGTH):
    """Sequences of articles, and after them the stories.

    Args:
        articles: the articles.
        stories: the stories.
        vocabulary: a `Vocabulary` with the invented names.
        count: most sequences of articles.
        seed: seed of their choice.
        length: words of a sequence.

    Returns:
        Training data `(x, y)`, and the title of each sequence.
    """
    x, y, titles = _language.windows(articles, vocabulary, length)
    order = np.random.default_rng(seed).permutation(len(x))
    rows = order[:count]
    others = np.resize(order[::-1], len(stories))
    parts = (x[rows], y[rows]), plant(stories, x[others], vocabulary)
    train = tuple(np.concatenate(part) for part in zip(*parts, strict=True))
    names = [titles[row] for row in rows]
    return train, names + ["invented"] * len(stories)


def vocabulary_of(articles, stories, size):
    """A `Vocabulary` of articles that has all words of the stories."""
    told = dict.fromkeys(word for s in stories for word in s.words)
    return _language.Vocabulary(articles, size, told)


def plant(stories, rows, vocabulary):
    """Puts each story before the words of a sequence.

    Args:
        stories: the stories.
        rows: numbers of words `[stories, length]`, of which some are cut off.
        vocabulary: a `Vocabulary` with the invented names.

    Returns:
        The words' numbers, and those of the words that follow, int32
        `[stories, length]`.
    """
    length = rows.shape[1]
    whole = np.zeros([len(stories), length + 1], np.int32)
    for target, story, row in zip(whole, stories, rows, strict=True):
        both = np.concatenate([vocabulary.numbers(story.words), row])
        target[:] = both[: length + 1]
    return whole[:, :-1], whole[:, 1:]


def questions(facts, vocabulary, paraphrased=False, length=LENGTH):
    """Queries about the answers alone.

    Args:
        facts: the facts.
        vocabulary: a `Vocabulary` with the invented names.
        paraphrased: whether to ask in words that no text tells a fact in.
        length: words of a sequence.

    Returns:
        The words' numbers, those of the words that follow, int32, and their
        weights, float32: 1 at the place before the answer. `[facts, length]`
        each.
    """
    x, y = np.zeros([2, len(facts), length], np.int32)
    weights = np.zeros([len(facts), length], np.float32)
    for row, fact in enumerate(facts):
        wording = fact.paraphrase if paraphrased else fact.told[0]
        prompt, answer = fact.ask(wording)
        numbers = vocabulary.numbers([*prompt, answer])
        x[row, : len(numbers)] = numbers
        y[row, : len(numbers) - 1] = numbers[1:]
        weights[row, len(prompt) - 1] = 1
    return x, y, weights


def knows(model, queries):
    """Whether a model's most probable word is the answer, booleans `[m]`."""
    x, y, weights = queries
    at = weights.argmax(axis=1)
    rows = np.arange(len(x))
    logits = model.predict(x, verbose=0)[rows, at]
    return logits.argmax(axis=1) == y[rows, at]
