"""``python -m benchmarks.revisions --than v1``: this checkout beside another revision: SFT, GRPO or sampling.

The other revision is checked out into ``runs/revisions``. Both run in turn with the same packages.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from benchmarks import material, rows
from benchmarks.turns import ROOT, Result, compare, flags


def checkout(revision: str) -> Path:
    """A folder with ``revision``, made by ``git worktree`` once."""
    found = subprocess.run(
        ["git", "rev-parse", "--verify", f"{revision}^{{commit}}"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if found.returncode:
        raise SystemExit(f"--than {revision}: {found.stderr.strip()}")
    commit = found.stdout.strip()
    path = ROOT / "runs" / "revisions" / commit[:12]
    if not path.is_dir():
        command = ["git", "worktree", "add", "--quiet", "--detach", str(path), commit]
        subprocess.run(command, cwd=ROOT, check=True)
    return path


def main() -> None:
    """See the module."""
    parser = flags("this checkout beside another revision")
    parser.add_argument("--than", required=True, help="revision to compare with")
    parser.add_argument("--kind", default="sft", choices=["sft", "grpo", "sampler"])
    parser.add_argument("--batch", type=int, default=16, help="rows per optimiser step of SFT")
    rows.grpo_flags(parser, new=64)
    rows.sampler_flags(parser)
    rows.system_flag(parser)
    args = parser.parse_args()
    other = checkout(args.than)
    if args.kind == "grpo":
        job, _, about = rows.grpo_sides(args)
    elif args.kind == "sampler":
        job, about = rows.sampler_side(args)
    else:
        job, about = rows.sft_side(args)
    result: Result = compare(
        f"revisions-{args.kind}-{args.model}{material.system_suffix(args.system)}",
        "completion" if args.kind == "grpo" else "token", job, job,
        args=args, peer_name=other.name, root=other, about=about, target=0.97,
    )  # fmt: skip
    result.show(args.folder)


if __name__ == "__main__":
    main()
