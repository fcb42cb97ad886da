"""``python -m benchmarks.precision``: SFT in mixed precision beside SFT in fp32, both ours."""

from __future__ import annotations

from benchmarks.rows import precision
from benchmarks.turns import flags

if __name__ == "__main__":
    parser = flags("precision")
    parser.add_argument("--batch", type=int, default=16, help="rows an optimiser step")
    args = parser.parse_args()
    precision(args).show(args.folder)
