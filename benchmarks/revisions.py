"""``python -m benchmarks.revisions --than v1``: this checkout beside another revision, SFT or GRPO.

The other revision is checked out into ``runs/revisions``. Both run in turn with the same packages.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from benchmarks import material, rows
from benchmarks.turns import ROOT, Result, compare, flags, settings


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
    parser.add_argument("--kind", default="sft", choices=["sft", "grpo"])
    parser.add_argument("--batch", type=int, default=16, help="rows per optimiser step of SFT")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt of GRPO")
    parser.add_argument("--prompts", type=int, default=8, help="prompts per batch of GRPO")
    parser.add_argument("--group", type=int, default=8, help="completions per prompt")
    parser.add_argument("--new", type=int, default=64, help="new tokens at most")
    args = parser.parse_args()
    other = checkout(args.than)
    if args.kind == "grpo":
        job, _, about = rows.grpo_sides(args)
    else:
        job = settings(args)
        model = material.model_folder(Path(args.folder) / "material", args.model)
        vocabulary = int(model.name.rsplit("-", 1)[1])
        count = job["steps"] * args.batch
        data, about = material.demonstrations(Path(args.folder) / "material", vocabulary, count)
        job |= {
            "kind": "sft", "model": str(model), "data": str(data), "batch": args.batch,
            "job": "benchmarks.ours:Train",
        }  # fmt: skip
    result: Result = compare(
        f"revisions-{args.kind}-{args.model}", "token" if args.kind == "sft" else "completion", job, job,
        args=args, peer_name=other.name, root=other, about=about, target=0.97,
    )  # fmt: skip
    result.show(args.folder)


if __name__ == "__main__":
    main()
