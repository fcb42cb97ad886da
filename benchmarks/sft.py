"""``python -m benchmarks.sft``: real tokens a second of SFT, beside TRL."""

from __future__ import annotations

from benchmarks.rows import train, training_flags

if __name__ == "__main__":
    parser = training_flags("sft")
    args = parser.parse_args()
    train("sft", args).show(args.folder)
