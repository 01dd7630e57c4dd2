"""Secrets that are planted in text, and how far a model gives them away.

A planted secret is a prompt and digits that were drawn uniformly, such as "The access code of X is
4-7-1-1-0-3". Every digit is a place of its own, so the candidates are all the ways to fill them.
They are drawn for the audit and belong to nobody; still no report shows one.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from arion.audit_canaries import draw_included
from client.data import DataConfig
from client.entropy import Entropy
from models.evaluate import row_nats
from models.language_model import LanguageModel
from models.tokenizer import Tokenizer
from privacy.audit.exposure import Exposure, exact_exposure, sampled_exposure
from privacy.audit.one_run import AuditError
from privacy.ledger.files import replace_durably

DIGITS = 6
_DIGIT = re.compile("[0-9]")
_MOST_DIGITS = 18  # as many as one word of the generator decides without bias to speak of


class PlantedSecret(BaseModel):
    """What an auditor knows of one secret; other keys of a secrets file are ignored.

    Attributes:
        institution, unit: where it was planted, if that is known.
        prompt: what comes before it. secret: holds 1 to 18 digits, each drawn uniformly.
        included: whether a fair coin put it into the records; None where no coin was tossed.

    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    institution: str = ""
    unit: str = ""
    prompt: str = Field(min_length=1)
    secret: str = Field(min_length=1)
    included: bool | None = None

    @property
    def digits(self) -> int:
        """How many places were drawn."""
        return len(_DIGIT.findall(self.secret))

    @property
    def candidates(self) -> int:
        """How many secrets there could have been."""
        return int(10**self.digits)

    def filled(self, code: Sequence[str]) -> str:
        """The secret as it would have been with other digits."""
        places = iter(code)
        return _DIGIT.sub(lambda _: next(places), self.secret)


@dataclass(frozen=True)
class SecretFinding:
    """One secret's exposure; neither the secret nor the unit that holds it is in it.

    Attributes:
        was_trained_on: whether a sequence of a member holds it whole; None where not known.

    """

    institution: str
    was_trained_on: bool | None
    exposure: Exposure


def load_secrets(path: Path) -> tuple[PlantedSecret, ...]:
    """Read a secrets file: a JSON list of objects with at least `prompt` and `secret`.

    Raises:
        AuditError: unreadable, or an entry that is no secret of digits; none is ever shown.

    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        found = tuple(PlantedSecret.model_validate(value) for value in values)
    except (OSError, ValidationError, ValueError, TypeError) as error:
        raise AuditError(
            f"Expected a JSON list of objects with prompt and secret at {path}, got something else "
            f"({type(error).__name__}). `arion privacy plant` writes such a file."
        ) from None
    if not found or not all(1 <= secret.digits <= _MOST_DIGITS for secret in found):
        raise AuditError(
            f"Expected secrets of 1 to {_MOST_DIGITS} digits in {path}, got another. Only digits "
            "that were drawn uniformly have a known chance."
        )
    return found


def audit_secrets(
    model: LanguageModel,
    tokenizer: Tokenizer,
    secrets: Sequence[PlantedSecret],
    *,
    tries: int,
    entropy: Entropy,
    trained_text: Sequence[str] | None = None,
    watch: Callable[[int], None] = lambda _done: None,
) -> tuple[SecretFinding, ...]:
    """Measure how far a model prefers each secret to what it could have been.

    Args:
        model, tokenizer: what is handed out.
        secrets: planted beforehand.
        tries: candidates to compare with; all of them where there are no more.
        entropy: of the candidates.
        trained_text: what was trained on, to say which secrets were; None if that is not known.
        watch: told how many are done.

    """
    found = []
    for number, secret in enumerate(secrets):
        seen = None
        if trained_text is not None:
            seen = any(secret.prompt + secret.secret in text for text in trained_text)
        others = other_candidates(secret, tries, entropy, number)
        exposure = _exposure(model, tokenizer, secret, others)
        found.append(SecretFinding(secret.institution, seen, exposure))
        watch(number + 1)
    return tuple(found)


def _exposure(
    model: LanguageModel, tokenizer: Tokenizer, secret: PlantedSecret, others: Sequence[str]
) -> Exposure:
    """Exposure among all other candidates, or among fewer that were drawn."""
    texts = [secret.prompt + filled for filled in (secret.secret, *others)]
    longest = max(len(ids) for ids in tokenizer.encode(texts)) + 1
    model.check_length(longest)
    rows = [row for (row,) in tokenizer.rows(texts, longest, 1)]
    nats = row_nats(model, rows)[0].numpy()
    if len(others) == secret.candidates - 1:
        return exact_exposure(float(nats[0]), nats[1:])
    return sampled_exposure(float(nats[0]), nats[1:], secret.candidates)


def sentence(secret: PlantedSecret, filled: str) -> str:
    """The text of a planted record, with the secret or another candidate in it."""
    return f"{secret.prompt}{filled}."


def other_candidates(secret: PlantedSecret, tries: int, entropy: Entropy, number: int) -> list[str]:
    """All other candidates where there are at most `tries`; else so many, drawn uniformly.

    Args:
        number: of the secret, so that a seeded audit draws anew for each.

    """
    if secret.candidates - 1 <= tries:
        return list(_all_others(secret))
    words = entropy.uniform("secret candidates", number).words(tries)
    return [secret.filled(f"{int(word) % secret.candidates:0{secret.digits}d}") for word in words]


def _all_others(secret: PlantedSecret) -> Iterator[str]:
    for code in product("0123456789", repeat=secret.digits):
        if (filled := secret.filled(code)) != secret.secret:
            yield filled


def plant(
    config: DataConfig,
    out: Path,
    *,
    count: int,
    repeats: int,
    entropy: Entropy,
    coins: bool = False,
) -> tuple[Path, Path]:
    """Draw secrets and write records that hold them, to be put beside an institution's shard.

    Each secret is a privacy unit of its own, in `repeats` records; no record of a person changes.

    Args:
        config: what the shard's fields mean. out: folder to write into; made if absent.
        count: secrets, 1 to 1000. repeats: records of each, 1 to 1000.
        entropy: of the digits, and of the coins.
        coins: toss a fair coin for each secret, and leave those of one side out of the records,
            as an audit of what was trained needs (`arion.variant_audit`).

    Returns:
        (the records, JSON lines; the secrets file, which belongs outside the shard).

    Raises:
        AuditError: a count out of range, or files that are there already.

    """
    if not (1 <= count <= 1000 and 1 <= repeats <= 1000):
        raise AuditError(f"Expected 1 to 1000 secrets and repeats, got {count} and {repeats}.")
    records, listing = out / "canaries.jsonl", out / "secrets.json"
    for path in (records, listing):
        if path.exists():
            raise AuditError(f"Expected no {path} yet, got one. Name another folder.")
    secrets = _make_secrets(count, entropy)
    if coins:
        tossed = draw_included(count, entropy, "secrets").tolist()
        pairs = zip(secrets, tossed, strict=True)
        secrets = [secret.model_copy(update={"included": side}) for secret, side in pairs]
    planted = [secret for secret in secrets if secret.included is not False]
    rows = [_row(config, secret) for secret in planted for _ in range(repeats)]
    out.mkdir(parents=True, exist_ok=True)
    listed = [secret.model_dump(exclude_none=True) for secret in secrets]
    replace_durably(listing, (json.dumps(listed, indent=1)).encode())
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    replace_durably(records, lines.encode())
    return records, listing


def _make_secrets(count: int, entropy: Entropy) -> list[PlantedSecret]:
    words = entropy.uniform("secrets").words(count)
    return [
        PlantedSecret(
            unit=f"canary-{number:04d}",
            prompt=f"The access code of canary {number:04d} is ",
            secret="-".join(f"{int(word) % 10**DIGITS:0{DIGITS}d}"),
        )
        for number, word in enumerate(words, start=1)
    ]


def _row(config: DataConfig, secret: PlantedSecret) -> dict[str, Any]:
    *empty, last = config.text_fields
    row: dict[str, Any] = {**dict.fromkeys(empty, ""), last: sentence(secret, secret.secret)}
    for field in (config.unit_field, config.group_field):
        if field is not None:
            row[field] = secret.unit
    return row
