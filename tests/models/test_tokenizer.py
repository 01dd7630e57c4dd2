"""Imported tokenizers: special tokens found, ids equal to transformers', nothing truncated."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend

from models.formats.files import CheckpointError
from models.pretrain import token_stream
from models.tokenizer import Tokenizer
from tests.models.tokenizers import TEXTS, llama, mixtral, qwen

KINDS = {"qwen3_moe": qwen, "llama": llama, "mixtral": mixtral}


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_what_we_write_with_equal_ids(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    KINDS[kind](tmp_path / "theirs")
    ours = Tokenizer.load(tmp_path / "theirs")
    ours.save(tmp_path / "ours")
    (tmp_path / "ours" / "config.json").write_text(json.dumps({"model_type": kind}))
    source = Backend.from_file(str(tmp_path / "theirs" / "tokenizer.json"))
    source.no_truncation()
    written = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    for text, ids in zip(TEXTS, ours.encode(TEXTS), strict=True):
        assert ids == source.encode(text, add_special_tokens=False).ids
        assert ids == written(text, add_special_tokens=False)["input_ids"]
        assert source.encode(text).ids == written(text)["input_ids"]
    assert written.eos_token is not None


def test_ends_of_text_come_from_the_first_file_that_names_them(tmp_path: Path) -> None:
    qwen(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    end, chat_end = map(backend.token_to_id, ("<|endoftext|>", "<|im_end|>"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.stop_ids == (end, chat_end)
    assert (tokenizer.begin_of_text_id, tokenizer.end_of_text_id) == (end, end)
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert Tokenizer.load(tmp_path).stop_ids == (end, chat_end)
    (tmp_path / "generation_config.json").unlink()
    assert Tokenizer.load(tmp_path).stop_ids == (7,)
    (tmp_path / "config.json").unlink()
    of_chat = Tokenizer.load(tmp_path)
    assert of_chat.stop_ids == (chat_end,)
    assert of_chat.begin_of_text_id == end  # no chat's end parted the documents of its training
    (tmp_path / "tokenizer.json").write_text(
        (tmp_path / "tokenizer.json").read_text().replace("<|endoftext|>", "<|other|>")
    )
    assert Tokenizer.load(tmp_path).begin_of_text_id == chat_end


def test_a_document_of_a_llama_begins_with_its_own_token(tmp_path: Path) -> None:
    llama(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    begin, end = map(backend.token_to_id, ("<|begin_of_text|>", "<|end_of_text|>"))
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.encode(TEXTS)
    for row, text in zip(tokenizer.rows(TEXTS, 10_000, 1), ids, strict=True):
        assert row[0].ids == (begin, *text, end)
    assert token_stream(tokenizer, TEXTS[:2]).tolist() == [
        begin, *ids[0], end, begin, *ids[1], end,
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_rows_cover_every_byte_of_the_text(kind: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path)
    for text, rows in zip(TEXTS, Tokenizer.load(tmp_path).rows(TEXTS, 7, 10_000), strict=True):
        assert sum(row.target_bytes for row in rows) == len(text.encode())


def test_a_chat_template_is_kept_wherever_it_stands(tmp_path: Path) -> None:
    qwen(tmp_path / "in")
    for name, template in (("tokenizer_config.json", "{{ messages }}"), ("jinja", "{{ bos }}")):
        if name == "jinja":
            (tmp_path / "in" / "chat_template.jinja").write_text(template)
        Tokenizer.load(tmp_path / "in").save(tmp_path / "out")
        written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
        assert written["chat_template"] == template
        assert "auto_map" not in written


def test_the_vocabulary_reaches_the_highest_id(tmp_path: Path) -> None:
    qwen(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    assert Tokenizer.load(tmp_path).vocab_size == backend.token_to_id("<|im_end|>") + 1


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("tokenizer.json", None, "AutoTokenizer"),
        ("tokenizer.json", "{}", "damaged"),
        ("tokenizer_config.json", "[]", "object"),
        ("tokenizer_config.json", "{", "JSON"),
        ("tokenizer_config.json", "{}", "end-of-text"),
        ("tokenizer_config.json", '{"eos_token": "<none>"}', "end-of-text"),
        ("config.json", '{"eos_token_id": "2"}', "token ids"),
        ("config.json", '{"eos_token_id": []}', "end-of-text"),
        ("config.json", '{"eos_token_id": [1, 99999]}', "end-of-text"),
    ],
)
def test_damage_is_a_clear_error(name: str, content: str | None, text: str, tmp_path: Path) -> None:
    mixtral(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=text):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_elsewhere_is_not_read(tmp_path: Path) -> None:
    mixtral(tmp_path / "elsewhere")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "tokenizer.json").symlink_to(tmp_path / "elsewhere" / "tokenizer.json")
    with pytest.raises(CheckpointError, match="link"):
        Tokenizer.load(tmp_path / "here")
