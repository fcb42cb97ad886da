"""``python -m benchmarks.reward``: pairs a second of a reward model, beside TRL."""

from __future__ import annotations

from benchmarks.rows import train, training_flags

if __name__ == "__main__":
    parser = training_flags("reward")
    args = parser.parse_args()
    train("reward", args).show(args.folder)
