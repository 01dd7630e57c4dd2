"""Chats: the tokens are transformers' own; a template is a program that may reach nothing."""

import json
from pathlib import Path

import pytest

from models.chat import Chat, ChatError
from models.tokenizer import Tokenizer
from tests.models.tokenizers import llama, qwen

transformers = pytest.importorskip("transformers")

MARKED = """{%- if messages[0].role == 'system' -%}
  <|im_start|>system
{{ messages[0].content }}<|im_end|>
{%- endif %}
{% for message in messages %}
    {% if message['role'] == 'system' %}{% continue %}{% endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>\\n' -}}
{% endfor %}
{% if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' -}}
{% endif %}
"""
BEGUN = """{{ bos_token }}{% set ns = namespace(n=0) %}{% for m in messages %}
  {%- set ns.n = ns.n + 1 %}[{{ ns.n }}] {{ m | tojson }}{{ eos_token }}
{% endfor %}{{ {'é': [1]} | tojson(indent=2) }} on {{ strftime_now('%Y-%m-%d') }}"""
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}x"
ABSENT = """{% if tools is not none %}tools{% endif %}{% if documents == none %}none{% endif %}
{% generation %}{{ messages[-1].content | tojson(ensure_ascii=True) }}{% endgeneration %}"""
TURNS = (['Who  <is> "it"? '], ["Wer?", "Viktor.\n", "  한국어 🙂"])


def folder_of(make: object, template: object, path: Path) -> Path:
    make(path)  # type: ignore[operator]
    settings = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    return path


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize(
    ("make", "template"), [(qwen, MARKED), (qwen, BEGUN), (llama, BEGUN), (qwen, ABSENT)]
)
def test_a_chat_is_cut_into_the_tokens_of_transformers(
    make: object, template: str, turns: list[str], system: str | None, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(folder_of(make, template, tmp_path / "in"))
    tokenizer.save(tmp_path / "out")
    text = Chat.of(tokenizer, system).render(turns)
    roles = ["user", "assistant", "user"]
    messages = [{"role": r, "content": c} for r, c in zip(roles, turns, strict=False)]
    told = [] if system is None else [{"role": "system", "content": system}]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    options = {"add_generation_prompt": True, "return_dict": False}
    assert text == theirs.apply_chat_template(told + messages, tokenize=False, **options)
    assert tokenizer.encode([text])[0] == theirs.apply_chat_template(told + messages, **options)


def test_a_chat_begins_with_its_special_token(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(folder_of(qwen, MARKED, tmp_path))
    text = Chat.of(tokenizer).render(["Who?"])
    assert text == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode([text])[0][0] == tokenizer.encode(["<|im_start|>"])[0][0]


def test_special_tokens_are_found_where_older_folders_name_them(tmp_path: Path) -> None:
    folder = folder_of(llama, "{{ bos_token }}{{ messages[0].content }}", tmp_path)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    begin = settings.pop("bos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    named = {"bos_token": {"content": begin, "lstrip": False}, "eos_token": "not this one"}
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    tokenizer = Tokenizer.load(folder)
    assert Chat.of(tokenizer).render(["Who?"]) == f"{begin}Who?"
    assert tokenizer.special_tokens["eos_token"] == settings["eos_token"]["content"]


def test_of_several_templates_the_default_is_taken(tmp_path: Path) -> None:
    listed = [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}, "odd"]
    folder = folder_of(qwen, listed, tmp_path)
    assert Chat.of(Tokenizer.load(folder)).render(["Who?"]) == "yes"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "without"),
        ([{"name": "tools", "template": "no"}], "without"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ ('{0.__globals__[os]}' | attr('format'))(raise_exception) }}", "SecurityError"),
        ("{% break %}x", "renders 2 messages"),
        ("{% for a in [1] %}" * 21 + "x" + "{% endfor %}" * 21, "renders 2 messages"),
        ("{{ " + "(" * 3_000 + "1" + ")" * 3_000 + " }}", "RecursionError"),
        ("{{ '\\ud800' }}", "UnicodeEncodeError"),
        ([{"name": [], "template": "x"}], "without"),
        (STRICT, "no system here"),
        ("{{ messages[0].role.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages[7].role }}", "renders 2 messages"),
        ("{{ 1 // 0 }}", "renders 2 messages"),
        ("{% if false %}x{% endif %}", "got none"),
        ("{% for n in range(10**9) %}{% endfor %}x", "renders 2 messages"),
        ("{% include '/etc/passwd' %}", "renders 2 messages"),
    ],
)
def test_templates_that_do_not_render_are_refused(
    template: object, message: str, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.load(folder_of(qwen, template, tmp_path))
    with pytest.raises(ChatError, match=message):
        Chat.of(tokenizer, "Be brief.").render(["Who?"])
