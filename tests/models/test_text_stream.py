"""Text piece by piece: whole characters, stop strings across pieces, nothing lost."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.text_stream import StopStrings, TokenText
from models.tokenizer import Tokenizer
from tests.models.tokenizers import TEXTS, llama, mixtral, qwen

REPLACEMENT = "\ufffd"


def passed(stop: tuple[str, ...], pieces: list[str]) -> tuple[list[str], bool]:
    strings, out = StopStrings(stop), []
    for piece in pieces:
        text, stopped = strings.add(piece)
        out.append(text)
        if stopped:
            return out, True
    return [*out, strings.close()], False


@pytest.mark.parametrize("make", [qwen, llama, mixtral])
def test_pieces_are_whole_characters_and_make_up_the_text(make, tmp_path: Path) -> None:
    make(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    for text in [*TEXTS, "한국어 🙂🙃 e\u0301", " leading", "日本"]:
        ids = [tokenizer.begin_of_text_id, *tokenizer.encode([text])[0]]
        for cut in range(1, len(ids)):
            prompt = tokenizer.decode(ids[:cut])
            if prompt.endswith(REPLACEMENT):  # a prompt is text: it ends with a whole character
                continue
            stream = TokenText(tokenizer, ids[:cut])
            pieces = [stream.add(token) for token in ids[cut:]]
            assert not any(REPLACEMENT in piece for piece in pieces)
            assert prompt + "".join(pieces) == tokenizer.decode(ids)
            assert stream.close() == ""


def test_bytes_that_make_no_character_come_at_the_end(tmp_path: Path) -> None:
    qwen(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.encode(["a🙃"])[0]
    assert len(ids) == 5
    stream = TokenText(tokenizer, [tokenizer.begin_of_text_id])
    assert [stream.add(token) for token in ids[:4]] == ["a", "", "", ""]
    assert stream.close() == REPLACEMENT
    stray = TokenText(tokenizer, [tokenizer.begin_of_text_id])
    mixed = [ids[2], ids[0], ids[3], ids[3], ids[0]]
    assert "".join(map(stray.add, mixed)) + stray.close() == tokenizer.decode(mixed)


def test_special_tokens_are_no_text(tmp_path: Path) -> None:
    qwen(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.encode(["ward <|im_start|>seven"])[0]
    stream = TokenText(tokenizer, [tokenizer.begin_of_text_id])
    assert "".join(map(stream.add, ids)) == "ward seven"


@pytest.mark.parametrize(
    ("stop", "pieces", "expected", "stopped"),
    [
        (("\n\n",), ["one\n", "\ntwo"], "one", True),
        (("\n\n",), ["one\n", "two\n"], "one\ntwo\n", False),
        (("END",), ["E", "N", "E", "ND", "more"], "EN", True),
        (("abcd", "bc"), ["abcd"], "a", True),
        (("abc", "bc"), ["xa", "bc"], "x", True),
        (("aab",), ["aaaab"], "aa", True),
        ((), ["any", "thing"], "anything", False),
    ],
)
def test_stop_strings(
    stop: tuple[str, ...], pieces: list[str], expected: str, stopped: bool
) -> None:
    out, was_stopped = passed(stop, pieces)
    assert ("".join(out), was_stopped) == (expected, stopped)


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(1, 5), min_size=30, max_size=30),
)
def test_the_cut_into_pieces_makes_no_difference(
    text: str, stop: list[str], sizes: list[int]
) -> None:
    pieces, rest = [], text
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    # Brute force: character by character, the text up to where a stop string first is complete.
    expected = text
    for end in range(len(text) + 1):
        done = [text[: end - len(s)] for s in stop if text[:end].endswith(s)]
        if done:
            expected = min(done, key=len)
            break
    out, stopped = passed(tuple(stop), [piece for piece in pieces if piece])
    assert "".join(out) == expected
    assert stopped == any(s in text for s in stop)


def test_text_is_held_back_no_longer_than_needed() -> None:
    strings = StopStrings(("stop",))
    assert [strings.add(p)[0] for p in ("a s", "t", "x", "sto")] == ["a ", "", "stx", ""]


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopStrings(("a", ""))
