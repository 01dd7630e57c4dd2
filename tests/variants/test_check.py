"""The gate: an artefact that is right passes in every format; each way to be wrong is caught."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.tokenizer import Tokenizer
from models.variants import check
from models.variants.check import RUNTIME_KL, Checked, Source, failures, run_artefact
from models.variants.compare import Difference, compare, sample_rows
from models.variants.extras import VariantError
from models.variants.gguf_file import write_gguf
from models.variants.gguf_read import read_gguf
from models.variants.kinds import KINDS, Opening
from models.variants.plan import Plan, Target, Wanted, fitting_plans
from models.variants.probe import Probe, measure, package_joules, probe
from models.variants.runtime import Runtime
from tests.variants.models import TEXTS, decoder, tokenizer

pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")
pytest.importorskip("transformers")
SIZE = {"hidden": 256, "expert_hidden_size": 128}
SHAPE = {**SIZE, "initializer_range": 0.05}
MODEL = decoder("llama moe, stretched", **SHAPE)
WORDS = tokenizer()
SOURCE = Source(MODEL, MODEL, WORDS)
COST = Probe(10.0, 1, 1000, None)


@pytest.fixture(autouse=True)
def _no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed and memory have a test of their own."""
    monkeypatch.setattr(check, "probe", lambda *arguments: COST)


def plan_of(container: str, number_format: str) -> Plan:
    kind = next(name for name in KINDS if name == container)
    bits = next(b for b, f in KINDS[kind].number_formats.items() if number_format in f)
    plans = fitting_plans(MODEL.config, 4, WORDS, Wanted("edge", kind, bits))
    return next(plan for plan in plans if plan.number_format == number_format)


def made(folder: Path, plan: Plan, words: Tokenizer = WORDS) -> Path:
    KINDS[plan.container].write(MODEL, words, folder, plan.number_format, lambda *done: None)
    return folder


@pytest.mark.parametrize(
    ("container", "number_format"),
    [
        (name, each)
        for name, kind in KINDS.items()
        for f in kind.number_formats.values()
        for each in f
    ],
)
def test_a_right_artefact_passes(container: str, number_format: str, tmp_path: Path) -> None:
    plan = plan_of(container, number_format)
    found = run_artefact(plan, made(tmp_path / "a", plan), SOURCE, {"wards": TEXTS})
    assert failures(found, plan, Target()) == ()
    assert set(found.quality) == {"samples", "wards"}
    in_8_bits = container != "hf" and number_format not in ("f32", "f16", "bf16")
    assert set(found.rounding_kl) == ({"samples", "wards"} if in_8_bits else set())
    assert all(each.kl < 0.1 for each in found.quality.values())
    assert found.file_bytes <= plan.file_bytes


def test_weights_that_are_not_the_models_are_named(tmp_path: Path) -> None:
    plan = plan_of("gguf", "q8_0")
    folder = made(tmp_path / "a", plan)
    other = decoder("llama moe, stretched", **SHAPE)
    experts = other.get_submodule("blocks.1.experts.down").get_parameter("weight").data
    experts[[0, 1]] = experts[[1, 0]]  # an artefact with two experts in each other's place
    found = run_artefact(plan, folder, Source(other, other, WORDS), {})
    assert any("blk.1.ffn_down_exps" in each for each in failures(found, plan, Target()))


def test_a_constant_that_the_runtime_reads_otherwise_is_seen(tmp_path: Path) -> None:
    plan = plan_of("gguf", "f16")
    other = decoder("llama moe, stretched", **SHAPE, rope_theta=500.0)
    write_gguf(other, WORDS, made(tmp_path / "a", plan) / "model.gguf", "f16")
    found = run_artefact(plan, tmp_path / "a", SOURCE, {})
    assert found.coarse[0].startswith("rope_freqs")  # stretched for the other base
    assert any("from the stored weights'" in each for each in failures(found, plan, Target()))


def test_a_folder_with_another_constant_is_refused(tmp_path: Path) -> None:
    plan = plan_of("hf", "bf16")
    config = made(tmp_path / "a", plan) / "config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "rms_norm_eps": 1e-3}))
    with pytest.raises(VariantError, match="shape and constants"):
        run_artefact(plan, tmp_path / "a", SOURCE, {})


@pytest.mark.parametrize(("container", "number_format"), [("gguf", "q8_0"), ("hf", "bf16")])
def test_another_tokenizer_is_seen(container: str, number_format: str, tmp_path: Path) -> None:
    plan = plan_of(container, number_format)
    other = Tokenizer.train(["quite another text about other things"] * 3, 320)
    found = run_artefact(plan, made(tmp_path / "a", plan, other), SOURCE, {})
    assert any("token ids differ" in each for each in failures(found, plan, Target()))


@pytest.mark.parametrize("cut", [40, 5000, 600_000])
def test_a_damaged_file_does_not_pass(cut: int, tmp_path: Path) -> None:
    plan = plan_of("gguf", "q8_0")
    path = made(tmp_path / "a", plan) / "model.gguf"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(VariantError, match="GGUF file"):
        run_artefact(plan, tmp_path / "a", SOURCE, {})
    with pytest.raises(VariantError, match="GGUF file"):
        read_gguf(path, MODEL)


def test_flipped_bits_in_a_weight_are_seen(tmp_path: Path) -> None:
    plan = plan_of("gguf", "f32")
    path = made(tmp_path / "a", plan) / "model.gguf"
    data = bytearray(path.read_bytes())
    data[-2] ^= 0x40  # the last weight's exponent
    path.write_bytes(data)
    found = run_artefact(plan, tmp_path / "a", SOURCE, {})
    assert len(found.coarse) == 1


def checked(**values: object) -> Checked:
    good = Difference(10, 20.0, 20.0, (0.0,) * 10, 10, 0.0)
    figures = {"samples": good, "wards": good}
    return replace(Checked("r", (), (), figures, figures, 1000, COST), **values)  # type: ignore[arg-type]


def test_targets_are_kept_to_and_no_number_is_no_pass() -> None:
    plan = replace(plan_of("gguf", "q8_0"), file_bytes=1000)
    worse = {"wards": Difference(10, 21.0, 20.0, (0.0,) * 10, 10, 0.0)}
    broken = {"wards": Difference(10, float("nan"), 20.0, (float("nan"),), 0, float("nan"))}
    for found, target, said in (
        (checked(file_bytes=1001), Target(), "1,001 bytes, over 1,000"),
        (checked(file_bytes=900), Target(most_bytes=899), "over 899"),
        (checked(), Target(most_memory=999), "1,000 bytes in memory"),
        (checked(probe=Probe(1.0, 1, None, None)), Target(most_memory=10**9), "cannot be measured"),
        (checked(), Target(least_speed=10.5), r"10.0 tokens/s, under 10.5"),
        (checked(quality=worse), Target(most_loss_rise=0.09), "loss 0.1000"),
        (checked(quality=broken), Target(most_loss_rise=0.5), "loss nan"),
        (checked(fidelity=broken), Target(), "median KL nan"),
    ):
        (reason,) = failures(found, plan, target)
        assert said in reason
    kept = Target(1000, 1000, 10.0, 0.1)
    assert failures(checked(quality=worse), plan, kept) == ()


def apart(median: float, largest: float = 0.0, scale: float = 0.0) -> dict[str, Difference]:
    return {"wards": Difference(1, 2.0, 2.0, (median,), 1, largest, scale)}


@pytest.mark.parametrize(
    ("median", "rounding", "passes"),
    [
        (0.0009, 0.0, True), (0.0011, 0.0, False), (0.0059, 0.002, True), (0.0061, 0.002, False),
        (0.0011, float("nan"), False), (0.0011, float("inf"), False),
        (0.099, 1.0, True), (0.101, 1.0, False),
    ],
)  # fmt: skip
def test_a_runtime_may_differ_by_what_rounded_activations_cost(
    median: float, rounding: float, passes: bool
) -> None:
    found = checked(fidelity=apart(median), rounding_kl={"wards": rounding})
    plan = replace(plan_of("gguf", "q8_0"), file_bytes=1000)
    assert (failures(found, plan, Target()) == ()) is passes


@pytest.mark.parametrize(
    ("largest", "scale", "passes"),
    [(9e-5, 0.5, True), (2e-4, 0.5, False), (3.9e-3, 40.0, True), (4.1e-3, 40.0, False)],
)
def test_logits_in_fp32_may_differ_by_a_share_of_the_largest(
    largest: float, scale: float, passes: bool
) -> None:
    plan = replace(plan_of("hf", "bf16"), file_bytes=1000)
    found = checked(fidelity=apart(0.0, largest, scale))
    assert (failures(found, plan, Target()) == ()) is passes


SHARP = decoder("llama moe, stretched", **SIZE, initializer_range=0.3)


@pytest.mark.parametrize(
    ("container", "number_format"), [("gguf", "q8_0"), ("gguf", "q4_k_m"), ("onnx", "int8")]
)
def test_a_model_that_rounding_costs_much_passes(
    container: str, number_format: str, tmp_path: Path
) -> None:
    plan, kind = plan_of(container, number_format), KINDS[container]  # type: ignore[index]
    kind.write(SHARP, WORDS, tmp_path / "a", number_format, lambda *done: None)
    found = run_artefact(plan, tmp_path / "a", Source(SHARP, SHARP, WORDS), {"wards": TEXTS})
    assert max(each.median_kl for each in found.fidelity.values()) > RUNTIME_KL
    assert failures(found, plan, Target()) == ()


def test_what_rounding_costs_hides_no_other_constant(tmp_path: Path) -> None:
    plan = plan_of("gguf", "q8_0")
    other = decoder("llama moe, stretched", **SIZE, initializer_range=0.3, rope_theta=500.0)
    write_gguf(other, WORDS, made(tmp_path / "a", plan) / "model.gguf", "q8_0")
    found = run_artefact(plan, tmp_path / "a", Source(SHARP, SHARP, WORDS), {})
    assert any("median KL" in each for each in failures(found, plan, Target()))


class _Shifted:
    """The decoder itself with one logit moved; stands where a runtime stands."""

    name = "shifted"

    def logits(self, ids: list[int]) -> torch.Tensor:
        with torch.no_grad():
            found = MODEL(torch.tensor([ids]))[0]
        found[:, 0] += 1.5
        return found


def test_comparison_against_a_closed_form() -> None:
    rows = sample_rows(WORDS, 20)[:1]
    runtime: Runtime = _Shifted()  # type: ignore[assignment]
    found = compare(MODEL, runtime, {"x": rows})["x"]
    with torch.no_grad():
        p = MODEL(torch.tensor([rows[0].ids[:-1]]))[0].double().softmax(-1)
    # Adding c to logit 0 multiplies the sum by z = 1 + p_0 (e^c - 1): KL = ln z - p_0 c.
    log_z = (1 + p[:, 0] * (torch.e**1.5 - 1)).log()
    assert found.kl_T == pytest.approx((log_z - 1.5 * p[:, 0]).tolist(), rel=1e-5)
    target = torch.tensor(rows[0].ids[1:])
    rise = float((log_z - 1.5 * (target == 0)).sum())
    assert found.nats - found.model_nats == pytest.approx(rise, rel=1e-5)
    assert found.largest == pytest.approx(1.5, rel=1e-5)
    assert found.tokens == len(target)


def test_probe_decodes_as_the_decoder_does_and_measures(tmp_path: Path) -> None:
    plan = plan_of("gguf", "f32")
    folder = made(tmp_path / "a", plan)
    found = measure("gguf", folder, 64, WORDS.begin_of_text_id)
    assert found.tokens_per_s > 0
    assert found.resident_bytes is None or found.resident_bytes >= 0
    opening = Opening(64, WORDS.begin_of_text_id, exact=True, every_logit=False)
    runtime = KINDS["gguf"].open(folder, opening)
    ids = [WORDS.begin_of_text_id]
    with torch.no_grad():
        for _ in range(5):
            ids.append(int(MODEL(torch.tensor([ids]))[0, -1].argmax()))
    assert runtime.decode(ids[:1], 5) == ids[1:]
    runtime.close()


def test_a_runtime_that_faults_ends_its_own_process_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a llama.cpp does that GCC 12 built for AMX."""
    folder = made(tmp_path / "a", plan_of("gguf", "f32"))
    begin = WORDS.begin_of_text_id
    assert probe("gguf", folder, 64, begin).tokens_per_s > 0
    faulty = "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
    (tmp_path / "sitecustomize.py").write_text(faulty)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(VariantError, match=r"llama_cpp to run.*SIGILL.*GGML_NATIVE=OFF"):
        probe("gguf", folder, 64, begin)
    ends = "import os; os.write(2, b'no room'); os._exit(1)"
    (tmp_path / "sitecustomize.py").write_text(ends)
    with pytest.raises(VariantError, match=r"exit status 1 \(no room\)"):
        probe("gguf", folder, 64, begin)


def test_what_faults_there_is_not_run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of("gguf", "f32")
    folder = made(tmp_path / "a", plan)

    def faults(*arguments: object) -> Probe:
        raise VariantError("SIGILL")

    monkeypatch.setattr(check, "probe", faults)
    monkeypatch.setattr(KINDS["gguf"], "open", lambda *arguments: pytest.fail("it was opened here"))
    with pytest.raises(VariantError, match="SIGILL"):
        run_artefact(plan, folder, SOURCE, {})


def test_energy_is_read_where_the_system_tells(tmp_path: Path) -> None:
    assert package_joules(tmp_path) is None
    for number, joules in ((0, 3), (1, 4)):
        package = tmp_path / f"intel-rapl:{number}"
        package.mkdir()
        (package / "energy_uj").write_text(f"{joules}000000\n")
    assert package_joules(tmp_path) == 7.0
