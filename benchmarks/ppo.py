"""``python -m benchmarks.ppo --critic shared``: episodes a second of PPO, beside TRL's last."""

from __future__ import annotations

from benchmarks.rows import ppo
from benchmarks.turns import flags

if __name__ == "__main__":
    parser = flags("PPO beside TRL")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--prompts", type=int, default=32, help="episodes a batch")
    parser.add_argument("--new", type=int, default=64, help="new tokens at most")
    parser.add_argument("--critic", default="separate", choices=["separate", "shared"])
    args = parser.parse_args()
    ppo(args).show(args.folder)
