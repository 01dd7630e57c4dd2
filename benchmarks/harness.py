"""What every benchmark shares: rows, paired timing, and `python -m benchmarks.NAME`.

A benchmark yields rows. A row holds our value beside a peer's (another system that does the same
job) and a limit's (what could not be beaten: the same job without the feature, the hardware's own
rate). Both ratios are unit-free:

    ratio_to_peer    above 1: ours is better, whatever the unit
    ratio_to_limit   1: at the limit; for costs above 1, for rates below 1
"""

import argparse
import dataclasses
import gc
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One measured number. Names and values of peer and limit are None where there is none."""

    metric: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio_to_peer: float | None = None
    limit: str | None = None
    limit_value: float | None = None
    ratio_to_limit: float | None = None
    context: Mapping[str, Any] = field(default_factory=dict)


def interleave(
    steps: Mapping[str, Callable[[], object]],
    repetitions: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Time the steps in turn, A B A B ..., after one untimed turn; seconds per repetition.

    Neighbours in time share the machine's state, so ratios of neighbours vary far less than
    ratios of two runs. The default clock counts CPU time of this process only.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repetitions + 1):
        for name, step in steps.items():
            begin = clock()
            step()
            if turn:
                seconds[name].append(clock() - begin)
    return seconds


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of the ratios of neighbouring repetitions."""
    return statistics.median(n / d for n, d in zip(numerators, denominators, strict=True))


def peak_mib(step: Callable[[], object], *, on_gpu: bool = False) -> float:
    """Largest sum of live tensors that one step allocated, MiB, after a step to warm up."""
    from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415

    if on_gpu:
        return _gpu_peak_mib(step)
    step()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    events = found.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    live = peak = 0
    for _, change in changes:
        live += change
        peak = max(peak, live)
    return peak / 2**20


def _gpu_peak_mib(step: Callable[[], object]) -> float:
    from torch import cuda  # noqa: PLC0415

    gc.collect()
    before = cuda.memory_allocated()  # what a step leaves for the next one counts
    step()
    gc.collect()
    cuda.synchronize()
    cuda.reset_peak_memory_stats()
    step()
    cuda.synchronize()
    return (cuda.max_memory_allocated() - before) / 2**20


def context(packages: Sequence[str], **details: Any) -> dict[str, Any]:
    """Versions of `packages`, the machine and the command, with `details` of the row."""
    return {
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "cpu": _cpu(),
        **_gpu(),
        "command": shlex.join(
            ["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]
        ),
        **details,
    }


def _gpu() -> dict[str, str]:
    from torch import cuda  # noqa: PLC0415

    return {"gpu": cuda.get_device_name()} if cuda.is_available() else {}


def main(run: Callable[[bool], Iterable[Row]], argv: Sequence[str] | None = None) -> None:
    """Run a benchmark: `--quick` ends inside a minute, `--json PATH` writes the rows."""
    parser = argparse.ArgumentParser(description=sys.modules[run.__module__].__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, inside a minute")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows to this file")
    options = parser.parse_args(argv)
    publish(list(run(options.quick)), options.json)


def publish(rows: Sequence[Row], path: Path | None) -> None:
    """Write the rows to a file, if one is named, and print them."""
    if path:
        listed = [dataclasses.asdict(row) for row in rows]
        path.write_text(json.dumps(listed, indent=1) + "\n")
    Console().print(table(rows))


def table(rows: Iterable[Row]) -> Table:
    """Lay the rows out for a terminal."""
    result = Table("metric", "value", "peer", "x peer", "limit", "x limit")
    for row in rows:
        result.add_row(
            row.metric,
            f"{row.value:.4g} {row.unit}",
            _named(row.peer, row.peer_value),
            "" if row.ratio_to_peer is None else f"{row.ratio_to_peer:.2f}",
            _named(row.limit, row.limit_value),
            "" if row.ratio_to_limit is None else f"{row.ratio_to_limit:.3f}",
        )
    return result


def _named(name: str | None, value: float | None) -> str:
    return "" if name is None else name if value is None else f"{value:.4g} {name}"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or "unknown"
