"""Drafts that cannot be enforced before people compared fingerprints, and pins that they write."""

import tomllib
from datetime import date
from pathlib import Path

import pytest

from privacy.consent import ConsentError, load_consent
from privacy.consent_draft import Draft
from privacy.consent_pins import pin, pinned_key, read_clauses
from privacy.identity import fingerprint

OWN, HUB, SOUTH, EAST = (bytes([number]) * 32 for number in range(1, 5))
DRAFT = Draft(
    federation='hospitals "north"',
    name="north",
    public_key=OWN,
    purposes=("triage\nof notes",),
    data_set="notes",
    unit="patient",
    epsilon=4.0,
    delta=1e-6,
    runs=4,
    expires=date(2027, 1, 31),
)


@pytest.fixture
def consent(tmp_path: Path) -> Path:
    path = tmp_path / "consent.toml"
    path.write_text(DRAFT.text())
    return path


def test_a_draft_is_no_consent_before_everyone_was_compared(consent: Path) -> None:
    with pytest.raises(ConsentError, match="'coordinator_key': Expected this clause"):
        load_consent(consent)
    pin(consent, "coordinator", fingerprint(HUB), HUB)
    with pytest.raises(ConsentError, match="'members'"):
        load_consent(consent)
    pin(consent, "south", fingerprint(SOUTH), SOUTH)
    with pytest.raises(ConsentError, match="'smallest_cohort': Expected at most the 2 members"):
        load_consent(consent)
    pin(consent, "east", fingerprint(EAST), EAST)
    found = load_consent(consent)
    assert found.members == {"north": OWN.hex(), "south": SOUTH.hex(), "east": EAST.hex()}
    assert (found.coordinator_key, found.federation) == (HUB.hex(), DRAFT.federation)
    assert (found.epsilon, found.delta, found.epsilon_per_run) == (4.0, 1e-6, 1.0)
    assert (found.purposes, found.unit, found.expires) == (
        ("triage\nof notes",),
        "patient",
        DRAFT.expires,
    )


def test_a_draft_allows_nothing_that_is_not_private() -> None:
    clauses = tomllib.loads(DRAFT.text())
    assert clauses["runtimes"] == ["arion-grpc"]
    assert clauses["owned_experts_may_leave"] is False
    assert not {name for name in clauses if name.startswith("allow_")}
    assert clauses["smallest_cohort"] - clauses["tolerated_colluders"] >= 2


def test_pins_leave_the_rest_as_it_is(consent: Path) -> None:
    before = consent.read_text().splitlines()
    pin(consent, "south", fingerprint(SOUTH), SOUTH)
    pin(consent, "south", fingerprint(SOUTH), SOUTH)
    after = consent.read_text().splitlines()
    assert [line for line in after if line not in before] == [f'south = "{SOUTH.hex()}"']
    assert len(after) == len(before) + 1


@pytest.mark.parametrize(
    "read_out",
    [
        fingerprint(SOUTH).removeprefix("arion:"),
        fingerprint(SOUTH).upper(),
        " " + fingerprint(SOUTH).replace("-", " ") + "\n",
    ],
)
def test_spellings_of_a_fingerprint(consent: Path, read_out: str) -> None:
    pin(consent, "south", read_out, SOUTH)
    assert pinned_key(read_clauses(consent), "south") == SOUTH.hex()


@pytest.mark.parametrize(
    "read_out",
    [fingerprint(EAST), fingerprint(SOUTH)[:-1], fingerprint(SOUTH)[:-1] + "g", "", "arion:"],
)
def test_another_fingerprint_pins_nothing(consent: Path, read_out: str) -> None:
    before = consent.read_bytes()
    with pytest.raises(ConsentError, match="'members': Expected the fingerprint of 'south'"):
        pin(consent, "south", read_out, SOUTH)
    with pytest.raises(ConsentError, match="'coordinator_key': Expected the fingerprint"):
        pin(consent, "coordinator", read_out, SOUTH)
    assert consent.read_bytes() == before


def test_another_key_is_not_pinned_over_one(consent: Path) -> None:
    with pytest.raises(ConsentError, match="got another one"):
        pin(consent, "north", fingerprint(EAST), EAST)
    assert pinned_key(read_clauses(consent), "north") == OWN.hex()


@pytest.mark.parametrize(
    "text", ["members = {}\n", "[members.north]\nkey = 1\n[other]\n", 'a = """\n[members]\n"""\n']
)
def test_a_file_of_another_form_is_left_to_people(consent: Path, text: str) -> None:
    consent.write_text(text)
    with pytest.raises(ConsentError, match="by hand"):
        pin(consent, "south", fingerprint(SOUTH), SOUTH)
    assert consent.read_text() == text


def test_a_file_that_is_no_toml(consent: Path) -> None:
    consent.write_text("epsilon = ")
    with pytest.raises(ConsentError, match="arion node consent draft"):
        pin(consent, "south", fingerprint(SOUTH), SOUTH)
