"""``python -m benchmarks.bare``: SFT beside a loop written by hand on the same packs."""

from __future__ import annotations

from benchmarks.rows import bare
from benchmarks.turns import flags

if __name__ == "__main__":
    parser = flags("bare")
    parser.add_argument("--batch", type=int, default=16, help="rows an optimiser step")
    args = parser.parse_args()
    bare(args).show(args.folder)
