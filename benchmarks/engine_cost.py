"""``python -m benchmarks.engine_cost``: what the engine protocol and the ledger cost of a GRPO step.

Seconds in the protocol around the native sampler and in the ledger, without the sampler and the rewards
that they call, as a share of a step; at ``rollout.max_staleness`` 0 (without a ledger), 1 and 4.
"""

from __future__ import annotations

from statistics import median

from benchmarks.ours import Online
from benchmarks.rows import grpo_flags, grpo_sides
from benchmarks.side import Phases
from benchmarks.turns import flags
from trimtab.rollout import collector
from trimtab.rollout.ahead import Ahead
from trimtab.train.ahead_source import StageSource

STALENESS = (0, 1, 4)
LIMIT = 0.02
OWN = ("protocol", "ledger")


def main() -> None:
    """See the module."""
    parser = flags("cost of the engine protocol and the ledger")
    grpo_flags(parser, new=64)
    args = parser.parse_args()
    spec, _, about = grpo_sides(args)
    import torch

    torch.set_num_threads(args.threads)
    phases = Phases(sync=lambda: None)
    phases.wrap(collector, "generate", "protocol")
    phases.wrap(Ahead, "take", "ledger")
    for name in ("collect", "prompt", "sync"):
        phases.wrap(StageSource, name, "ledger")
    phases.wrap(StageSource, "score", "rewards")
    print(
        f"{args.model}, {about}, {args.threads} threads, {args.turns} passes of {args.steps} steps"
    )
    print(
        "| max_staleness | protocol | ledger | sum (median of passes) | target |\n|---|---|---|---|---|"
    )
    for staleness in STALENESS:
        job = Online(spec | {"more": {"rollout": {"max_staleness": staleness}}}, phases)
        job.run()  # the first pass allocates
        shares: dict[str, list[float]] = {name: [] for name in (*OWN, "sum")}
        for _ in range(args.turns):
            phases.start()
            job.run()
            phases.stop()
            total = sum(phases.seconds.values())
            own = {name: phases.seconds.get(name, 0.0) / total for name in OWN}
            for name, share in (own | {"sum": sum(own.values())}).items():
                shares[name].append(share)
        cells = [f"{100 * median(shares[name]):.2f} %" for name in (*OWN, "sum")]
        print(f"| {staleness} | {' | '.join(cells)} | {100 * LIMIT:.0f} % |", flush=True)


if __name__ == "__main__":
    main()
