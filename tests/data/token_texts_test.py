"""Which tokens of an example are shown, and which a query asks about."""

import numpy as np
import pytest

from keras_tracin.data.batches import Batch
from keras_tracin.data.subwords import Vocabulary
from keras_tracin.data.token_texts import TokenTexts
from tests.error_rows import row

WORDS = ["the", "cat", "sat", "on", "mat", "dog"]
IDS = np.array([[0, 1, 2, 0, 0, 0], [0, 5, 3, 0, 4, 1]])
NEXT = np.hstack([IDS[:, 1:], [[0], [2]]])
WEIGHTS = np.array([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]], "float32")


def reader(**options):
    return TokenTexts(Vocabulary.of(WORDS), "train", **options)


def batch(x=IDS, *more):
    return Batch(np.arange(len(IDS)), x, *more)


def strings(texts):
    return [str(text) for text in texts]


def test_all_tokens_are_shown_where_nothing_tells_of_padding():
    texts = reader().examples(batch())
    assert strings(texts) == [
        "the cat sat the the the",
        "the dog on the mat cat",
    ]
    assert texts[0].shares(np.arange(6.0)).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_mask_leaves_padding_out():
    x = {"token_ids": IDS, "padding_mask": np.arange(6) < np.array([[3], [6]])}
    texts = reader().examples(batch(x))
    assert strings(texts) == ["the cat sat", "the dog on the mat cat"]
    assert strings(reader().queries(batch(x)))[0] == "the cat sat"


def test_weights_leave_out_what_holds_one_id_at_the_end_and_has_no_share():
    weighted = batch(IDS, NEXT, WEIGHTS)
    has_share = WEIGHTS != 0
    texts = reader().examples(weighted, has_share)
    # The token that the last weight is of is read by nothing, and shown.
    assert strings(texts)[0] == "the cat sat"
    has_share[0, 4] = True
    texts = reader().examples(weighted, has_share)
    assert strings(texts)[0] == "the cat sat the the the"
    # As an embedding with `mask_zero=True` leaves it.
    texts = reader().examples(batch(), np.arange(6) < np.array([[3], [6]]))
    assert strings(texts)[0] == "the cat sat"


def test_a_query_ends_with_the_label_of_its_last_token():
    texts = reader().queries(batch(IDS, NEXT, WEIGHTS))
    assert strings(texts) == ["the cat sat", "the dog on the mat cat sat"]
    assert [text.asked for text in texts] == [(), ()]


def test_a_query_says_which_words_it_asks_about():
    weights = np.array([[0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 1]], "float32")
    texts = reader().queries(batch(IDS, NEXT, weights))
    assert strings(texts) == ["the cat sat", "the dog on the mat cat sat"]
    assert [text.asked for text in texts] == [(2,), (4, 6)]


def test_labels_that_are_no_tokens_are_no_text():
    tags = np.ones_like(IDS)
    texts = reader().queries(batch(IDS, tags, np.ones(IDS.shape)))
    assert strings(texts)[1] == "the dog on the mat cat"


def test_tokens_may_be_strings_and_queries_texts():
    tokens = np.array(WORDS)[IDS]
    plain = TokenTexts(Vocabulary.of(None), "train")
    assert strings(plain.examples(batch(tokens)))[1] == "the dog on the mat cat"
    texts = plain.queries(batch(np.array(["What?", b"Why?"], object)))
    assert strings(texts) == ["What?", "Why?"]


def test_the_input_is_told_by_its_length():
    x = {"encoder_token_ids": IDS, "decoder_token_ids": IDS[:, :2]}
    texts = reader(length=2).examples(batch(x))
    assert strings(texts) == ["the cat", "the dog"]
    with pytest.raises(ValueError, match=row("token-texts", "encoder")):
        reader().examples(batch(x))
    with pytest.raises(ValueError, match=row("token-texts", "of 9 tokens")):
        reader(length=9).examples(batch(x))
    with pytest.raises(ValueError, match=row("token-texts", "`train`")):
        reader().examples(batch(np.zeros((2, 3), "float32")))
