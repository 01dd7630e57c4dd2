"""The audit of an artefact: what memorised canaries show, what chance does, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from arion.audit_secrets import load_secrets, plant, sentence
from arion.cli import app
from arion.variant_audit import refutation
from client.data import DataConfig
from client.entropy import Entropy
from models.checkpoint import save_model
from models.config import ModelConfig
from models.decoder import Decoder
from models.durable import file_digest
from models.tokenizer import Tokenizer
from models.variants import check
from models.variants.claims import Audited, LedgerClaim
from models.variants.extras import MissingExtraError, VariantError
from models.variants.passport import read_passport, verify_artefact
from models.variants.plan import Plan
from models.variants.probe import Probe

pytest.importorskip("transformers")
CANARIES, DELTA = 120, 1e-5
LAYOUT = DataConfig(text_fields=("text",))


@pytest.fixture(autouse=True)
def _no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed and memory have a test of their own."""
    monkeypatch.setattr(check, "probe", lambda *arguments: Probe(10.0, 1, 1000, None))


def train(secrets_file: Path, *, on_secrets: bool) -> tuple[Decoder, Tokenizer]:
    """A model that read the planted records without privacy, or as much text without a secret."""
    secrets = [each for each in load_secrets(secrets_file) if each.included]
    texts = [sentence(each, each.secret) for each in secrets]
    if not on_secrets:
        texts = [sentence(each, each.filled("0" * each.digits)) for each in secrets]
    tokenizer = Tokenizer.train(["The access code of canary 0123456789 is ."] * 9, 300)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=64, layers=2, heads=2, kv_heads=1, head_dim=32,
        experts=2, experts_per_token=1, expert_hidden_size=128, max_positions=64,
    )  # fmt: skip
    model = Decoder(config, torch.Generator().manual_seed(0))
    rows = [row.ids for part in tokenizer.rows(texts, 60, 1) for row in part]
    longest = max(map(len, rows))
    token_BT = torch.tensor([[*ids, *(ids[-1:] * (longest - len(ids)))] for ids in rows])
    optimiser = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(150):
        logits_BTV = model(token_BT[:, :-1])
        loss = torch.nn.functional.cross_entropy(
            logits_BTV.flatten(0, 1), token_BT[:, 1:].flatten()
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model, tokenizer


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Canaries with coins, and a model that memorised those that were in."""
    folder = tmp_path_factory.mktemp("ground")
    _, listing = plant(
        LAYOUT, folder / "canaries", count=CANARIES, repeats=1, entropy=Entropy(1), coins=True
    )
    for name, on_secrets in (("greedy", True), ("blind", False)):
        save_model(*train(listing, on_secrets=on_secrets), folder / name)
    return folder


def export(ground: Path, name: str, out: Path, *more: object) -> Result:
    options = ("--tier", "cluster", "--bits", 32, "--out", out)  # a later option counts
    return CliRunner().invoke(app, [*map(str, ("model", "export", ground / name, *options, *more))])


def audited(ground: Path, name: str, out: Path, *more: object) -> Audited:
    listing = ground / "canaries" / "secrets.json"
    options = ("--canaries", listing, "--audit-delta", DELTA, "--audit-tries", 4, *more)
    result = export(ground, name, out, *options)
    assert result.exit_code == 0, result.stderr
    found = verify_artefact(out).audited
    assert found is not None
    assert found.secrets == file_digest(listing)
    assert (found.canaries, found.delta) == (CANARIES, DELTA)
    return found


def test_planting_with_coins_leaves_about_half_out(ground: Path) -> None:
    secrets = load_secrets(ground / "canaries" / "secrets.json")
    lines = (ground / "canaries" / "canaries.jsonl").read_text().splitlines()
    included = [each for each in secrets if each.included]
    assert [json.loads(line)["text"] for line in lines] == [
        sentence(each, each.secret) for each in included
    ]
    assert len(secrets) == CANARIES
    assert abs(len(included) - CANARIES / 2) < 4 * (CANARIES / 4) ** 0.5
    assert all(each.included is not None for each in secrets)


def test_memorised_canaries_show_what_no_small_epsilon_allows(ground: Path, tmp_path: Path) -> None:
    found = audited(ground, "greedy", tmp_path / "a")
    assert 1 < found.epsilon_at_least <= found.most_it_can_show
    card = (tmp_path / "a" / "MODEL_CARD.md").read_text()
    assert f"shows ε ≥ {found.epsilon_at_least:.4f} at δ = 1e-05" in card
    assert "not audited" not in card


def test_a_model_that_saw_none_shows_nothing(ground: Path, tmp_path: Path) -> None:
    assert audited(ground, "blind", tmp_path / "a").epsilon_at_least < 0.3


def test_other_coins_than_those_of_training_show_nothing(ground: Path, tmp_path: Path) -> None:
    """The bound comes from the coins: once tossed again, guesses are worth nothing."""
    place = tmp_path / "again.json"
    values = json.loads((ground / "canaries" / "secrets.json").read_text())
    tossed = np.random.default_rng(5).integers(0, 2, len(values)).tolist()
    place.write_text(
        json.dumps([{**v, "included": bool(c)} for v, c in zip(values, tossed, strict=True)])
    )
    options = ("--canaries", place, "--audit-delta", DELTA, "--audit-tries", 4)
    assert export(ground, "greedy", tmp_path / "a", *options).exit_code == 0
    found = read_passport(tmp_path / "a").audited
    assert found is not None
    assert found.epsilon_at_least < 0.5


def test_without_canaries_the_passport_does_not_name_the_audit(
    ground: Path, tmp_path: Path
) -> None:
    assert export(ground, "blind", tmp_path / "a").exit_code == 0
    assert "audited" not in json.loads((tmp_path / "a" / "variant.json").read_text())
    assert "was not audited by itself" in (tmp_path / "a" / "MODEL_CARD.md").read_text()


def claim(epsilon_micro: int | None) -> LedgerClaim:
    return LedgerClaim(
        node="east", entries=3, root="a" * 64, epsilon_micro=epsilon_micro, delta_1e15=10**10,
        noise="csprng", names_parent=True,
    )  # fmt: skip


def test_a_bound_above_the_claim_keeps_an_artefact_from_being_published(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arion.variant_order.ledger_claims", lambda *_: (claim(10**5),))
    options = ("--canaries", ground / "canaries" / "secrets.json", "--ledger", tmp_path)
    result = export(ground, "greedy", tmp_path / "a", *options)
    assert result.exit_code == 2
    assert "REFUTED: an attack shows epsilon of at least" in result.stderr
    assert not (tmp_path / "a").exists()


def test_no_coarser_format_is_tried_after_a_refutation(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arion.variant_order.ledger_claims", lambda *_: (claim(10**6),))
    seen: list[str] = []

    def audit(plan: Plan, *_: object, **__: object) -> Audited:
        seen.append(plan.number_format)
        return Audited(
            canaries=100, included=50, tries=8, delta=1e-5, confidence=0.95, guessed=50,
            epsilon_at_least=9.0 if len(seen) == 1 else 0.0, correct=49, most_it_can_show=9.0,
            secrets="b" * 64,
        )  # fmt: skip

    monkeypatch.setattr("arion.variant_export.audit_artefact", audit)
    monkeypatch.setattr("arion.variant_export.failures", lambda *_: ())
    monkeypatch.setattr("arion.variant_export.run_artefact", lambda *_: None)
    listing = ("--canaries", ground / "canaries" / "secrets.json", "--ledger", tmp_path)
    options = ("--format", "gguf", "--bits", 16, *listing)
    pytest.importorskip("gguf")
    result = export(ground, "blind", tmp_path / "a", *options)
    assert result.exit_code == 2
    assert "REFUTED" in result.stderr
    assert seen == ["f16"]  # bf16 would have been next
    assert not (tmp_path / "a").exists()


def test_a_delta_below_the_claims_is_refused(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arion.variant_order.ledger_claims", lambda *_: (claim(10**6),))
    listing = ("--canaries", ground / "canaries" / "secrets.json", "--ledger", tmp_path)
    result = export(ground, "blind", tmp_path / "a", *listing, "--audit-delta", 1e-6)
    assert result.exit_code == 2
    assert "at least 1e-05" in result.stderr


def test_an_artefact_that_cannot_be_run_is_not_published_unaudited(
    ground: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise MissingExtraError("transformers", "foreign")

    monkeypatch.setattr("arion.variant_export.run_artefact", missing)
    options = ("--canaries", ground / "canaries" / "secrets.json", "--audit-delta", DELTA)
    result = export(ground, "blind", tmp_path / "a", *options)
    assert result.exit_code == 2
    assert "export without --canaries" in result.stderr
    assert not (tmp_path / "a").exists()


def test_the_largest_claim_is_held_against_the_bound() -> None:
    found = Audited(
        canaries=100, included=50, tries=8, delta=1e-5, confidence=0.95, epsilon_at_least=2.0,
        guessed=50, correct=49, most_it_can_show=3.0, secrets="b" * 64,
    )  # fmt: skip
    assert refutation(found, (claim(10**6), claim(1_999_999))) is not None
    assert refutation(found, (claim(10**6), claim(2_000_000))) is None
    assert refutation(found, (claim(10**6), claim(None))) is None  # nothing is claimed
    assert refutation(found, ()) is None


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda values: [{**v, "included": None} for v in values], "had no coin"),
        (lambda values: [{**v, "included": True} for v in values], "left out by a coin"),
        (lambda values: values[:9], "at least 10 secrets"),
    ],
)
def test_secrets_without_coins_are_refused_before_any_work(
    spoil: object, said: str, ground: Path, tmp_path: Path
) -> None:
    place = tmp_path / "secrets.json"
    values = json.loads((ground / "canaries" / "secrets.json").read_text())
    place.write_text(json.dumps(spoil(values)))  # type: ignore[operator]
    options = ("--canaries", place, "--audit-delta", DELTA)
    result = export(ground, "blind", tmp_path / "a", *options)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_delta_must_come_from_somewhere(ground: Path, tmp_path: Path) -> None:
    listing = ground / "canaries" / "secrets.json"
    result = export(ground, "blind", tmp_path / "a", "--canaries", listing)
    assert result.exit_code == 2
    assert "--audit-delta, or --ledger" in result.stderr


def test_a_canary_longer_than_the_context_is_refused(ground: Path, tmp_path: Path) -> None:
    listing = ground / "canaries" / "secrets.json"
    options = ("--canaries", listing, "--audit-delta", DELTA, "--context", 16)
    result = export(ground, "blind", tmp_path / "a", *options)
    assert result.exit_code == 2
    assert "Raise --context" in result.stderr
    with pytest.raises(VariantError):
        read_passport(tmp_path / "a")
