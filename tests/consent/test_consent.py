"""Consents: every clause checked, every error named after its clause, every promise in words."""

import json
from datetime import date
from pathlib import Path

import pytest
from typer.testing import CliRunner

from arion.cli import app
from privacy.consent import Consent, ConsentError, load_consent
from privacy.consent_words import explain
from privacy.identity import fingerprint

KEYS = {name: f"{number:02x}" * 32 for number, name in enumerate(("hub", "a", "b", "c"), start=1)}
CLAUSES = {
    "federation": '"clinics"',
    "coordinator_key": f'"{KEYS["hub"]}"',
    "members": f'{{ hospital-a = "{KEYS["a"]}", hospital-b = "{KEYS["b"]}", c = "{KEYS["c"]}" }}',
    "purposes": '["answering questions about diseases"]',
    "data_set": '"notes"',
    "unit": '"patient"',
    "accountant": '"schedule"',
    "epsilon": "8",
    "delta": "1e-6",
    "epsilon_per_run": "3.5",
    "epsilon_if_all_others_collude": "12.0",
    "smallest_cohort": "3",
    "tolerated_colluders": "1",
    "trainable": '["*.lora_a", "*.lora_b"]',
    "runtimes": '["simulate", "arion-grpc"]',
    "expires": "2030-12-31",
}


def consent_of(tmp_path: Path, **changes: str | None) -> Consent:
    clauses = {name: value for name, value in (CLAUSES | changes).items() if value is not None}
    path = tmp_path / "consent.toml"
    path.write_text("".join(f"{name} = {value}\n" for name, value in clauses.items()))
    return load_consent(path)


def test_a_complete_consent_is_read(tmp_path: Path) -> None:
    consent = consent_of(tmp_path)
    assert (consent.epsilon, consent.expires) == (8.0, date(2030, 12, 31))
    assert consent.members["hospital-a"] == KEYS["a"]
    permissions = (
        consent.owned_experts_may_leave,
        consent.allow_unprotected_release,
        consent.allow_seeded_simulation,
    )
    assert permissions == (False, False, False)


def test_the_digest_is_that_of_the_meaning(tmp_path: Path) -> None:
    digest = consent_of(tmp_path).digest()
    assert consent_of(tmp_path, epsilon="8.0", expires='"2030-12-31"').digest() == digest
    assert consent_of(tmp_path, epsilon="9").digest() != digest
    assert len(digest) == 64


@pytest.mark.parametrize("clause", CLAUSES)
def test_a_missing_clause_is_named(tmp_path: Path, clause: str) -> None:
    with pytest.raises(ConsentError, match=f"'{clause}': Expected this clause, got none") as caught:
        consent_of(tmp_path, **{clause: None})
    assert caught.value.clause == clause


BAD = {
    "unknown clause": ({"epsilom": "3"}, "'epsilom': Expected a clause that Arion knows"),
    "epsilon zero": ({"epsilon": "0"}, "'epsilon': Input should be greater than 0"),
    "epsilon infinite": ({"epsilon": "inf"}, "'epsilon': Input should be a finite number"),
    "epsilon not a number": ({"epsilon": "nan"}, "'epsilon': Input should be a finite number"),
    "epsilon as text": ({"epsilon": '"8"'}, "'epsilon': Input should be a valid number"),
    "delta too large": ({"delta": "0.01"}, "'delta': Input should be less than 0.001"),
    "delta too small for a run": (
        {"delta": "1e-10"},
        "'delta': Expected delta * epsilon_per_run / epsilon, the delta of one run, of at least",
    ),
    "run above life": ({"epsilon_per_run": "9"}, "'epsilon_per_run': Expected at most epsilon = 8"),
    "collusion below run": (
        {"epsilon_if_all_others_collude": "1"},
        "'epsilon_if_all_others_collude': Expected at least epsilon_per_run = 3.5",
    ),
    "cohort of one": ({"smallest_cohort": "1"}, "'smallest_cohort': Input should be greater"),
    "cohort too large": ({"smallest_cohort": "4"}, "'smallest_cohort': Expected at most the 3"),
    "no colluders": ({"tolerated_colluders": "0"}, "'tolerated_colluders': Input should be great"),
    "all collude": ({"tolerated_colluders": "3"}, "'tolerated_colluders': Expected fewer than"),
    "accountant": ({"accountant": '"gdp"'}, "'accountant': Input should be 'schedule'"),
    "filter and experts": (
        {"accountant": '"filter"', "owned_experts_may_leave": "true"},
        "'owned_experts_may_leave': Expected owned_experts_may_leave = false under accountant",
    ),
    "filter without noise": (
        {"accountant": '"filter"', "allow_unprotected_release": "true"},
        "'allow_unprotected_release': Expected allow_unprotected_release = false under accountant",
    ),
    "institution and experts": (
        {"unit": '"institution"', "owned_experts_may_leave": "true"},
        "'owned_experts_may_leave': Expected owned_experts_may_leave = false under unit",
    ),
    "apart without keys": (
        {"keep_data_sets_apart": "true", "unit": '"record"'},
        "'keep_data_sets_apart': Expected a field of the data as the unit",
    ),
    "institution apart": (
        {"keep_data_sets_apart": "true", "unit": '"institution"'},
        "'keep_data_sets_apart': Expected a field of the data as the unit",
    ),
    "apart under a filter": (
        {"keep_data_sets_apart": "true", "accountant": '"filter"'},
        "'keep_data_sets_apart': Expected a field of the data as the unit",
    ),
    "runtime": ({"runtimes": '["ray"]'}, "'runtimes.0': Input should be 'simulate'"),
    "no runtime": ({"runtimes": "[]"}, "'runtimes': Value should have at least 1 item"),
    "one string": ({"trainable": '"*"'}, "'trainable': Input should be a valid tuple"),
    "permission as text": (
        {"allow_unprotected_release": '"no"'},
        "'allow_unprotected_release': Input should be a valid boolean",
    ),
    "expiry": ({"expires": '"soon"'}, "'expires': Input should be a valid date"),
    "short key": ({"coordinator_key": '"ab"'}, "'coordinator_key': String should match"),
    "member name": ({"members": '{ "A B" = "00" }'}, "'members.A B"),
    "one member": ({"members": f'{{ a = "{KEYS["a"]}" }}'}, "'members': Dictionary should have at"),
    "one key for two": (
        {"members": f'{{ a = "{KEYS["a"]}", b = "{KEYS["a"]}", c = "{KEYS["c"]}" }}'},
        "'members': Expected a key of its own for every member, got one key for 'a' and 'b'",
    ),
    "coordinator is a member": (
        {"coordinator_key": f'"{KEYS["b"]}"'},
        "'coordinator_key': Expected a key that no member holds, got the key of 'hospital-b'",
    ),
    "not TOML": ({"unit": "patient"}, "'(file)': Expected TOML in consent.toml"),
}


def test_a_file_that_an_editor_marked_is_read(tmp_path: Path) -> None:
    """Windows' editors begin UTF-8 with a mark."""
    plain = consent_of(tmp_path)
    path = tmp_path / "consent.toml"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_consent(path) == plain


def test_an_explanation_says_that_a_consent_has_expired(tmp_path: Path) -> None:
    for expires, is_said in (("2020-01-01", True), ("2999-01-01", False)):
        consent = consent_of(tmp_path, expires=expires)
        words = ["privacy", "consent", "explain", str(tmp_path / "consent.toml")]
        shown = CliRunner().invoke(app, words)
        assert ("it has expired, on 2020-01-01" in shown.output) == is_said
        told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
        assert told["digest"] == consent.digest()
        assert "\n".join(told["sentences"]) in shown.output


@pytest.mark.parametrize("case", BAD)
def test_a_bad_clause_is_named(tmp_path: Path, case: str) -> None:
    changes, expected = BAD[case]
    with pytest.raises(ConsentError) as caught:
        consent_of(tmp_path, **changes)
    assert f"Consent clause {expected}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_an_error_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(ConsentError, match=r"readable absent.toml"):
        load_consent(tmp_path / "absent.toml")


def test_only_listed_tensors_may_be_trained(tmp_path: Path) -> None:
    consent = consent_of(tmp_path)
    assert consent.allows_trainable(["layers.0.q.lora_a", "layers.11.experts.lora_b"])
    assert not consent.allows_trainable(["layers.0.q.lora_a", "layers.0.router.weight"])
    assert not consent.allows_trainable(["layers.0.q.LORA_A"])


def test_expiry_is_inclusive(tmp_path: Path) -> None:
    consent = consent_of(tmp_path)
    consent.check_not_expired(date(2030, 12, 31))
    with pytest.raises(ConsentError, match="'expires': Expected a day until 2030-12-31") as caught:
        consent.check_not_expired(date(2031, 1, 1))
    assert caught.value.clause == "expires"


def test_the_explanation_says_every_figure_and_key(tmp_path: Path) -> None:
    text = "\n".join(explain(consent_of(tmp_path)))
    for phrase in ("epsilon 8 ", "delta 1e-06", "epsilon 3.5", "epsilon 12 ", "at least 3 members"):
        assert phrase in text
    for key in KEYS.values():
        assert fingerprint(bytes.fromhex(key)) in text
    assert "field 'patient'" in text
    assert "never leave it" in text
    assert "WARNING" not in text


def test_the_explanation_says_whose_protection_is_counted(tmp_path: Path) -> None:
    whole = " ".join(explain(consent_of(tmp_path, unit='"institution"')))
    assert "counted for this institution as a whole" in whole
    assert "That it takes part is known to all members" in whole
    assert "field" not in whole
    assert "counted for each record:" in " ".join(explain(consent_of(tmp_path, unit='"record"')))


def test_the_explanation_says_whether_data_sets_are_kept_apart(tmp_path: Path) -> None:
    assert "data sets apart" not in " ".join(explain(consent_of(tmp_path)))
    text = " ".join(explain(consent_of(tmp_path, keep_data_sets_apart="true")))
    assert "notes under which data set it first used each patient, and leaves it out" in text
    assert "a patient with two keys is two of them" in text


def test_the_explanation_says_how_releases_are_charged(tmp_path: Path) -> None:
    schedule = " ".join(explain(consent_of(tmp_path)))
    assert "all of a run is charged before its first release" in schedule
    assert "filter" not in schedule
    text = " ".join(explain(consent_of(tmp_path, accountant='"filter"')))
    assert "before its first release, and nothing is refunded" not in text
    for phrase in (
        "epsilon 3.5; a filter charges each release before it is made",
        "Only releases are charged",
        "may therefore stop at any time",
        "chosen after seeing the results",
        "The price: the filter adds up Rényi divergences",
    ):
        assert phrase in text


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"allow_unprotected_release": "true"}, "WARNING: runs without noise are allowed"),
        ({"allow_seeded_simulation": "true"}, "WARNING: seeded simulations are allowed"),
        ({"runtimes": '["flower"]'}, "WARNING: under Flower's own engines"),
    ],
)
def test_a_dangerous_permission_is_marked(
    tmp_path: Path, changes: dict[str, str], warning: str
) -> None:
    assert explain(consent_of(tmp_path, **changes))[-1].startswith(warning)
