"""``python -m benchmarks.dpo``: pairs a second of DPO, beside TRL."""

from __future__ import annotations

from benchmarks.rows import train, training_flags

if __name__ == "__main__":
    parser = training_flags("dpo")
    parser.add_argument("--cached", action="store_true", help="reference log-probs known")
    args = parser.parse_args()
    train("dpo", args).show(args.folder)
