"""Tokens as pieces of a text, in the marks of each kind of vocabulary."""

import numpy as np
import pytest

from keras_tracin.data.subwords import Vocabulary, kind_of_tokens
from tests.error_rows import row


def gpt_letters(text):
    """The letters of GPT-2 for the bytes of a text."""
    letters, others = {}, 0
    for byte in range(256):
        shown = 33 <= byte < 127 or 161 <= byte < 173 or byte >= 174
        letters[byte] = chr(byte if shown else 256 + others)
        others += not shown
    return "".join(letters[byte] for byte in text.encode())


def parts(tokens, **options):
    pieces = Vocabulary.of(None, **options).pieces(tokens)
    return [piece.text for piece in pieces]


KINDS = {
    "sentencepiece": (
        ["▁The", "▁un", "believ", "able", ".", "▁好"],
        ["The", " un", "believ", "able", ".", " 好"],
    ),
    "bytes": (
        [gpt_letters(t) for t in ("The", " un", "believ", "able\n", " é")],
        ["The", " un", "believ", "able\n", " é"],
    ),
    "wordpiece": (
        ["un", "##believ", "##able", "(", "cats", ")", ",", "東", "京"],
        ["un", "believ", "able", " (", "cats", ")", ",", " 東", "京"],
    ),
    "words": (["the", "cat", ";", "ran"], ["the", " cat", ";", " ran"]),
    "text": ([*"a cat"], [*"a cat"]),
}


@pytest.mark.parametrize(("kind", "case"), KINDS.items(), ids=KINDS)
def test_subwords_are_joined_to_words(kind, case):
    tokens, expected = case
    assert parts(tokens) == expected
    assert kind_of_tokens(tokens) == kind
    assert parts(tokens, subwords=kind) == expected


def test_a_letter_of_several_tokens_is_one_piece():
    whole = gpt_letters(" 日x")
    vocabulary = Vocabulary.of(None, "bytes")
    pieces = vocabulary.pieces(["Ġa", whole[:3], whole[3], whole[4]])
    assert [p.text for p in pieces] == ["a", " 日", "x"]
    assert [p.positions for p in pieces] == [(0,), (1, 2), (3,)]
    assert parts(["▁a", "<0xE4>", "<0xBD>", "<0xA0>", "b"]) == ["a", "你", "b"]
    assert parts([b"\xe4\xbd", b"\xa0", b" ok"]) == ["你", " ok"]


@pytest.mark.parametrize("broken", [b"\xff", b"\xe4\xbd", b"a\xe4"])
def test_bytes_that_are_no_letter_do_not_swallow_the_rest(broken):
    text = "".join(parts([b"x ", broken, b" the", b" rest of it"]))
    assert text.startswith("x ")
    assert text.endswith(" the rest of it")
    assert "\ufffd" in text


def test_padding_is_left_out_by_its_name():
    vocabulary = Vocabulary.of(["", "[PAD]", "<pad>", "<|pad|>", "a", "pad"])
    pieces = vocabulary.pieces([0, 4, 1, 5, 2, 3, 4])
    assert [piece.text for piece in pieces] == ["a", " pad", " a"]
    assert [piece.positions for piece in pieces] == [(1,), (3,), (6,)]


class Tokenizer:
    """The two functions of KerasHub's that are used."""

    words = ("[PAD]", "run", "##ning")

    def id_to_token(self, id_):
        if not 0 <= id_ < len(self.words):
            raise ValueError("out of range")
        return self.words[id_]

    def get_vocabulary(self):
        return list(self.words)


READERS = {
    "a tokenizer": Tokenizer(),
    "a list": list(Tokenizer.words),
    "an array": np.array(Tokenizer.words),
    "by id": dict(enumerate(Tokenizer.words)),
    "by token": {word: i for i, word in enumerate(Tokenizer.words)},
    "a function": list(Tokenizer.words).__getitem__,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_ids_are_read_by_whatever_knows_them(reader):
    vocabulary = Vocabulary.of(reader)
    pieces = vocabulary.pieces(np.array([1, 2, 0]))
    assert "".join(piece.text for piece in pieces) == "running"
    with pytest.raises(ValueError, match=row("tokenizer-id", "the id 7")):
        vocabulary.pieces([7])


def test_a_vocabulary_tells_its_kind_where_a_text_does_not():
    vocabulary = Vocabulary.of(["Ġx", gpt_letters("日")])
    assert [piece.text for piece in vocabulary.pieces([1])] == ["日"]


def test_what_reads_no_ids_is_refused():
    with pytest.raises(TypeError, match=row("tokenizer-kind", "7")):
        Vocabulary.of(7)
    with pytest.raises(TypeError, match=row("tokenizer-kind", "vocab.txt")):
        Vocabulary.of("vocab.txt")
    with pytest.raises(TypeError, match=row("tokenizer-text", "id 3")):
        Vocabulary.of(lambda id_: id_ + 1).pieces([3])
    with pytest.raises(ValueError, match=row("subwords", "'bpe'")):
        Vocabulary.of(None, "bpe")
    with pytest.raises(ValueError, match=row("tokenizer-id", "-1")):
        Vocabulary.of(["a"]).pieces([-1])
