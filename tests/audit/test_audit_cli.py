"""`arion privacy audit` and `plant`: what they take, write and refuse."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import client.release
from arion.audit_report import write_page
from arion.privacy_cli import privacy_app
from privacy.dp.lattice import encode

RUN = (
    '[training]\nrounds = 2\nkind = "lora"\nlora_rank = 1\nexpected_batch = 500.0\n'
    "[privacy]\nepsilon = 1.0\n"
)


def cli(*arguments: object) -> tuple[int, str]:
    found = CliRunner().invoke(privacy_app, [str(each) for each in arguments])
    return found.exit_code, found.output


def audit_run(folder: Path, *more: object) -> tuple[int, str]:
    run = folder / "run.toml"
    run.write_text(RUN)
    return cli(
        "audit", run, "--nodes", 5, "--units-per-node", 100, "--canaries", 2000,
        "--text-canaries", 40, "--seed", 1, *more,
    )  # fmt: skip


def test_claim_and_bounds_stand_side_by_side(tmp_path: Path) -> None:
    code, out = audit_run(tmp_path, "--json", "--out", tmp_path / "audit.json")
    found = json.loads(out[out.index("{") :])
    assert code == 0
    assert (found["refuted"], found["verdict"]) == (False, "not refuted")
    assert [each["attack"] for each in found["canaries"]] == ["mechanism", "gradient", "loss"]
    assert [each["canaries"] for each in found["canaries"]] == [2000, 40, 40]
    assert 0 <= found["bound"] < found["claim"]["epsilon"] <= 1.0
    assert json.loads((tmp_path / "audit.json").read_text()) == found


def test_text_canaries_can_be_left_out_and_the_rest_gets_all_the_confidence(
    tmp_path: Path,
) -> None:
    alone = audit_run(tmp_path, "--text-canaries", 0, "--json")[1]
    (bound,) = json.loads(alone[alone.index("{") :])["canaries"]
    every = audit_run(tmp_path, "--json")[1]
    first, *_ = json.loads(every[every.index("{") :])["canaries"]
    assert first["most_it_can_show"] < bound["most_it_can_show"]


def test_a_refuted_claim_is_loud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        client.release,
        "encode",
        lambda x, step, source: encode(25 * x, step, source),  # as if nothing were clipped
    )
    code, out = audit_run(
        tmp_path, "--html", tmp_path / "audit.html", "--out", tmp_path / "audit.json"
    )
    assert code == 3
    assert "REFUTED: an attack shows more than is claimed. Release nothing of it." in out
    page = (tmp_path / "audit.html").read_text()
    assert "<strong>REFUTED.</strong>" in page
    assert "Release nothing" in page
    assert "Not refuted" not in page
    report = json.loads((tmp_path / "audit.json").read_text())
    assert (report["refuted"], report["verdict"]) == (True, "REFUTED")
    assert report["bound"] > report["claim"]["epsilon"]


def test_a_page_holds_all_it_shows_and_escapes_names(tmp_path: Path) -> None:
    report = {
        "kind": "audit", "title": "Audit of <b>x</b>", "version": "1", "created": "now",
        "verdict": "nothing claimed", "refuted": False, "claim": None, "bound": None,
        "noise": "seeded, not private",
        "confidence": 0.95, "seed": None, "canaries": [], "secrets": [],
        "membership": [{"name": "<script>", "members": 3, "non_members": 3, "attacks": [
            {"attack": "loss", "auc": {"value": 0.5, "low": 0.1, "high": 0.9},
             "tpr_at_fpr": [{"measurable": False, "non_members_needed": 1000}] * 2,
             "roc": [[0.0, 0.0], [1.0, 1.0]]}]}],
    }  # fmt: skip
    write_page(report, tmp_path / "audit.html")
    page = (tmp_path / "audit.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "not measurable: needs 1,000 others" in page
    assert "Nothing is claimed." in page
    assert "The run itself protects nobody." in page
    assert 'id="canaries"' not in page


@pytest.fixture
def records(learned, tmp_path: Path) -> dict[str, Path]:
    found = {}
    for name, texts in (("members", learned.members), ("others", learned.others)):
        found[name] = tmp_path / f"{name}.jsonl"
        found[name].write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found["secrets"] = tmp_path / "secrets.json"
    found["secrets"].write_text(json.dumps([each.model_dump() for each in learned.planted]))
    return found


def test_a_model_folder_is_attacked_with_given_records(learned, records, tmp_path: Path) -> None:
    code, out = cli(
        "audit", learned.after, "--members", records["members"], "--nonmembers",
        records["others"], "--reference", learned.before, "--secrets", records["secrets"],
        "--tries", 200, "--html", tmp_path / "audit.html", "--out", tmp_path / "audit.json",
    )  # fmt: skip
    assert code == 0
    assert "Nothing is claimed" in out
    assert "TPR at 0.1% FPR not measurable: needs 1,000 others" in out
    report = (tmp_path / "audit.json").read_text()
    found = json.loads(report)
    (institution,) = found["membership"]
    assert {each["attack"]: each["auc"]["low"] > 0.6 for each in institution["attacks"]} == {
        "loss": True,
        "rmia": True,
    }
    assert {each["was_trained_on"] for each in found["secrets"]} == {True}
    for each in learned.planted:  # and no report shows a secret
        assert all(each.secret not in text for text in (out, report))
        assert each.secret not in (tmp_path / "audit.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{run}",), "no --units-per-node"),
        (("{run}", "--units-per-node", "5", "--nodes", "5", "--members", "x"), "without --members"),
        (("{run}", "--units-per-node", "5", "--nodes", "5", "--confidence", "1"), "confidence"),
        (("{model}",), "A model alone shows nothing"),
        (("{model}", "--members", "{members}"), "Give both"),
        (("{model}", "--members", "{members}", "--nonmembers", "{members}"), "Remove them"),
        (("{model}", "--nodes", "3", "--secrets", "x"), "without --nodes"),
        (("{model}", "--secrets", "x", "--html", "{tmp}/no/a.html"), "Expected a file in a folder"),
        (("{tmp}",), "Expected a RUN.toml, the folder"),
        (("{tmp}/none",), "Expected a RUN.toml, the folder"),
    ],
)
def test_a_mistake_is_one_line(
    learned, records, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "run.toml").write_text(RUN)
    places = {"run": tmp_path / "run.toml", "model": learned.after, "tmp": tmp_path, **records}
    code, out = cli("audit", *(each.format(**places) for each in arguments))
    assert code == 2
    assert message in out
    assert out.startswith("error: ")
    assert out.count("\n") == 1


def test_secrets_are_planted_beside_a_shard(records, tmp_path: Path) -> None:
    shard = records["members"].read_bytes()
    inside = cli("plant", records["members"].parent, "--out", records["members"].parent / "x")
    assert (inside[0], "outside of the shard" in inside[1]) == (2, True)
    arguments = ("plant", records["members"], "--out", tmp_path / "canaries", "--count", 5)
    code, _ = cli(*arguments, "--repeats", 3)
    assert code == 0
    lines = (tmp_path / "canaries" / "canaries.jsonl").read_text().splitlines()
    assert (len(lines), len(set(lines))) == (15, 5)
    assert records["members"].read_bytes() == shard
    assert len(json.loads((tmp_path / "canaries" / "secrets.json").read_text())) == 5
    assert cli(*arguments)[0] == 2
