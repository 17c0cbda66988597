"""BM25, TF-IDF and embeddings, against sums written out word by word."""

import json
import math
from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.engine.parts import Parts
from keras_tracin.evaluation.baselines.words import split_words
from tests.error_rows import row

TEXTS = [
    "The cat sat on the mat.",
    "A dog barked at the cat!",
    "Stock markets fell, and fell again, today",
    "",
    "The Dog and the markets.",
]
QUERIES = ["cat markets", "The dog; dog"]
# The same as ids: 0 is padding, and the label is the next token.
SENTENCES = [[5, 6, 7, 8, 5, 9], [10, 11, 12, 6], [13, 14, 15], [5, 11, 14]]
ASKED = [[6, 14], [5, 11, 11]]


def words(texts):
    return [split_words(text) for text in texts]


def bm25(train, queries, k1=1.5, b=0.75):
    """The formula of the docstring, a word at a time."""
    mean = np.mean([len(text) for text in train])
    scores = np.zeros((len(queries), len(train)))
    for j, text in enumerate(train):
        counts = Counter(text)
        for i, query in enumerate(queries):
            for word in query:
                have = sum(word in other for other in train)
                idf = math.log(1 + (len(train) - have + 0.5) / (have + 0.5))
                length = k1 * (1 - b + b * len(text) / mean)
                f = counts[word]
                scores[i, j] += idf * f / (f + length) if f else 0
    return scores


def tfidf(train, queries):
    """Cosines of counts times log((1 + n) / (1 + n_w)) + 1."""
    known = sorted({word for text in train for word in text})

    def rows(texts):
        counts = np.array([[t.count(w) for w in known] for t in texts], float)
        have = np.array([sum(w in t for t in train) for w in known])
        counts *= np.log((1 + len(train)) / (1 + have)) + 1
        lengths = np.linalg.norm(counts, axis=1, keepdims=True)
        return counts / np.where(lengths, lengths, 1)

    return rows(queries) @ rows(train).T


LEXICAL = {
    "BM25": (kt.evaluation.BM25, bm25),
    "BM25, others": (
        lambda *a, **o: kt.evaluation.BM25(*a, k1=0.9, b=0.4, **o),
        lambda *a: bm25(*a, k1=0.9, b=0.4),
    ),
    "TFIDF": (kt.evaluation.TFIDF, tfidf),
}
lexical = pytest.mark.parametrize(
    ("make", "oracle"), LEXICAL.values(), ids=LEXICAL
)


def padded(rows, length=7):
    """Inputs, next tokens and weights, as a language model trains on them."""
    whole = np.zeros((len(rows), length + 1), "int32")
    weights = np.zeros((len(rows), length), "float32")
    for i, tokens in enumerate(rows):
        whole[i, 1 : len(tokens) + 1] = tokens  # after a token of beginning
        weights[i, : len(tokens)] = 1
    return whole[:, :-1], whole[:, 1:], weights


@lexical
def test_scores_of_texts_are_those_of_the_formula(make, oracle):
    scores = make(TEXTS).influence(QUERIES, verbose=0)
    expected = oracle(words(TEXTS), words(QUERIES))
    np.testing.assert_allclose(scores.scores, expected, rtol=1e-6)
    assert scores.scores.dtype == np.float32
    np.testing.assert_array_equal(scores.train_ids, np.arange(5))


@lexical
def test_scores_of_tokens_are_those_of_their_words(make, oracle):
    scores = make(padded(SENTENCES)).influence(padded(ASKED), verbose=0)
    expected = oracle(SENTENCES, ASKED)
    np.testing.assert_allclose(scores.scores, expected, rtol=1e-6)


def test_only_the_words_that_a_query_asks_about_count():
    x, y, weights = padded([[13, 6, 14]])
    answer = weights * [[0, 0, 1, 0, 0, 0, 0]]
    train = padded(SENTENCES)
    method = kt.evaluation.BM25(train)
    scores = method.influence((x, y, answer), verbose=0).scores
    np.testing.assert_allclose(scores, bm25(SENTENCES, [[14]]), rtol=1e-6)
    asked = method.influence((x, y), query_tokens=answer, verbose=0).scores
    np.testing.assert_array_equal(asked, scores)
    # With the prompt before them, and the token of beginning, that all have.
    method = kt.evaluation.BM25(train, words="all", ignore=[0])
    scores = method.influence((x, y, answer), verbose=0).scores
    expected = bm25(SENTENCES, [[13, 6, 14]])
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_a_contrast_asks_about_the_other_answer():
    x, y, weights = padded([[13, 6, 14]])
    answer = weights * [[0, 0, 1, 0, 0, 0, 0]]
    other = np.where(answer, 11, y)
    scores = kt.evaluation.BM25(padded(SENTENCES)).influence(
        (x, y, answer), contrast=(x, other, answer), verbose=0
    )
    each = bm25(SENTENCES, [[14], [11]])
    np.testing.assert_allclose(scores.scores[0], each[0] - each[1], rtol=1e-5)


def test_labels_that_are_no_tokens_choose_among_the_inputs():
    x = np.array([[5, 6, 7], [8, 9, 10], [5, 8, 11]])
    tags = np.array([[0, 1, 1], [1, 0, 0], [0, 0, 1]])
    weights = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 0]], "float32")
    method = kt.evaluation.BM25((x, tags, weights))
    kept = [[5, 6], [9, 10], [5, 8]]
    scores = method.influence((x, tags, weights), verbose=0).scores
    np.testing.assert_allclose(scores, bm25(kept, kept), rtol=1e-6)


def test_masks_leave_padding_out_of_an_encoder_and_a_decoder():
    x = {
        "encoder_token_ids": np.array([[3, 4, 0], [5, 0, 0]]),
        "encoder_padding_mask": np.array([[1, 1, 0], [1, 0, 0]]),
        "decoder_token_ids": np.array([[7, 8, 0], [4, 9, 9]]),
        "decoder_padding_mask": np.array([[1, 1, 0], [1, 1, 1]]),
    }
    kept = [[3, 4, 7, 8], [5, 4, 9, 9]]
    scores = kt.evaluation.TFIDF(x).influence(x, verbose=0).scores
    np.testing.assert_allclose(scores, tfidf(kept, kept), rtol=1e-6)


def test_texts_come_with_labels_ids_and_several_inputs():
    x = {"title": np.array(["Cat", "Dog"]), "text": np.array(["sat", "ran"])}
    train = kt.with_ids((x, np.array([0, 1])), ["a", "b"]).batch(1)
    query = {"title": np.array(["ran"]), "text": np.array(["dog"])}
    top = kt.evaluation.BM25(train).top_k((query, np.array([1])), 1, verbose=0)
    assert top.proponents.ids.tolist() == [["b"]]


def test_a_tokenizer_replaces_the_splitting_and_ideographs_are_words():
    assert split_words("Straße, 東京タワー x2!") == [
        "straße",
        *"東京タワ",
        "ー",
        "x2",
    ]
    train = np.array(["ab", "bc", "cd"])
    letters = kt.evaluation.BM25(train, tokenizer=list)
    scores = letters.influence(np.array(["b"]), verbose=0).scores
    expected = bm25([[*"ab"], [*"bc"], [*"cd"]], [["b"]])
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    lookup = {"ab": [1, 2], "bc": [2, 3], "cd": [3, 4], "b": [2]}
    tensors = kt.evaluation.BM25(
        train, tokenizer=lambda text: tf.constant(lookup[text])
    )
    again = tensors.influence(np.array(["b"]), verbose=0).scores
    np.testing.assert_array_equal(again, scores)


@lexical
def test_every_call_of_a_method_is_there(make, oracle, tmp_path, monkeypatch):
    ids = np.arange(100, 105)
    train = kt.with_ids((np.array(TEXTS),), ids).batch(2)
    method, queries = make(train), np.array(QUERIES)
    scores = method.influence(queries, verbose=0)
    np.testing.assert_array_equal(scores.train_ids, ids)
    top, expected = method.top_k(queries, 2, verbose=0), scores.top_k(2)
    for side in ("proponents", "opponents"):
        np.testing.assert_array_equal(
            getattr(top, side).ids, getattr(expected, side).ids
        )
    some = method.among(ids[[1, 4]]).influence(queries, verbose=0)
    np.testing.assert_array_equal(some.scores, scores.scores[:, [1, 4]])
    sums = method.influence(queries, groups={"a": ids[:2]}, verbose=0).scores
    np.testing.assert_allclose(sums[:, 0], scores.scores[:, :2].sum(axis=1))
    limited = method.within(memory_limit=1)
    np.testing.assert_array_equal(
        limited.influence(queries, verbose=0).scores, scores.scores
    )
    described = method.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["method"] == type(method).__name__
    assert repr(method).startswith(f"{described['method']}(train=")
    assert method.plan(queries).num_queries == 2
    assert "5 training examples" in str(method.plan(queries))
    with pytest.raises(NotImplementedError, match=row("no-self-similarity")):
        method.self_influence()
    kept = method.influence(queries, directory=tmp_path, verbose=0)
    with monkeypatch.context() as patch:
        patch.delattr(Parts, "put")  # all is there
        again = method.influence(queries, directory=tmp_path, verbose=0)
    for read in (kept, again):
        np.testing.assert_array_equal(read.scores, scores.scores)
    with pytest.raises(ValueError, match=row("other-parts")):
        method.influence(queries[::-1], directory=tmp_path, verbose=0)


def test_another_tokenizer_does_not_go_on_from_the_parts(tmp_path):
    first = kt.evaluation.BM25(TEXTS, tokenizer=lambda text: text.split())
    first.influence(np.array(QUERIES), directory=tmp_path, verbose=0)
    second = kt.evaluation.BM25(TEXTS, tokenizer=lambda text: list(text))
    with pytest.raises(ValueError, match=row("stale-parts")):
        second.influence(np.array(QUERIES), directory=tmp_path, verbose=0)


def test_baselines_are_evaluated_and_averaged_like_any_method():
    train, test = np.array(TEXTS), np.array(QUERIES)
    members = [kt.evaluation.BM25(train), kt.evaluation.TFIDF(train)]
    with pytest.raises(ValueError, match=row("ensemble-units", "BM25")):
        kt.Ensemble(members)
    ensemble = kt.Ensemble(members, scale="query").influence(test, verbose=0)
    parts = [member.influence(test, verbose=0).scores for member in members]
    expected = sum(p / p.std(axis=1, keepdims=True) for p in parts) / 2
    np.testing.assert_allclose(ensemble.scores, expected, rtol=1e-5)
    scores = members[0].influence(test, verbose=0)
    masks = np.random.default_rng(0).random((8, 5)) < 0.5
    outputs = -1.0 * masks @ scores.scores.T.astype("float64")
    retrained = kt.evaluation.Retrained(
        masks, outputs[:, None], scores.train_ids, scores.query_ids
    )
    assert kt.evaluation.lds(scores, retrained).mean == pytest.approx(1)


def classifier(tokens=4):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((tokens,), dtype="int32"),
            keras.layers.Embedding(20, 5),
            keras.layers.Dense(6, activation="tanh"),
            keras.layers.Dense(20),
        ]
    )
    model.compile("sgd", "mse")
    return model


def cosines(first, second):
    first, second = (
        part / np.linalg.norm(part, axis=1, keepdims=True)
        for part in (first, second)
    )
    return first @ second.T


def test_embeddings_are_the_last_layers_inputs_averaged_where_they_count():
    model = classifier(tokens=7)
    train, test = padded(SENTENCES), padded(ASKED)
    states = keras.Model(model.inputs, model.layers[-1].input)

    def average(data):
        x, _, weights = data
        total = np.einsum("ntd,nt->nd", states.predict(x, verbose=0), weights)
        return total / weights.sum(axis=1, keepdims=True)

    method = kt.evaluation.EmbeddingSimilarity(model, train)
    expected = cosines(average(test), average(train))
    scores = method.influence(test, verbose=0).scores
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    np.testing.assert_allclose(
        method.within(memory_limit=1).influence(test, verbose=0).scores,
        expected,
        atol=1e-6,
    )
    assert method.describe()["layer"] > 0
    # The same by an encoder, and without a model.
    for encoder in (states, lambda x: states(x).numpy()):
        again = kt.evaluation.EmbeddingSimilarity(None, train, encoder=encoder)
        scores = again.influence(test, verbose=0).scores
        np.testing.assert_allclose(scores, expected, atol=1e-6)


class Table(keras.layers.Embedding):
    """An embedding that projects back."""

    def call(self, inputs, reverse=False):
        if reverse:
            return keras.ops.matmul(
                inputs, keras.ops.transpose(self.embeddings)
            )
        return super().call(inputs)

    def compute_output_spec(self, inputs, reverse=False):
        width = self.input_dim if reverse else self.output_dim
        shape = inputs.shape[:2]
        return keras.KerasTensor((*shape, width), self.compute_dtype)


def test_a_table_that_projects_at_the_end_gives_the_last_hidden_states():
    keras.utils.set_random_seed(0)
    table = Table(20, 5)
    inputs = keras.Input((7,), dtype="int32")
    hidden = keras.layers.Dense(5, activation="tanh")(table(inputs))
    model = keras.Model(inputs, table(hidden, reverse=True))
    x, y, weights = padded(SENTENCES)
    method = kt.evaluation.EmbeddingSimilarity(model, (x, y, weights))
    states = keras.Model(inputs, hidden).predict(x, verbose=0)
    average = np.einsum("ntd,nt->nd", states, weights)
    scores = method.influence((x, y, weights), verbose=0).scores
    np.testing.assert_allclose(scores, cosines(average, average), atol=1e-6)


def test_texts_are_embedded_by_an_encoder():
    def lengths(texts):
        return np.array([[len(text), text.count("a")] for text in texts])

    method = kt.evaluation.EmbeddingSimilarity(None, TEXTS[:3], encoder=lengths)
    expected = cosines(lengths(QUERIES[:1]), lengths(TEXTS[:3]))
    scores = method.influence(QUERIES[:1], verbose=0).scores
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_examples_of_several_lengths_need_weights():
    x = np.array([[5, 6, 0, 0], [7, 8, 9, 10]])
    short, long = x[:1, :2], x[1:]

    def ragged(*weights):
        def read():
            for i, rows in enumerate((short, long)):
                yield rows, rows, *(w[i] for w in weights)

        return read

    model = classifier(tokens=None)
    with pytest.raises(ValueError, match=row("embedding-padding")):
        kt.evaluation.EmbeddingSimilarity(model, ragged())
    ones = np.ones_like(short, "float32"), np.ones_like(long, "float32")
    method = kt.evaluation.EmbeddingSimilarity(model, ragged(ones))
    states = keras.Model(model.inputs, model.layers[-1].input)
    average = np.concatenate([states(r).numpy().mean(1) for r in (short, long)])
    scores = method.influence(ragged(ones), verbose=0).scores
    np.testing.assert_allclose(scores, cosines(average, average), atol=1e-6)


NUMBERS = np.zeros((3, 4), "float32")
X, Y, W = padded(ASKED)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kt.evaluation.BM25(NUMBERS), row("words-input", "(4,)")),
        (
            lambda: kt.evaluation.BM25(TEXTS).influence(X, verbose=0),
            row("words-kind", "Received ids of tokens"),
        ),
        (
            lambda: kt.evaluation.TFIDF(TEXTS).influence(["!"], verbose=0),
            row("words-none", "[0]"),
        ),
        (
            lambda: kt.evaluation.BM25((X, Y, W)).influence(
                (X, Y, 0 * W), verbose=0
            ),
            row("words-none", "[0, 1]"),
        ),
        (
            lambda: kt.evaluation.BM25(["", "?"]).influence(["a"], verbose=0),
            row("words-no-train"),
        ),
        (
            lambda: kt.evaluation.BM25(TEXTS, words="some"),
            row("words-which", "'some'"),
        ),
        (lambda: kt.evaluation.BM25(TEXTS, b=2), row("bm25-numbers", "b=2")),
        (
            lambda: kt.evaluation.EmbeddingSimilarity(
                classifier(7), (X, Y, W)
            ).influence((X, Y, 0 * W), verbose=0),
            row("embedding-none", "[0, 1]"),
        ),
        (
            lambda: kt.evaluation.EmbeddingSimilarity(
                None, X, encoder=lambda x: x[:, 0]
            ).influence(X, verbose=0),
            row("embedding-shape", "(2,)"),
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_numbers_that_are_none_are_named():
    def broken(x):
        return np.where(x == 6, np.nan, x).astype("float32")

    method = kt.evaluation.EmbeddingSimilarity(None, X, encoder=broken)
    with pytest.raises(ValueError, match=row("embedding-numbers", "[0]")):
        method.influence(X, verbose=0)


def test_a_model_whose_layers_read_no_numbers_needs_an_encoder():
    model = keras.Sequential(
        [keras.Input((7,), dtype="int32"), keras.layers.Embedding(20, 5)]
    )
    with pytest.raises(ValueError, match=row("embedding-layer", "`encoder=`")):
        kt.evaluation.EmbeddingSimilarity(model, X)


def test_an_encoder_is_a_function():
    with pytest.raises(TypeError, match=row("embedding-encoder", "'bert'")):
        kt.evaluation.EmbeddingSimilarity(None, X, encoder="bert")
