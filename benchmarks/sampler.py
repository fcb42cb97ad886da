"""``python -m benchmarks.sampler --ragged``: new tokens a second, beside ``generate`` or vLLM."""

from __future__ import annotations

from benchmarks.rows import sampler
from benchmarks.turns import flags

if __name__ == "__main__":
    parser = flags("the sampler beside others")
    parser.add_argument("--peer", default="generate", choices=["generate", "vllm"])
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--requests", type=int, default=128, help="prompts")
    parser.add_argument("--group", type=int, default=1, help="completions a prompt")
    parser.add_argument("--new", type=int, default=64, help="new tokens")
    parser.add_argument("--ragged", action="store_true", help="8 to 256 new tokens instead")
    parser.add_argument("--slots", type=int, default=128, help="rows decoded at once")
    args = parser.parse_args()
    sampler(args).show(args.folder)
