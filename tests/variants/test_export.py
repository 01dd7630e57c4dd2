"""`arion model export` and `verify`: from a model to an artefact, and every way to spoil it."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from models.checkpoint import model_digest, save_model
from models.durable import file_digest
from models.variants.extras import VariantError
from models.variants.gguf_file import write_gguf
from models.variants.passport import read_passport, verify_artefact
from privacy.identity import IdentityKey, fingerprint
from tests.variants.artefacts import KEY, model, public
from tests.variants.models import TEXTS, decoder, tokenizer

pytest.importorskip("gguf")
MODEL, WORDS = decoder("llama moe, stretched", hidden=256, initializer_range=0.05), tokenizer()


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a key and public text."""
    folder = tmp_path_factory.mktemp("ground")
    save_model(MODEL, WORDS, folder / "parent")
    KEY.save(folder / "key")
    public(folder / "text", TEXTS, "wards")
    return folder


@pytest.fixture(scope="module")
def made(ground: Path) -> Path:
    """A signed artefact, run in llama.cpp."""
    pytest.importorskip("llama_cpp")
    options = (
        "--tier",
        "mobile",
        "--bits",
        8,
        "--heldout",
        ground / "text",
        "--key",
        ground / "key",
    )
    result = model("export", ground / "parent", *options, "--out", ground / "made", "--json")
    assert result.exit_code == 0, result.stderr
    printed = result.stdout
    assert printed == (ground / "made" / "variant.json").read_text()
    return ground / "made"


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def test_a_passport_says_what_was_made_and_found(made: Path, ground: Path) -> None:
    passport = read_passport(made)
    names = {path.name for path in made.iterdir()}
    assert names == {"model.gguf", "MODEL_CARD.md", "variant.json", "variant.intoto.json"}
    assert passport.parent_digest == model_digest(MODEL)
    assert (passport.container, passport.number_format) == ("gguf", "q8_0")
    assert passport.files["model.gguf"] == file_digest(made / "model.gguf")
    assert passport.file_bytes == (made / "model.gguf").stat().st_size
    assert [share.model_dump() for share in passport.owners] == [
        {"owner": "public", "experts": 8, "module": None, "privacy": None, "licence": None}
    ]
    assert passport.texts[0].files == {"a.txt": file_digest(ground / "text" / "a.txt")}
    assert passport.ledger == ()
    ran = passport.verification
    assert {row.text for row in ran.quality} == {"samples", "wards"}
    assert all(0 < row.kl < 0.01 for row in ran.quality)
    assert ran.tokens_per_s > 0


def test_the_card_says_the_same(made: Path) -> None:
    passport, card = read_passport(made), (made / "MODEL_CARD.md").read_text()
    for said in (
        passport.parent_digest,
        f"{passport.file_bytes:,} bytes",
        passport.verification.runtime,
        f"{passport.verification.tokens_per_s:.1f} tokens/s",
        "4 of the parent's 4 experts",
        "No ledger was given: nothing is claimed",
        "wards (held-out): invented. Licence: CC0.",
        *(f"{row.loss:.4f} | {row.model_loss:.4f}" for row in passport.verification.quality),
    ):
        assert said in card


def test_verify_names_the_signer_and_takes_no_other(made: Path) -> None:
    own = fingerprint(KEY.public_key)
    result = model("verify", made, "--signer", own, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["signer"] == own
    assert own in model("verify", made).stdout
    other = fingerprint(IdentityKey.from_bytes(bytes([1] * 32)).public_key)
    result = model("verify", made, "--signer", other)
    assert result.exit_code == 2
    assert f"Expected a signature by {other}" in result.stderr


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def passport_says(folder: Path, old: str, new: str) -> None:
    path = folder / "variant.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: flip(f / "model.gguf"), "model.gguf as variant.json names it, got other bytes"),
        (lambda f: flip(f / "MODEL_CARD.md"), "MODEL_CARD.md as variant.json"),
        (lambda f: (f / "model.gguf").unlink(), "Expected model.gguf in"),
        (lambda f: (f / "extra.py").write_text("x"), "only the files that variant.json names"),
        (lambda f: (f / "model.gguf").rename(f / "m.gguf"), "Give it its name again"),
        (lambda f: (f / "variant.json").unlink(), "Expected variant.json in"),
        (lambda f: (f / "variant.json").write_text("{}"), "Expected a passport at"),
        (lambda f: (f / "variant.intoto.json").unlink(), "Expected a signature"),
        (lambda f: (f / "variant.intoto.json").write_text("{}"), "DSSE envelope"),
        (lambda f: passport_says(f, '"tier": "mobile"', '"tier": "edge"'), "about another"),
        (lambda f: passport_says(f, '"model.gguf":', f'"../x": "{"0" * 64}", "model.gguf":'),
         "name of a file"),
    ],
)  # fmt: skip
def test_what_was_changed_after_signing_is_seen(
    spoil: Callable[[Path], object], said: str, copy: Path
) -> None:
    spoil(copy)
    result = model("verify", copy)
    assert result.exit_code == 2
    assert said in result.stderr


def forged(folder: Path, file: Path) -> Path:
    """Put another file in the artefact's place and write the passport's digest anew."""
    (folder / "variant.intoto.json").unlink()
    was, now = file_digest(folder / "model.gguf"), file_digest(file)
    shutil.copyfile(file, folder / "model.gguf")
    passport_says(folder, was, now)
    return folder


def test_another_tokenizer_is_seen_even_under_a_passport_written_anew(
    copy: Path, tmp_path: Path
) -> None:
    other = type(WORDS).train(["quite another text about other things"] * 3, 320)
    write_gguf(MODEL, other, tmp_path / "m.gguf", "q8_0")
    with pytest.raises(VariantError, match="Expected tokenizer"):
        verify_artefact(forged(copy, tmp_path / "m.gguf"))


def test_missing_experts_and_unknown_architectures_are_seen(copy: Path, tmp_path: Path) -> None:
    fewer = decoder("llama moe, stretched", hidden=256, experts=3)
    write_gguf(fewer, WORDS, tmp_path / "m.gguf", "q8_0")
    with pytest.raises(VariantError, match=r"Expected experts 4 .* got 3"):
        verify_artefact(forged(copy, tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (b"\x05\x00\x00\x00\x00\x00\x00\x00llama", b"\x05\x00\x00\x00\x00\x00\x00\x00gemma",
         "architecture out of qwen3, qwen3moe, llama, got 'gemma'"),
        (b"blk.1.ffn_up_exps", b"blk.1.ffn_up_exqs", "missing ..blk.1.ffn_up_exps.weight"),
    ],
)  # fmt: skip
def test_another_architecture_or_a_missing_tensor_is_named(
    old: bytes, new: bytes, said: str, copy: Path, tmp_path: Path
) -> None:
    data = (copy / "model.gguf").read_bytes()
    assert old in data
    (tmp_path / "m.gguf").write_bytes(data.replace(old, new, 1))
    with pytest.raises(VariantError, match=said):
        verify_artefact(forged(copy, tmp_path / "m.gguf"))


def test_a_link_out_of_the_folder_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "model.gguf").rename(tmp_path / "elsewhere")
    (copy / "model.gguf").symlink_to(tmp_path / "elsewhere")
    result = model("verify", copy)
    assert result.exit_code == 2
    assert "link" in result.stderr


def test_a_folder_for_transformers_is_exported_and_verified(ground: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    result = model("export", ground / "parent", "--tier", "cluster", "--out", tmp_path / "hf")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "hf" / "model.safetensors").is_file()
    assert model("verify", tmp_path / "hf").exit_code == 2
    assert model("verify", tmp_path / "hf", "--unsigned").exit_code == 0
    passport = read_passport(tmp_path / "hf")
    assert passport.contents.architecture == "mixtral"
    assert passport.number_format == "bf16"


def test_what_fails_is_not_published_and_says_why(ground: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    options = ("--tier", "edge", "--bits", 8, "--min-tokens-per-s", 1e9, "--out", tmp_path / "x")
    result = model("export", ground / "parent", *options)
    assert result.exit_code == 2
    assert "none of 1 tried" in result.stderr
    assert "q8_0, 4 of 4 experts" in result.stderr
    assert "tokens/s, under 1000000000.0" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_missing_runtime_is_named_and_the_export_goes_on(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.variants.llama_runtime import llama_cpp  # noqa: PLC0415

    llama_cpp.cache_clear()
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    result = model("export", ground / "parent", "--tier", "edge", "--out", tmp_path / "edge")
    llama_cpp.cache_clear()
    assert result.exit_code == 0, result.stderr
    assert "arion-federated[edge]" in result.stderr
    passport = read_passport(tmp_path / "edge")
    assert passport.number_format == "q4_0"  # K-quants are llama.cpp's own
    assert passport.verification.missing_extra == "edge"
    assert "Not run." in (tmp_path / "edge" / "MODEL_CARD.md").read_text()


def test_a_dry_run_writes_nothing(ground: Path, tmp_path: Path) -> None:
    options = ("--tier", "mobile", "--dry-run", "--json", "--out", tmp_path / "x")
    result = model("export", ground / "parent", *options)
    plans = json.loads(result.stdout)["plans"]
    assert [plan["number_format"] for plan in plans] == ["q8_0", "q4_k_m", "q4_0"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tier", "desk"), "--tier out of edge, mobile, cluster"),
        (("--tier", "edge", "--bits", 5), "--bits out of 4, 8, 16, 32"),
        (("--tier", "edge", "--format", "exe"), "--format out of gguf, hf"),
        (("--tier", "edge", "--max-bytes", 10), "as the nearest"),
        (("--tier", "edge", "--max-loss-rise", 0.1), "Expected --heldout"),
        (("--tier", "edge", "--key", "nowhere"), "readable key file"),
        (("--tier", "edge", "--heldout", "PARENT"), "Expected public.toml in it"),
        (("--tier", "edge", "--ledger", "PARENT"), "Expected"),
    ],
)  # fmt: skip
def test_mistakes_end_before_anything_is_written(
    options: tuple[object, ...], said: str, ground: Path, tmp_path: Path
) -> None:
    given = [ground / "parent" if each == "PARENT" else each for each in options]
    result = model("export", ground / "parent", *given, "--out", tmp_path / "x")
    assert result.exit_code == 2
    assert said in result.stderr
    assert not list(tmp_path.iterdir())


def test_text_with_a_privacy_unit_is_not_public(ground: Path, tmp_path: Path) -> None:
    text = tmp_path / "text"
    shutil.copytree(ground / "text", text)
    (text / "data.toml").write_text('text_fields = ["text"]\nunit_field = "patient"\n')
    options = ("--tier", "edge", "--heldout", text, "--out", tmp_path / "x")
    result = model("export", ground / "parent", *options)
    assert result.exit_code == 2
    assert "'patient' names whose data" in result.stderr
