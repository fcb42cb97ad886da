"""``python -m benchmarks.grpo --prompt 256``: completions a second of GRPO, beside TRL."""

from __future__ import annotations

from benchmarks.rows import grpo
from benchmarks.turns import flags

if __name__ == "__main__":
    parser = flags("GRPO beside TRL")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--prompts", type=int, default=8, help="prompts a batch")
    parser.add_argument("--group", type=int, default=8, help="completions a prompt")
    parser.add_argument("--new", type=int, default=128, help="new tokens at most")
    parser.add_argument("--peer-vllm", action="store_true", help="TRL samples with vLLM (one GPU)")
    args = parser.parse_args()
    grpo(args).show(args.folder)
