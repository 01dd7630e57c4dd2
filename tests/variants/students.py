"""A student of a composed model of two owners, exported as users do it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import Result

from models.composition import save_composed
from models.decoder import Decoder
from tests.variants.artefacts import KEY, OWNERS, model, public, unmeasured
from tests.variants.models import TEXTS, decoder, tokenizer

WORDS = tokenizer()
STEPS = ("--distil-steps", 12, "--distil-batch", 4, "--distil-length", 16)
DENSE = ("--dense", *STEPS, "--distil-rate", 3e-3)


def parent() -> Decoder:
    return decoder("qwen3moe", layers=3, experts=6, initializer_range=0.1)


@pytest.fixture(scope="module", autouse=True)
def _unmeasured() -> Iterator[None]:
    with unmeasured():
        yield


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A composed model of two owners, a key, and text to distil and to compare on."""
    folder = tmp_path_factory.mktemp("ground")
    save_composed(parent(), WORDS, OWNERS, folder / "parent")
    KEY.save(folder / "key")
    public(folder / "text", TEXTS * 6, "lessons")
    public(folder / "domain", TEXTS[:1], "cases")
    public(folder / "heldout", TEXTS[1:], "wards")
    return folder


def exported(ground: Path, out: Path, *options: object) -> Result:
    given = ("--tier", "cluster", "--bits", 32, "--public", ground / "text", *DENSE)
    return model("export", ground / "parent", *given, *options, "--out", out)


@pytest.fixture(scope="module")
def made(ground: Path, _unmeasured: None) -> Path:
    """A signed student of two layers, each of three experts."""
    shape = ("--width", 3 * 96, "--depth", 2, "--domain", ground / "domain")
    more = ("--heldout", ground / "heldout", "--key", ground / "key")
    result = exported(ground, ground / "made", *shape, *more, "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == (ground / "made" / "variant.json").read_text()
    assert "distilling: 12/12" in result.stderr
    assert "that were held out: KL" in result.stderr
    return ground / "made"
