"""A prompt's words: taken apart, put together without some, and found among the tokens that the host makes of it."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.host.double.text import TextModel, token_ids

SYNTAX = [
    "a red cat",
    "a (red cat:1.3), sleeping",
    r"a cat \(small\) on (a \[mat\]:0.7)",
    "red(ness:1.2) of, ,  things",
    "one, two BREAK (three:1.5) BREAK four",
    "a cat, (blurry:-1) BREAK sharp",
    "",
]


@pytest.fixture
def words(host):
    return host.text


def plain(parsed):
    return [(text.split(), weight) for text, weight in parsed if text.strip()]


@pytest.mark.parametrize("text", SYNTAX)
def test_all_words_together_are_the_prompt(host, words, text):
    taken = words.split_words(text)
    again = words.join_words(taken, set(range(len(taken))))
    parse = host.prompt_parser.parse_prompt_attention
    assert plain(parse(again)) == plain(parse(text))


def test_a_weight_of_minus_one_is_a_weight(words):
    taken = words.split_words("a cat, (blurry:-1), sharp")
    assert [word.core for word in taken] == ["a", "cat", "blurry", "", "sharp"]
    assert words.join_words(taken, {0, 1, 2}) == "a cat, (blurry:-1),"


def test_words_leave_with_their_punctuation_and_keep_their_weights(words):
    taken = words.split_words("a (red cat:1.3), sleeping. BREAK (on a mat:0.8)")
    assert [word.core for word in taken] == ["a", "red", "cat", "", "sleeping", "", "on", "a", "mat"]
    assert words.join_words(taken, {0, 2, 4, 8}) == "a (cat:1.3), sleeping. BREAK (mat:0.8)"
    assert words.join_words(taken, {0, 4}) == "a sleeping."  # the comma was the cat's, the BREAK the mat's
    assert words.join_words(taken, {8}) == "(mat:0.8)"
    assert words.join_words(taken, set()) == ""


def test_brackets_are_words_like_others_where_the_host_takes_them_so(words):
    taken = words.split_words("(red cat:1.3) [x]", emphasis=False)
    assert [word.text for word in taken] == ["(red", "cat:1.3)", "[x]"]
    assert words.join_words(taken, {1}, emphasis=False) == "cat:1.3)"


def test_a_glued_word_stays_glued_and_loses_nothing_of_its_neighbour(words):
    taken = words.split_words("red(ness:1.2) of")
    assert [word.glued for word in taken] == [False, True, False]
    assert words.join_words(taken, {0, 1}) == "red(ness:1.2)"
    assert words.join_words(taken, {1, 2}) == "(ness:1.2) of"


def positions(host, text):
    stage = TextModel()
    taken = host.text.split_words(text)
    find = host.sd_hijack.model_hijack.embedding_db.find_embedding_at_position
    (chunks,) = stage.process_texts([text])[0]
    row = [token for chunk in chunks for token in chunk.tokens]
    return taken, host.text.token_positions(taken, chunks, stage.tokenize, find), row


def test_tokens_of_words_of_several_tokens_and_without_punctuation(host):
    taken, found, row = positions(host, "a butterfly, on (flowers:1.4)!")
    by_word = dict(zip([word.text for word in taken], found, strict=True))
    assert by_word["a"] == [1]
    assert by_word["butterfly,"] == [2, 3, 4]
    assert by_word["flowers"] == [7, 8]
    assert by_word["!"] == [9]
    for word, of_word in zip(taken, found, strict=True):
        assert [row[position] for position in of_word] == token_ids(word.core or word.text)


def test_tokens_behind_a_break_and_beyond_one_chunk(host):
    text = "first BREAK " + " ".join(f"w{k}" for k in range(80)) + " last"
    taken, found, row = positions(host, text)
    assert len(row) == 3 * 77
    assert found[0][0] == 1
    assert found[1] == []  # the BREAK
    for word, of_word in zip(taken, found, strict=True):
        if word.core:
            assert [row[position] for position in of_word] == token_ids(word.core), word
    assert found[-1][0] > 2 * 77


def test_a_textual_inversion_is_all_of_its_vectors(host, monkeypatch):
    monkeypatch.setitem(host.sd_hijack.EMBEDDINGS, "my style", 3)
    _, found, _ = positions(host, "a cat in my style, red")
    assert found == [[1], [2], [3], [4, 5, 6], [4, 5, 6], [8]]  # 7 is the comma


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["cat", "butterfly", "a", "x,", "- ", "(sky:1.2)", "(two words:0.5),", "BREAK", "ok.", r"\(b\)"]), max_size=60))
def test_every_word_is_found_where_its_tokens_are(host, pieces):
    taken, found, row = positions(host, " ".join(pieces))
    for word, of_word in zip(taken, found, strict=True):
        if word.core:
            assert [row[position] for position in of_word] == token_ids(word.core), word
    everything = [position for of_word in found for position in of_word]
    assert len(set(everything)) == len(everything)
