"""Every row, then the page: ``python -m benchmarks``, or ``make bench``.

``--quick`` gives each row two short turns; ``--page`` writes the page from what is already there.
A row whose peer is not installed is told and left out.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks import page
from benchmarks.turns import ROOT, flags

ROWS = (
    ["sft"], ["sft", "--peer", "grouped"], ["sft", "--peer", "bfd"],
    ["sft", "--peer", "defaults", "--dtype", "bfloat16"],
    ["sft", "--peer", "defaults", "--dtype", "bfloat16", "--checkpoint"], ["reward"],
    ["reward", "--peer", "grouped"], ["dpo"], ["dpo", "--peer", "grouped"], ["dpo", "--cached"],
    ["grpo", "--prompt", "64"], ["grpo", "--prompt", "256"], ["grpo", "--prompt", "1024", "--prompts", "2"],
    ["ppo"], ["ppo", "--critic", "shared"], ["sampler"], ["sampler", "--ragged"],
    ["sampler", "--peer", "vllm"], ["sampler", "--peer", "vllm", "--ragged"], ["bare"], ["bare", "--model", "25m"],
    ["precision", "--model", "25m"], ["plan"],
    ["sft", "--model", "smollm2-135m"], ["dpo", "--model", "smollm2-135m", "--batch", "4"],
    ["grpo", "--model", "smollm2-135m", "--prompts", "2"], ["sampler", "--model", "smollm2-135m", "--requests", "32"],
    ["sampler", "--model", "smollm2-135m", "--requests", "32", "--peer", "vllm"],
)  # fmt: skip
GROWTH = ("prompt", "group", "completion", "model", "vocabulary")


def main() -> None:
    """Run what is asked for."""
    parser = flags("every row, and docs/performance.md")
    parser.add_argument("--page", action="store_true", help="write the page and stop")
    parser.add_argument("--no-growth", action="store_true", help="leave the curves out")
    args, rest = parser.parse_known_args()
    passed = [a for a in sys.argv[1:] if a not in ("--page", "--no-growth", *rest)]
    runs = [] if args.page else list(ROWS)
    if not args.page and not args.no_growth:
        runs += [["growth", "--axis", axis] for axis in GROWTH]
        # Whether a longer group costs its completions alone; the peer would take an hour.
        runs += [["growth", "--axis", "group", "--prompt", "1024", "--ours-only", "--turns", "15"]]
    for row in runs:
        # A row's own flags come last and so win: the 25m row stays one.
        name, *own = row
        print(f"== {' '.join(row)}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *passed, *own], check=False)
    page.write(Path(args.folder) / "results", ROOT / "docs" / "performance.md")
    print("docs/performance.md")


if __name__ == "__main__":
    main()
