"""``python -m benchmarks.sampler --ragged``: new tokens a second, beside ``generate`` or vLLM."""

from __future__ import annotations

from benchmarks.rows import sampler, sampler_flags, system_flag
from benchmarks.turns import flags

if __name__ == "__main__":
    parser = flags("the sampler beside others")
    parser.add_argument("--peer", default="generate", choices=["generate", "vllm"])
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--group", type=int, default=1, help="completions a prompt")
    parser.add_argument("--new", type=int, default=64, help="new tokens")
    sampler_flags(parser)
    system_flag(parser)
    args = parser.parse_args()
    sampler(args).show(args.folder)
