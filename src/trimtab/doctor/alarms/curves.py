"""Alarms that read curves alone (T0): 2, 3, 7, 11, 12, 13, 14, 17."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from trimtab.doctor.alarm import Found, held_kl, paid
from trimtab.doctor.evidence import Evidence, Rollout, Unchecked, edge
from trimtab.stats.change import onset, slope, two_means, two_rates
from trimtab.stats.uncertainty import wilson

KL_TARGET = 6.0
"""Nats an answer, where the run names no target of its own (1909.08593)."""


def kl_target(e: Evidence) -> float:
    """The run's target of KL, nats an answer, or the upper end of its range; else ``KL_TARGET``."""
    kl = e.key("method.kl", {})
    return (
        float(kl.get("target") or kl.get("high") or KL_TARGET)
        if isinstance(kl, dict)
        else KL_TARGET
    )


def _unit(e: Evidence) -> float:
    """What a reward difference is measured in: the spread of rewards at the start."""
    _, std = e.series("reward/std")
    held = [r.reward for r in e.rollouts if r.reward is not None]
    unit = edge(std, last=False) if len(std) else float(np.std(held)) if held else 1.0
    return unit if unit > 1e-9 else 1.0


def runaway(e: Evidence) -> Found | None:
    """KL above three times its target, while a nat buys ever less reward, or costs some: a wrecked policy."""
    x, kl = e.want("objective/kl")
    _, reward = e.want("reward/mean")
    limit = 3 * kl_target(e)
    n = min(len(kl), len(reward))
    kl, reward, x = kl[-n:], reward[-n:], x[-n:]
    crossed = onset(x, kl > limit, 2)
    if crossed is None:
        return None
    at = int(np.searchsorted(x, crossed))
    unit = _unit(e)
    late = edge(kl, last=True)
    stretch = max(1, at // 5)
    means = np.convolve(reward[: max(1, at)], np.ones(stretch) / stretch, mode="valid")
    lost = (float(means.max()) - edge(reward, True)) / unit
    before = (float(reward[: at + 1].max()) - edge(reward[: at + 1], False, 0.3)) / unit
    after = (edge(reward, True) - float(reward[max(0, at - 1) : at + 2].mean())) / unit
    rate = before / max(float(kl[at] - kl[0]), 1e-6)
    later = after / max(float(kl[at:].max() - limit), 1.0)
    if lost <= 0.5 and (late <= limit or (later > 0.5 * rate and later > 0.02)):
        return None
    beta = e.key("method.kl.beta", 0.0)
    lr = e.key("optim.lr", 0.0)
    return Found(
        f"KL to the reference went to {kl.max():.1f} nats an answer ({late:.1f} at the end), over three times the "
        f"target of {limit / 3:g}; "
        + (f"the reward has lost {lost:.1f} standard deviations against the best before: the policy is wrecked." if lost > 0.5 else
           f"since it passed {limit:g} each nat has bought {later:+.3f} standard deviations of reward, before {rate:+.3f}."),
        float(kl.max()), limit, "T0",
        f"the hold on KL is too weak for this learning rate (beta {beta:g}, lr {lr:g})",
        "Hold KL to a target, lower the learning rate, and start again from before the limit was passed.",
        f"{held_kl(e, limit / 3, max(10 * beta, 0.02))}\noptim: {{lr: {lr / 5:g}}}",
        crossed,
        ("the reward pays for text that the reference never writes",),
        [r for r in reversed(e.rollouts) if r.kl is not None and r.kl > limit],
        note=_kl_note,
    )  # fmt: skip


def _kl_note(r: Rollout) -> str:
    return f"KL {r.kl:.1f} nats, reward {r.reward:.3g}" if r.kl and r.reward is not None else ""


NIL = 0.005
"""Nats. A policy this near moves no mean reward by more than a tenth of its spread: |gain| <= s sqrt(2 KL)."""
WEAK = 0.25
"""Spread of the reward over beta: what the best policy under the penalty gains, in spreads."""


def frozen(e: Evidence) -> Found | None:
    """No reward gained, as the penalty forbids it or the steps are nil; answers still differ in reward."""
    x, reward = e.want("reward/mean")
    kx, kl = e.want("objective/kl")
    # Of one answer; a longer one goes as far by noise alone.
    _, length = e.series("completion/length")
    limit = max(0.3, 0.01 * edge(length, last=True)) if len(length) else 0.3
    moved = edge(kl, last=True, share=0.34)
    _, low, high = slope(x, reward, 0.99)
    if moved > limit or not low <= 0 <= high:
        return None
    beta, std = _penalty(e)
    held = beta * WEAK > std
    # KL grows with the square of the steps at most: a slow policy, or one at its start, gets somewhere.
    still = moved * max(1.0, e.total / float(kx[-1])) ** 2 < NIL
    if not held and not still:
        return None
    _, uniform = e.series("group/uniform")
    differ = edge(e.series("reward/std")[1], last=True) if e.has("reward/std") else 1.0
    if differ < 1e-6 or (len(uniform) and edge(uniform, last=True) > 0.5):
        return None  # nothing to learn from: alarms 13 and 14
    if not _relative(e) and _passed(e) > 0.9:
        return None  # at its best already
    lr = float(e.key("optim.lr", 0.0))
    if held:
        cause = (
            f"beta {beta:g} is too high: the best policy that it allows gains {std / beta:.2g} standard "
            "deviations of reward"
        )
        change = f"method: {{kl: {{type: fixed, beta: {max(0.1 * std, 1e-3):.2g}}}}}"
    else:
        cause = f"the learning rate {lr:g} is too low"
        change = f"optim: {{lr: {lr * 10:g}}}"
    return Found(
        f"After {len(x)} steps the policy is {moved:.3f} nats from the reference and the reward has no "
        f"slope (99 % interval {low:+.2g} to {high:+.2g} a step), though rewards still vary by {differ:.3g}.",
        moved, limit if held else NIL, "T0", cause,
        "Let the policy move: lower beta, or raise the learning rate.", change, None,
        ("the learning rate is too low",) if held else ("beta is too high", "the adapter or layers trained are too small"),
        e.rollouts[::-1],
    )  # fmt: skip


def _penalty(e: Evidence) -> tuple[float, float]:
    """What a nat costs, and how much what it is weighed against differs between answers, over the run."""
    place = e.key("method.kl.place", "")
    _, beta = e.series("kl/beta")
    cost = edge(beta, last=True) if len(beta) else float(e.key("method.kl.beta", 0.0))
    # In the loss it stands beside scaled advantages, else beside rewards.
    name = "advantage/std" if place == "loss" and e.has("advantage/std") else "reward/std"
    _, spread = e.series(name)
    return (0.0 if place == "none" else cost), float(spread.mean()) if len(spread) else 1.0


def _relative(e: Evidence) -> bool:
    """Whether rewards say which answer is better than the others to its prompt, and no more."""
    specs = (s for s in e.config.get("rewards") or () if isinstance(s, dict))
    return any(s.get("judge") and s.get("weight", 1.0) for s in specs)


def _passed(e: Evidence) -> float:
    """Share of late rollouts near the best reward that was ever reached."""
    held = np.array([r.reward for r in e.rollouts if r.reward is not None])
    if len(held) < 32:
        raise Unchecked(
            "too few scored rollouts to know what the best reward is; set loop.sample_steps"
        )
    steps = sorted({r.step for r in e.rollouts})
    tail = set(steps[-max(1, len(steps) // 5) :])
    late = np.array([r.reward for r in e.rollouts if r.reward is not None and r.step in tail])
    top, low = np.quantile(held, [0.98, 0.02])
    return float((late >= top - 0.05 * max(top - low, 1e-9)).mean())


def exhausted(e: Evidence) -> Found | None:
    """Entropy gone, or gone before the end, with much of the reward still to win."""
    x, entropy = e.want("objective/entropy")
    start, late = edge(entropy, last=False, share=0.1), edge(entropy, last=True, share=0.1)
    floor = 0.1 * start
    half = len(x) // 2
    fall, _, _ = slope(x[half:], entropy[half:])
    left = e.total - float(x[-1])
    if late > floor and not (fall < 0 and late + fall * left < 0 and left > 0.1 * e.total):
        return None
    if _relative(e):
        raise Unchecked(
            "entropy is gone, and a judge's comparisons do not say whether there was more to win; "
            "audit gold, or add a reward of weight 0 that scores answers by themselves"
        )
    passed = _passed(e)
    if passed >= 0.75:
        return None
    began = onset(x, entropy < max(floor, late * 1.2), 2)
    _, reward = e.series("reward/mean")
    lr = float(e.key("optim.lr", 0.0))
    clip = float(e.key("method.clip.low", 0.2))
    return Found(
        f"Entropy is {late:.3f} nats a token, {late / max(start, 1e-9):.0%} of the {start:.3f} it started "
        f"with, and {1 - passed:.0%} of late answers are below the best reward "
        f"(mean {edge(reward, True, 0.1):.3g}): the policy has stopped trying other answers.",
        late / max(start, 1e-9), 0.1, "T0",
        f"steps are too large for exploration to last (lr {lr:g}, entropy_coef {e.key('method.entropy_coef', 0.0):g})",
        "Raise the upper clip or add an entropy bonus, lower the learning rate, and go back to before the fall.",
        f"method: {{clip: {{high: {max(0.28, 1.4 * clip):.2g}}}, entropy_coef: 0.01}}\noptim: {{lr: {lr / 5:g}}}",
        began, ("the KL hold is off", "prompts repeat too often"),
        [r for r in reversed(e.rollouts) if r.reward is not None],
    )  # fmt: skip


def value_collapse(e: Evidence) -> Found | None:
    """A critic that explains nothing of returns that vary, and is not learning to."""
    x, explained = e.want("value/explained_variance")
    _, mine = e.series("value/std")
    _, theirs = e.series("value/return_std")
    # A constant reward leaves a critic nothing to learn: only steps where rewards differ count.
    at, spread = e.series("reward/std")
    equal = set(at[spread < 1e-9].tolist())
    keep = np.array([step not in equal for step in x.tolist()])
    x, explained = x[keep], explained[keep]
    if len(x) < 12:
        # A critic that has only begun to learn looks like one that does not.
        raise Unchecked(f"rewards differed in {len(x)} steps with a critic, 12 are needed")
    varied = edge(theirs, last=True, share=0.5) if len(theirs) else 1.0
    if varied < 1e-3:
        return None
    late = float(np.median(explained[-max(3, len(x) // 3) :]))
    flat = len(mine) > 0 and edge(mine, True, 0.34) < 0.05 * varied
    if late > 0.02 and not flat:
        return None
    rest = slice(len(x) // 3, None)
    climb, low, _ = slope(x[rest], explained[rest])
    if low > 0 and climb * float(x[-1] - x[rest][0]) > 0.02:
        return None  # learning, if late: it was kept from it
    if len(mine) == len(keep) and edge(mine, True, 0.34) < 0.2 * varied:
        climb, low, _ = slope(x[rest], mine[keep][rest])
        if low > 0 and climb * float(x[-1] - x[rest][0]) > 0.01 * varied:
            return None  # values that begin to differ: learning from nothing
    lr = float(e.key("critic.optim.lr", 0.0))
    policy = float(e.key("optim.lr", 0.0))
    slow = flat or lr < policy / 10
    return Found(
        f"The critic's values explain {late:.1%} of the variance of returns over the last third"
        + (f" and vary by {edge(mine, True, 0.34):.3g} where returns vary by {varied:.3g}." if len(mine) else "."),
        late, 0.02, "T0",
        f"the critic does not learn (critic.optim.lr {lr:g})" if slow else "values and returns are on different scales, or shifted",
        "Give the critic a learning rate of its own, start it from the reward model, or use a group baseline without a critic.",
        f"critic: {{optim: {{lr: {max(3 * policy, 10 * lr):g}}}}}",
        onset(x, explained <= 0.02),
        ("value.clip holds it back", "returns are shifted against the tokens", "too few updates a batch"),
    )  # fmt: skip


def drift(e: Evidence) -> Found | None:
    """The sampler is another policy than the trainer thinks."""
    if not (e.has("sampler/ess") or e.has("policy/clip_fraction")):
        raise Unchecked("neither sampler/ess nor policy/clip_fraction was recorded")
    x, ess = e.series("sampler/ess")
    _, kl = e.series("sampler/kl")
    cx, clip = e.series("policy/clip_fraction")
    window = max(3, len(x) // 4)
    low_ess = len(ess) >= 3 and float(np.median(ess[-window:])) < 0.5
    apart = len(kl) >= 3 and float(np.median(kl[-window:])) > 0.05
    clipped = len(clip) >= 3 and float(np.median(clip[-max(3, len(cx) // 4) :])) > 0.3
    corrected = (
        e.key("method.mismatch.correction", "none") != "none"
        or e.key("method.mismatch.anchor") == "sampler"
    )
    if not low_ess and not clipped and not (apart and not corrected):
        return None
    if low_ess or apart:
        at_once = len(kl) > 3 and kl[0] > 0.3 * max(float(np.median(kl[-window:])), 1e-9)
        share = float(np.median(ess[-window:])) if len(ess) else math.nan
        cause = (
            "the sampler's distribution is another from the first step on: temperature, top-p, precision or "
            "weights differ" if at_once else "the sampler runs on old weights"
        )  # fmt: skip
        others = (
            ("the sampler runs on old weights",)
            if at_once
            else ("temperature or precision differ",)
        )
        return Found(
            f"Sampler and trainer are {edge(kl, True, 0.25):.3f} nats a token apart and the effective sample "
            f"size is {share:.0%} of the batch: most of what is learned comes from few answers.",
            share, 0.5, "T0", cause,
            "Sync the weights and the sampling settings; where lag is wanted, correct for it.",
            "method: {mismatch: {correction: token, high: 2.0}}",
            onset(x, (ess < 0.5) if low_ess else (kl > 0.05)), others,
        )  # fmt: skip
    share = float(np.median(clip[-max(3, len(cx) // 4) :]))
    lr = float(e.key("optim.lr", 0.0))
    return Found(
        f"{share:.0%} of tokens are clipped: the policy leaves the batch it learns from.",
        share, 0.3, "T0", f"too many or too large updates a batch (lr {lr:g})",
        "Fewer passes over a batch or a lower learning rate.",
        f"method: {{epochs: 1}}\noptim: {{lr: {lr / 3:g}}}", onset(cx, clip > 0.3), ("the sampler runs on old weights",),
        severity="warning",
    )  # fmt: skip


def dead(e: Evidence) -> Found | None:
    """Most groups teach nothing, from early on; or updates are thrown away."""
    x, skipped = e.series("skipped")
    share = float(skipped.mean()) if len(skipped) else 0.0
    if share > 0.1:
        return Found(
            f"{share:.0%} of optimiser steps were skipped because the loss or gradient was not finite.",
            share, 0.1, "T0", "a learning rate far too high, or broken rows", "Lower the learning rate; look at the rows of those steps.",
            f"optim: {{lr: {float(e.key('optim.lr', 1e-5)) / 10:g}}}", onset(x, skipped > 0, 1),
        )  # fmt: skip
    if _constant(e):
        return None  # alarm 14
    x, uniform = e.want(
        "group/uniform", why=": methods without groups have no such gradient to lose"
    )
    third = max(3, len(x) // 3)
    early, whole = float(uniform[:third].mean()), float(np.median(uniform))
    n = third * int(e.key("batch_size", 0))
    sure = wilson(early * n, n)[0] if n else early
    if min(sure, float(uniform[:3].mean()), whole) <= 0.5:
        return None  # groups that become equal later are solved ones, or alarms 7 and 8
    _, reward = e.series("reward/mean")
    rewards = np.array([r.reward for r in e.rollouts if r.reward is not None])
    best = float(rewards.max()) if len(rewards) else float(reward.max())
    easy = len(reward) > 0 and edge(reward, False) >= best - 0.25 * max(abs(best), 1e-9)
    return Found(
        f"In {whole:.0%} of groups ({early:.0%} in the first third) every answer gets the same reward, so they have no gradient.",
        whole, 0.5, "T0",
        "the prompts are too easy for this policy" if easy else "the prompts are too hard for this policy",
        "Keep prompts that it sometimes solves: filter by pass rate, or sample until groups differ.",
        "method: {filter: {dynamic_sampling: true}}", onset(x, uniform > 0.5),
        ("the reward is constant", "too few answers a prompt"),
        [r for r in e.rollouts if r.reward is not None],
    )  # fmt: skip


def _constant(e: Evidence) -> bool:
    """Whether every answer got one reward from the start."""
    _, std = e.series("reward/std")
    return len(std) > 0 and float(np.median(std)) < 1e-9 and edge(std, last=False) < 1e-9


def pipe(e: Evidence) -> Found | None:
    """Rewards that are missing, constant, or replaced by one value from some step on."""
    _, mean = e.want("reward/mean", 4)
    _, gone = e.series("reward/unscored")
    if len(gone) and (share := float(gone.mean())) > 0.01:
        return Found(
            f"{share:.1%} of answers got no reward (worst step {gone.max():.0%}).", share, 0.01, "T0",
            "a reward function or judge fails or times out",
            "Read the statuses in samples/; give the reward a timeout and mend what fails. Unscored answers are left out, never counted as 0.",
            paid(e, timeout=30.0), onset(e.series("reward/unscored")[0], gone > 0.01, 1),
            shown=[r for r in e.rollouts if r.reward is None],
            note=lambda r: ", ".join(f"{k}: {v}" for k, v in r.scores.items() if isinstance(v, str)),
        )  # fmt: skip
    if _constant(e):
        return Found(
            f"Every answer gets the same reward ({mean[-1]:.3g}).", 0.0, 1e-9, "T0",
            "the reward does not look at the answer", "Call the reward by hand on two different answers.",
            shown=e.rollouts,
        )  # fmt: skip
    return _fallback(e)


def _fallback(e: Evidence) -> Found | None:
    """One low value that suddenly many answers get, as failures turned into numbers do."""
    steps = {s: [r for r in rs if r.reward is not None] for s, rs in e.by_step().items()}
    # Where all rewards are one, a value that was not seen proves nothing.
    steps = {s: rs for s, rs in steps.items() if len(rs) >= 8 and len({r.reward for r in rs}) > 1}
    if len(steps) < 4:
        return None
    every = [r for rs in steps.values() for r in rs]
    middle = float(np.median([r.reward for r in every if r.reward is not None]))
    counts = Counter(round(r.reward, 6) for r in every if r.reward is not None)
    order = list(steps)
    for value, _ in counts.most_common(8):
        if value >= middle:
            continue
        share = np.array([np.mean([_gets(r, value) for r in steps[s]]) for s in order])
        for cut in range(1, len(order) - 1):
            before, after = share[:cut], share[cut:]
            if before.mean() > 0.02 or after.min() < 0.04 or after.mean() < 0.08:
                continue
            n1, n2 = (sum(len(steps[s]) for s in part) for part in (order[:cut], order[cut:]))
            z = two_rates(round(before.mean() * n1), n1, round(after.mean() * n2), n2)
            if z <= 3:
                continue
            early = np.array([r.reward for s in order[:cut] for r in steps[s]], np.float64)
            late = [r for s in order[cut:] for r in steps[s]]
            rest = np.array([r.reward for r in late if not _gets(r, value)], np.float64)
            # A failure leaves the others their rewards; where all of them fell, answers got worse.
            if rest.mean() > early.mean() - 0.5 * early.std() and _blind(value, late, every):
                return Found(
                    f"From step {order[cut]} on {after.mean():.0%} of answers get exactly {value:g}, which "
                    f"{before.mean():.1%} got before, whatever they say.",
                    float(after.mean()), 0.08, "T0",
                    f"failures of the reward are turned into {value:g} (a judge that times out or is refused)",
                    "Let the reward return None where it failed; such answers are then left out.",
                    paid(e, timeout=30.0), order[cut], ("the reward changed under way",), [r for r in late if _gets(r, value)],
                )  # fmt: skip
            break  # another cut would say the same
    return None


def _gets(r: Rollout, value: float) -> bool:
    return r.reward is not None and round(r.reward, 6) == value


def _blind(value: float, late: Sequence[Rollout], every: Sequence[Rollout]) -> bool:
    """Whether the value is given whatever answers say, as failures are: those that get it are as like
    the others to the same prompt as these are to one another. What is bad says something else."""
    others: dict[str, list[tuple[Rollout, set[str]]]] = {}
    for r in every:
        if not _gets(r, value):
            others.setdefault(r.prompt, []).append((r, _parts(r.answer)))
    hit: list[float] = []
    free: list[float] = []
    for r in late[:: max(1, len(late) // 1000)]:
        said, beside = _parts(r.answer), others.get(r.prompt, [])
        some = beside[:: max(1, len(beside) // 32)]
        likeness = [_overlap(said, parts) for o, parts in some if o is not r]
        if likeness:
            (hit if _gets(r, value) else free).append(max(likeness))
    if min(len(hit), len(free)) < 8:
        return False
    return float(np.mean(hit)) > 0.9 * float(np.mean(free)) and two_means(hit, free) < 3


def _parts(answer: str) -> set[str]:
    """Words and pairs of neighbouring words."""
    words = answer.lower().split()
    return {*words, *(f"{a} {b}" for a, b in pairwise(words))}


def _overlap(a: set[str], b: set[str]) -> float:
    return len(a & b) / max(1, len(a | b))


def displaced(e: Evidence) -> Found | None:
    """The margin grows while the chosen answers themselves become unlikely."""
    x, margin = e.want("rewards/margins", 6)
    at = "logps/chosen_shift"
    _, shift = e.series(at)
    if len(shift) < 6:
        raise Unchecked("logps/chosen_shift was not recorded: the method reads no reference")
    late, wide = edge(shift, True), edge(margin, True) - edge(margin, False, 0.1)
    _, lost = e.series("logps/rejected_shift")
    limit = -15.0
    if late > limit or wide <= 0:
        return None
    beta = float(e.key("objective.beta", 0.1))
    return Found(
        f"The margin grew by {wide:.2f}, yet chosen answers lost {-late:.1f} nats against the start"
        + (f" (rejected ones {-edge(lost, True):.1f})" if len(lost) else "")
        + ": likelihood has gone to answers that are in neither column.",
        late, limit, "T0", f"beta {beta:g} holds the policy too loosely, or pairs are repeated too often",
        "Raise beta, add likelihood of the chosen answers, train for fewer epochs.",
        f"objective: {{beta: {max(0.1, 5 * beta):g}, rpo_alpha: 1.0}}", onset(x, shift < limit),
        ("chosen and rejected answers are nearly the same text", "the data are far from what the model says: run SFT on the chosen answers first"),
    )  # fmt: skip
