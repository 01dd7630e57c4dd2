"""Memory of a node and of a run's driver, as processes over the service, beside what is said of it.

Three nodes train for real, in padded draws, and one of them is looked at. The limit is what
`arion run plan` says beforehand (`models.footprint`), so a ratio of 1 is a true word, and one above
it a process that takes more.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Row, context, main
from benchmarks.round_ours import RUN, SIZES, build, enrol
from benchmarks.transport import Party
from client.doctor import RUNTIME
from coordinator.service.home import ServiceHome, ServiceSettings
from coordinator.settings import load_settings, save_settings
from coordinator.shared import RUNS_FOLDER
from models.folders import shape_of
from models.footprint import driver_bytes, node_bytes
from models.training_settings import Recipe

NODES, ROUNDS = 3, 2
MODELS = {
    "6M": {"hidden_size": 256, "layers": 6, "expert_hidden_size": 280},
    "26M": SIZES[100],
    "135M, dense": {
        "vocab_size": 49152, "hidden_size": 576, "layers": 30, "heads": 9, "kv_heads": 3,
        "head_dim": 64, "experts": 1, "experts_per_token": 1, "expert_hidden_size": 1536,
    },
}  # fmt: skip
CASES = [
    (name, kind, length)
    for name in MODELS
    for kind, length in (("full", 64), ("lora", 128), ("full", 256))
]
MB = 1e6


def run(quick: bool) -> Iterator[Row]:
    """Yield two rows for each model and recipe: a node's and the driver's."""
    for name, kind, length in CASES[:2] if quick else CASES:
        recipe = Recipe.model_validate({"kind": kind, "sequence_length": length})
        with tempfile.TemporaryDirectory() as folder:
            taken, base = _carry_out(Path(folder), MODELS[name], recipe)
            shape = shape_of(base)
            said = {"node": node_bytes(shape, recipe), "driver": driver_bytes(shape, recipe)}
        for who, size in taken.items():
            yield Row(
                f"memory of a {who}, {name}, {kind}, {length} tokens", size / MB, "MB",
                limit="said beforehand", limit_value=said[who] / MB,
                ratio_to_limit=size / said[who], context=context(["torch", "grpcio"]),
            )  # fmt: skip


def _carry_out(folder: Path, size: dict[str, int], recipe: Recipe) -> tuple[dict[str, float], Path]:
    """Train; return the largest sizes of a node and the driver, bytes, and where the base is."""
    place = folder / "service"
    settings = ServiceSettings(
        federation="benchmark", hosts=("localhost",), port=0, enrolment_port=0
    )
    home = ServiceHome.create(place, settings)
    service = Party("receivers", "serve", place)
    homes = build(folder, size, NODES, ROUNDS, recipe=recipe, pad_draws=True)
    enrol(home, homes.nodes, (int(service.first[0]), int(service.first[1])))
    home.close()
    (place / RUNS_FOLDER / RUN).mkdir(parents=True)
    new = {"coordinator": Path("../.."), "runtime": RUNTIME}
    save_settings(
        place / RUNS_FOLDER / RUN, load_settings(homes.coordinator).model_copy(update=new)
    )
    command = [sys.executable, "-m", "arion", "node", "run"]
    nodes = [
        subprocess.Popen([*command, str(node)], stderr=subprocess.DEVNULL)
        for node in homes.nodes.values()
    ]
    drive = [sys.executable, "-m", "benchmarks.round_ours", "drive", str(place), RUN]
    done = subprocess.run(drive, stdout=subprocess.PIPE, text=True, check=True)
    taken = {"node": _largest(nodes[0].pid), "driver": float(done.stdout.split()[-1]) * MB}
    for node in nodes:
        node.terminate()
        node.wait(60)
    service.close()
    return taken, folder / "base"


def _largest(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main(run)
