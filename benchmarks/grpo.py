"""``python -m benchmarks.grpo --prompt 256``: completions a second of GRPO, beside TRL."""

from __future__ import annotations

from benchmarks.rows import grpo, grpo_flags
from benchmarks.turns import flags

if __name__ == "__main__":
    parser = flags("GRPO beside TRL")
    grpo_flags(parser, new=128)
    parser.add_argument("--peer-vllm", action="store_true", help="TRL samples with vLLM (one GPU)")
    args = parser.parse_args()
    grpo(args).show(args.folder)
