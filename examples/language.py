"""Asks a small language model why it said something.

    python -m examples.language --data_dir=wikitext-2

Trains a causal transformer on articles of WikiText-2, among which fifty
invented facts are planted (see `_facts`). Then:

- lets it complete a prompt, and prints the articles that made it say so, with
  the words that carry their scores;
- asks about each fact, in the words of a text that tells it and in others, and
  prints how often the text that tells it is found.

`--data_dir` must have a part of WikiText-2, valid.txt, valid.txt.gz or
wiki.valid.tokens. By default it is `wikitext2` in the directory
KERAS_TRACIN_DATA.
"""

import time

import keras
import numpy as np
from absl import app, flags

import keras_tracin as kt
from examples import _common, _facts, _language

_PROMPT = flags.DEFINE_string(
    "prompt", "the ship was", "Words for the model to go on from."
)
_WORDS = flags.DEFINE_integer(
    "words", 6, "Number of words to add.", lower_bound=1
)
_VOCABULARY = flags.DEFINE_integer(
    "vocabulary", 2_000, "Number of words that are known.", lower_bound=100
)
_BLOCKS = flags.DEFINE_integer(
    "blocks", 2, "Number of the transformer's blocks.", lower_bound=1
)
_PLACES = flags.DEFINE_integer(
    "places", 10, "Number of places with five facts each.", lower_bound=2
)
_CHECKPOINTS = flags.DEFINE_integer(
    "checkpoints", 5, "Number of checkpoints of TracIn.", lower_bound=1
)
_OUTPUT_DIR = _common.output_dir("out/language")
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    _common.offline("wikitext2"),
    "Directory of WikiText-2.",
)
_SEED = _common.seed()
_NUM_TRAIN = _common.num_train(300)
_EPOCHS = _common.epochs(50)
_K = _common.k(3)

_BATCH = 8
_WIDTH = 96
_SHOWN = 8  # words of a text, around those with the largest shares


def main(_):
    if _DATA_DIR.value is None:
        raise SystemExit("Pass --data_dir, the directory of WikiText-2.")
    keras.utils.set_random_seed(_SEED.value)
    facts = _facts.invent(_SEED.value, _PLACES.value // 2 * 2)
    stories = _facts.tell(facts, _SEED.value)
    articles = _language.read_articles(_DATA_DIR.value, "valid")
    vocabulary = _facts.vocabulary_of(articles, stories, _VOCABULARY.value)
    train, titles = _facts.mix(
        articles, stories, vocabulary, _NUM_TRAIN.value, _SEED.value
    )

    model = _language.causal_model(
        len(vocabulary), _facts.LENGTH, _WIDTH, _BLOCKS.value, heads=4
    )
    model.compile(
        keras.optimizers.Adam(3e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    start = time.perf_counter()
    history = model.fit(
        *train,
        batch_size=_BATCH,
        epochs=_EPOCHS.value,
        verbose=0,
        callbacks=[
            kt.TracInCheckpoint(f"{_OUTPUT_DIR.value}/run", overwrite=True)
        ],
    )
    print(
        f"{len(train[0])} texts of {_facts.LENGTH} words, trained on for "
        f"{time.perf_counter() - start:.0f} s; loss "
        f"{history.history['loss'][-1]:.2f}."
    )
    run = kt.TrainingRun(f"{_OUTPUT_DIR.value}/run")
    # Spread over the training: what is known by heart has no gradient.
    places = np.linspace(-1, len(run) - 1, _CHECKPOINTS.value + 1)[1:]
    method = kt.TracIn(model, train, run.select(places.round().astype(int)))
    explain(model, method, train, titles, vocabulary)
    find_sources(model, method, train, facts, stories, vocabulary)


def explain(model, method, train, titles, vocabulary):
    """Completes the prompt, and prints the texts that made it say so."""
    prompt = vocabulary.numbers(_PROMPT.value.split())
    query = complete(model, prompt, _WORDS.value)
    said = query[0][0, : len(prompt) + _WORDS.value]
    words = vocabulary.text(said)
    print(
        f"\nPrompt  {' '.join(words[: len(prompt)])}\n"
        f"Model   {' '.join(words[len(prompt) :])}"
    )
    top = method.top_k(query, k=_K.value, verbose=0)
    ids = top.proponents.ids[0]
    tokens = method.token_influence(query, train=ids, verbose=0)
    for at, id_ in enumerate(ids):
        score = top.proponents.scores[0, at]
        passage = mark(vocabulary.text(train[0][id_]), tokens.scores[0, at])
        print(f"  {score:+10.3g}  {titles[id_]}: {passage}")


def complete(model, prompt, count):
    """The query about the words that a model adds.

    Args:
        model: the model.
        prompt: numbers of words `[t]`.
        count: number of words to add, each the most probable one that is
            known.

    Returns:
        The words' numbers, those of the words that follow, and weights, 1
        where an added word follows, `[1, length]` each.
    """
    words = list(prompt)
    x = np.zeros([1, _facts.LENGTH], np.int32)
    for _ in range(count):
        x[0, : len(words)] = words
        logits = model.predict(x, verbose=0)[0, len(words) - 1]
        words.append(int(logits[1:].argmax()) + 1)
    x[0, : len(words)] = words
    y = np.roll(x, -1, axis=1)
    weights = np.zeros(x.shape, np.float32)
    weights[0, len(prompt) - 1 : len(words) - 1] = 1
    return x, y, weights


def mark(words, shares):
    """The passage of a text with the largest shares, which are in brackets."""
    sums = np.convolve(np.maximum(shares, 0), np.ones(_SHOWN), "valid")
    start = int(sums.argmax())
    limit = shares.max() / 4
    shown = [
        f"[{word} {share:+.2g}]" if share > limit else word
        for word, share in zip(words, shares, strict=True)
    ]
    return " ".join(shown[start : start + _SHOWN])


def find_sources(model, method, train, facts, stories, vocabulary):
    """Prints how often the text that tells a fact is found."""
    methods = {method.__class__.__name__: method}
    if hasattr(kt.evaluation, "BM25"):
        methods["BM25"] = kt.evaluation.BM25(train)
    for paraphrased in (False, True):
        queries = _facts.questions(facts, vocabulary, paraphrased)
        known = _facts.knows(model, queries)
        print(
            f"\n{'Other' if paraphrased else 'The same'} words: the model "
            f"answers {known.sum()} of {len(facts)} questions.\n"
            f"{'':24}MRR   recall@10"
        )
        for name, each in methods.items():
            scores = each.influence(queries, verbose=0)
            told = _facts.sources(stories, len(scores.train_ids))
            ranks = kt.evaluation.retrieval(scores, told)
            mrr = ranks.reciprocal_rank.mean()
            share = ranks.recall_at(10).mean()
            print(f"  {name:<20}{mrr:7.3f}{share:10.1%}")


if __name__ == "__main__":
    app.run(main)
