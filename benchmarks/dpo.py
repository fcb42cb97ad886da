"""``python -m benchmarks.dpo``: pairs a second of DPO, beside TRL."""

from __future__ import annotations

from benchmarks.rows import PEERS, train
from benchmarks.turns import Absent, flags

if __name__ == "__main__":
    parser = flags("dpo beside TRL")
    parser.add_argument("--peer", default="random", choices=list(PEERS), help="TRL's setting")
    parser.add_argument("--batch", type=int, default=16, help="rows an optimiser step")
    parser.add_argument("--cached", action="store_true", help="reference log-probs known")
    args = parser.parse_args()
    try:
        train("dpo", args).show(args.folder)
    except Absent as why:
        raise SystemExit(str(why)) from None
