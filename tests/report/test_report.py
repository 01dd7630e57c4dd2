import json
import re
from pathlib import Path
from typing import Any

import pytest

from arion.page import number
from arion.report import comparison_table, write_chart, write_report
from arion.report_values import ARMS

SECTIONS = {
    "loss": ("loss_per_round", "loss_by_institution_per_round"),
    "privacy": ("epsilon", "epsilon_per_round"),
    "presence": ("attempts",),
    "routing": ("routing",),
    "institutions": ("institutions",),
    "mechanism": ("mechanism",),
    "model": ("model",),
    "ledger": ("ledger",),
}
REQUIRED = {"kind", "arms", "rounds", "seconds"}
ALERT = '<script>alert("x")</script>'


def page(report: dict[str, Any], folder: Path) -> str:
    path = folder / "report.html"
    write_report(report, path)
    return path.read_text(encoding="utf-8")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arion.charts.render", lambda *_, **__: "<svg></svg>")


def has_section(html: str, key: str) -> bool:
    return f'<section id="{key}">' in html


def test_a_full_simulation_shows_every_section(simulation: dict[str, Any], tmp_path: Path) -> None:
    html = page(simulation, tmp_path)

    assert all(has_section(html, key) for key in (*SECTIONS, "results", "traffic", "time"))
    assert html.count("<svg ") == 7
    assert html.count("<svg ") == html.count("<figcaption>") == html.count("<details")
    assert html.count('role="img" aria-label="') == 7
    assert "arion privacy ledger verify DIR" in html


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("section", "keys"), SECTIONS.items())
def test_a_section_without_numbers_is_left_out(
    simulation: dict[str, Any], tmp_path: Path, section: str, keys: tuple[str, ...]
) -> None:
    partial = {key: value for key, value in simulation.items() if key not in keys}

    html = page(partial, tmp_path)

    assert not has_section(html, section)
    assert has_section(html, "time")


def test_no_optional_key_is_needed(
    simulation: dict[str, Any], comparison: dict[str, Any], tmp_path: Path
) -> None:
    for report in (simulation, comparison):
        page({key: report[key] for key in REQUIRED}, tmp_path)
        page({key: report[key] for key in REQUIRED} | {"arms": {}}, tmp_path)


def test_empty_values_are_as_missing(simulation: dict[str, Any], tmp_path: Path) -> None:
    empty = {
        key: type(value)() if isinstance(value, (dict, list)) else value
        for key, value in simulation.items()
    }

    assert "<section" not in page(empty, tmp_path)


def test_the_page_loads_nothing(
    simulation: dict[str, Any], comparison: dict[str, Any], tmp_path: Path
) -> None:
    for report in (simulation, comparison):
        html = re.sub(r'xmlns(:xlink)?="[^"]*"', "", page(report, tmp_path))

        assert "http" not in html
        assert "<script" not in html
        assert not re.search(r'(src|href)="(?!#)|@import|url\((?!#)', html)


def test_a_chart_of_its_own_is_complete(comparison: dict[str, Any], tmp_path: Path) -> None:
    write_chart(comparison, tmp_path / "arms.svg")

    svg = (tmp_path / "arms.svg").read_text(encoding="utf-8")
    assert svg.startswith("<svg ")
    assert "var(--" not in svg
    assert re.findall(r"https?://[^\"]*", svg) == [
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    ]
    assert all(f">{name}<" in svg for name in ("adler", "iris", "base", "federated DP"))


def test_a_simulation_has_no_chart_of_arms(simulation: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Expected the report of a comparison, got a simulation"):
        write_chart(simulation, tmp_path / "arms.svg")


def test_names_are_text_and_never_markup(simulation: dict[str, Any], tmp_path: Path) -> None:
    hostile = json.dumps(simulation).replace('"adler"', json.dumps(ALERT))
    report = json.loads(hostile) | {"title": ALERT, "version": ALERT, "created": ALERT}
    report["attempts"][0]["refusals"] = {ALERT: [ALERT, ALERT]}

    html = page(report, tmp_path)

    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 10


def test_a_name_with_math_signs_is_drawn_as_it_is(
    simulation: dict[str, Any], tmp_path: Path
) -> None:
    html = page(json.loads(json.dumps(simulation).replace("adler", r"$\\bad{$")), tmp_path)

    assert r">$\bad{$</text>" in html


def test_equal_reports_give_equal_bytes(
    simulation: dict[str, Any], comparison: dict[str, Any], tmp_path: Path
) -> None:
    assert page(simulation, tmp_path) == page(json.loads(json.dumps(simulation)), tmp_path)
    assert page(comparison, tmp_path) == page(json.loads(json.dumps(comparison)), tmp_path)


def test_the_charts_of_a_page_share_no_identifier(
    simulation: dict[str, Any], tmp_path: Path
) -> None:
    ids = re.findall(r' id="([^"]*)"', page(simulation, tmp_path))

    assert len(ids) == len(set(ids))


def test_every_institution_and_arm_is_named(comparison: dict[str, Any], tmp_path: Path) -> None:
    html = page(comparison, tmp_path)

    for institution in comparison["institutions"]:
        assert f'<th scope="row" class="text">{institution["name"]}</th>' in html
        assert institution["label"] in html
    for arm in comparison["arms"]:
        assert f">{arm.replace('_dp', ' DP')}</th>" in html
        assert f">{arm.replace('_dp', ' DP')}</text>" in html


@pytest.mark.usefixtures("undrawn")
def test_the_tables_hold_the_numbers_of_the_report(
    comparison: dict[str, Any], tmp_path: Path
) -> None:
    html = page(comparison, tmp_path)

    for arm in comparison["arms"].values():
        for key, loss in arm["heldout_loss"].items():
            assert f"<td>{loss:.3f} ± {arm['heldout_loss_sd'][key]:.3f}</td>" in html
    assert "<td>1.934</td>" in html
    assert "5,204,992" in html
    assert '<td class="text">1.1237</td>' in html


@pytest.mark.usefixtures("undrawn")
def test_the_rounds_tables_hold_the_numbers_of_the_report(
    simulation: dict[str, Any], tmp_path: Path
) -> None:
    html = page(simulation, tmp_path)

    fifth = [at for at in simulation["attempts"] if at["round"] == 5]
    sent, received = (
        sum(at[key] for at in fifth) / 1e6 for key in ("sent_bytes", "received_bytes")
    )
    assert len(fifth) == 2
    assert f">5</th><td>{sent:.2f}</td><td>{received:.2f}</td>" in html
    losses = [values[20] for values in simulation["loss_by_institution_per_round"].values()]
    cells = "".join(f"<td>{loss:.3f}</td>" for loss in (simulation["loss_per_round"][19], *losses))
    assert f">20</th>{cells}" in html


def test_the_markdown_table_holds_every_loss(comparison: dict[str, Any]) -> None:
    heading, rule, *rows = comparison_table(comparison).splitlines()
    columns = [cell.strip() for cell in heading.strip("|").split("|")][1:]

    assert columns == [
        "mean",
        "unseen",
        *["adler", "birch", "cedar", "dogwood", "elm", "fir", "gorse"],
        "hazel",
        "iris",
    ]
    assert rule.count("---") == 12
    assert [row.split(" | ")[0].strip("| ") for row in rows] == list(ARMS)
    for row in rows:
        arm, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        result = comparison["arms"][arm]
        for column, cell in zip(columns, cells, strict=True):
            loss, sd = result["heldout_loss"][column], result["heldout_loss_sd"][column]
            assert cell == f"{loss:.3f} ± {sd:.3f}"


def test_one_seed_has_no_deviation(simulation: dict[str, Any]) -> None:
    assert "±" not in comparison_table(simulation)
    assert "unseen" not in comparison_table(simulation)


def test_a_pipe_in_a_name_does_not_break_the_markdown_table(simulation: dict[str, Any]) -> None:
    simulation["arms"]["federated_dp"]["heldout_loss"]["a|b"] = 1.5

    assert r" a\|b |" in comparison_table(simulation).splitlines()[0]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("noise", "said"),
    [
        ("seeded, not private", "Seeded, not private: this run protects nobody."),
        ("none", "Not private."),
        (None, "Take this run as not private."),
        ("csprng", "What this protects."),
    ],
)
def test_the_page_says_what_its_noise_protects(
    simulation: dict[str, Any], tmp_path: Path, noise: str | None, said: str
) -> None:
    simulation["noise"] = noise

    html = page(simulation, tmp_path)

    assert f"<strong>{said}</strong>" in html
    assert ("notice good" in html) == (noise == "csprng")
    assert ("protect nobody" in html) == (noise != "csprng")


@pytest.mark.usefixtures("undrawn")
def test_an_institution_without_epsilon_is_called_out(
    simulation: dict[str, Any], tmp_path: Path
) -> None:
    simulation["noise"] = "csprng"
    simulation["epsilon"]["elm"] = None

    html = page(simulation, tmp_path)

    assert "No ε holds for elm." in html
    assert "notice good" not in html


def test_refusals_and_aborts_are_told(simulation: dict[str, Any], tmp_path: Path) -> None:
    html = page(simulation, tmp_path)

    assert "cedar: plan.epsilon (asks for more than 2.0)" in html
    assert "too_few_survivors" in html
    for state in ("in the sum", "dropped out", "refused", "attempt aborted"):
        assert f">{state}</text>" in html


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (True, "True"),
        (1_234_567, "1,234,567"),
        (12345.6, "12,346"),
        (0.0625, "0.0625"),
        (1e-5, "1e-5"),
        ([1, 2.5], "1, 2.5"),
        ({"a": 1}, "a 1"),
    ],
)
def test_numbers_are_written_for_people(value: object, text: str) -> None:
    assert number(value) == text
