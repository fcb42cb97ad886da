"""A gold audit beside training, and what it does when the reward is hacked.

Advice by default. An action is opt-in (``audit.act``), written to ``actions.jsonl``, and can be
taken back: the policy as it was lies in ``undo/step-N``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch

from trimtab.data.render import Renderer
from trimtab.diagnose.audit import (
    AuditSpec,
    Reading,
    RefreshSpec,
    Row,
    append_rows,
    blocks,
    read_audit,
    reading,
    write_rows,
)
from trimtab.errors import ConfigError
from trimtab.models import checkpoint
from trimtab.models.load import ModelSpec
from trimtab.rewards.learned import LearnedPart
from trimtab.rewards.score import Rewards, RewardSpec, make_part
from trimtab.rewards.scoring import Scoring
from trimtab.rollout.collect import collect
from trimtab.runs import fs, to_json, write_atomic
from trimtab.runs.console import console
from trimtab.train import best_of_n, reward
from trimtab.train.rollouts import Rollouts
from trimtab.train.sft import DataSpec
from trimtab.train.step import LoopSpec, OptimSpec, Trainer
from trimtab.types import Completion, Group


class Guarded(Protocol):
    """What the guard needs of a stage."""

    steps: int
    last: list[Group]
    trainer: Trainer
    renderer: Renderer
    scoring: Scoring
    rollouts: Rollouts

    def export(self, folder: Path) -> None:
        """Write the policy in HF format."""
        ...


def log_kl(c: Completion) -> float | None:
    """Summed log-ratio of a rollout to the reference, nats; None where it was not asked."""
    mine, theirs = c.tokens.get("sampler_logp"), c.tokens.get("ref_logp")
    return None if mine is None or theirs is None else float((mine - theirs).sum())


def check(spec: AuditSpec, rewards: Sequence[RewardSpec]) -> None:
    """Refuse an action that the rewards of a run do not allow.

    Raises:
        ValueError: there is no ensemble to switch, or no single model to refresh.
    """
    trained = [r for r in rewards if r.weight != 0]
    if spec.act == "switch" and not any(r.models and r.combine == "mean" for r in trained):
        raise ValueError("audit.act: switch needs a reward with 'models' and combine: mean")
    if spec.act == "refresh" and sum(r.model is not None for r in trained) != 1:
        raise ValueError("audit.act: refresh needs exactly one reward with 'model'")


class Guard:
    """Audits rollouts as they come and acts on what they show.

    Args:
        stage: Whose rollouts, weights and rewards they are.
        spec: What to do.
        out: The run folder.
        rewards: Of the run.
        loop: Of the run.
        device: Where reward models are held.
    """

    def __init__(
        self, stage: Guarded, spec: AuditSpec, out: str, rewards: Sequence[RewardSpec],
        loop: LoopSpec, device: str,
    ) -> None:  # fmt: skip
        self.stage, self.spec, self.out = stage, spec, Path(out)
        self.rewards, self.loop, self.device = rewards, loop, device
        self.gold = Rewards(
            [spec.gold.reward()], stage.renderer.tokenizer, loop.token_budget, device
        )
        self.rows: list[Row] | None = None
        self.since = 0
        """Rows of earlier steps were acted on already."""
        self.actions = 0
        self.best: float | None = None
        """Mean gold of the block whose policy is kept."""
        self.ended: int | None = None
        self.combine: str | None = None
        self.model: str | None = None
        self.found: Reading | None = None

    def observe(self, index: int, groups: Sequence[Group]) -> dict[str, float]:
        """Audit a share of the scored rollouts of batch ``index``; what the audit says so far."""
        step = index + 1
        if self.rows is None:
            # A resumed run forgets what was audited after its checkpoint.
            self.rows = [r for r in read_audit(self.out) if r.step < step]
            write_rows(self.out, self.rows)
        kls = [k for g in groups for c in g.completions if (k := log_kl(c)) is not None]
        mean = float(np.mean(kls)) if kls else None
        new = self._audit(step, groups, mean)
        whole = len(blocks(self._now(), self.spec.block))
        self.rows += new
        append_rows(self.out, new)
        now = self._now()
        told = {"audit/rollouts": float(len(self.rows))}
        if mean is not None:
            told["audit/kl"] = mean
        if new:
            told["audit/gold"] = float(np.mean([r.gold for r in new]))
        made = blocks(now, self.spec.block)
        if len(made) > whole and (self.best is None or made[-1].gold >= self.best):
            # The weights that made these rollouts, before the update that they are for.
            self.best = made[-1].gold
            self._keep(step, self.best)
        if new:
            gold = self.spec.gold
            self.found = reading(now, gold.low, gold.high, self.spec.alpha, self.spec.block)
        if self.found is not None:
            told["audit/p"] = self.found.p
        return told

    def _now(self) -> list[Row]:
        return [r for r in self.rows or () if r.step > self.since]

    def _audit(self, step: int, groups: Sequence[Group], mean: float | None) -> list[Row]:
        done = [
            (g, i, c) for g in groups for i, c in enumerate(g.completions) if c.reward is not None
        ]
        rng = np.random.default_rng((self.loop.seed, step, 31))
        wanted = self.spec.share * len(done)
        count = int(wanted) + int(rng.random() < wanted % 1)
        picked = [done[int(i)] for i in sorted(rng.permutation(len(done))[:count])]
        copies = [
            replace(g, completions=[replace(c, scores={}, reward=None)]) for g, _, c in picked
        ]
        if copies:
            self.gold(copies)
        rows: list[Row] = []
        for (g, i, c), copy in zip(picked, copies, strict=True):
            value = copy.completions[0].scores["gold"].value
            if value is None:
                continue
            rows.append(
                Row(
                    step=step, prompt_id=g.id, index=i, proxy=cast(float, c.reward), gold=value,
                    kl=log_kl(c), kl_mean=mean, source=self.spec.gold.source,
                )
            )  # fmt: skip
        return rows

    def _keep(self, step: int, gold: float) -> None:
        params = {n: p.detach() for n, p in self.stage.trainer.params["policy"]}
        told = {"step": step, "gold": gold}
        checkpoint.save(self.out / "best", step, {"params.policy": params}, told, keep=1)

    def act(self, index: int) -> None:
        """Do what is asked for when the reward is hacked; once for each time that it is."""
        if self.found is None or not self.found.hacked or self.ended is not None:
            return
        step, found, spec = index + 1, self.found, self.spec
        saved = checkpoint.latest(self.out / "best")
        action = spec.act if self.actions < spec.times else "stop"
        if action != "none" and saved is None:
            return  # nothing to go back to yet
        told: dict[str, Any] = {
            "step": step, "action": action, "p": found.p, "since": found.since,
            "gold_before": found.gold_before, "gold_after": found.gold_after,
            "proxy_gain": found.proxy_gain,
        }  # fmt: skip
        if action != "none":
            assert saved is not None
            undo = self.out / "undo" / f"step-{step:08d}"
            self.stage.export(undo)
            told |= {"back_to": saved.step, "gold_there": saved.state["gold"], "undo": str(undo)}
            self._restore(saved)
        if action == "stop":
            self.ended = self.stage.steps = step
        elif action == "switch":
            self.combine = spec.switch
            self._switch()
        elif action == "refresh":
            told |= self._refresh(step)
            if told["new_pairs"] == 0:
                told["action"] = action = "stop"
                self.ended = self.stage.steps = step
        self.actions += 1
        self.since, self.found = step, None
        with fs.open(self.out / "actions.jsonl", "ab") as handle:
            fs.write(handle, (to_json(told) + "\n").encode())
        back = f"; back to the policy of step {told['back_to']}" if "back_to" in told else ""
        console.print(
            f"[bold]audit[/bold]: step {step}: gold fell from {found.gold_before:.3f} to "
            f"{found.gold_after:.3f} while the reward changed by {found.proxy_gain:+.3f} "
            f"(p {found.p:.1g}): {action}{back}"
        )

    @torch.no_grad()
    def _restore(self, saved: checkpoint.Checkpoint) -> None:
        tensors = saved.tensors("params.policy")
        for name, p in self.stage.trainer.params["policy"]:
            p.copy_(tensors[name])
            # Moments of the way that was left say nothing of the new one.
            self.stage.trainer.optimizer.state.pop(p, None)

    def _switch(self) -> None:
        for part in self.stage.scoring.rewards.parts.values():
            if isinstance(part, LearnedPart) and len(part.members) > 1:
                part.spec = part.spec.model_copy(update={"combine": self.combine})

    def _pairs(self, step: int, how: RefreshSpec) -> list[dict[str, Any]]:
        """The answer that the hacked reward likes best beside the best of some answers of the best
        audited policy, as comparisons where gold tells them apart; empty answers are no rows."""
        stage = self.stage
        hacked: list[Group] = []
        for g in stage.last[: how.prompts]:
            done = [c for c in g.completions if c.text.strip()]
            if done:
                top = max(done, key=lambda c: cast(float, c.reward))
                hacked.append(replace(g, completions=[top]))
        better = collect(
            stage.rollouts.sampler, stage.renderer, hacked, stage.rollouts.sampling,
            n=how.answers, key=(self.loop.seed, step, 37), version=stage.trainer.updates,
        )  # fmt: skip
        both: list[Group] = []
        for g, b in zip(hacked, better, strict=True):
            whole = [*g.completions, *(c for c in b.completions if c.text.strip())]
            both.append(replace(g, completions=[replace(c, scores={}, reward=None) for c in whole]))
        self.gold(both)
        rows: list[dict[str, Any]] = []
        for g in both:
            worth = [(c.scores["gold"].value, c.text) for c in g.completions]
            known = [(v, text) for v, text in worth[1:] if v is not None]
            mine, text = worth[0]
            if mine is None or not known:
                continue
            value, other = max(known)
            if value != mine:
                chosen, rejected = (other, text) if value > mine else (text, other)
                rows.append(best_of_n.comparison(g, chosen, rejected))
        return rows

    def _refresh(self, step: int) -> dict[str, Any]:
        """New comparisons mixed into the old ones, and the reward model trained on from there."""
        how = self.spec.refresh
        assert how is not None
        rows = self._pairs(step, how)
        if not rows:
            return {"new_pairs": 0}  # gold sees no difference: there is nothing to teach
        folder = self.out / f"refresh-{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        mixed = folder / "comparisons.jsonl"
        old = _comparisons(how.data)
        lines = [*old, *(rows * how.repeat)]
        write_atomic(mixed, "".join(to_json(r) + "\n" for r in lines).encode("utf-8", "replace"))
        trained = next(r for r in self.rewards if r.model is not None and r.weight != 0)
        model = ModelSpec(path=self.model or str(trained.model), device=self.device)
        with torch.enable_grad():
            reward.main(
                reward.RewardConfig(
                    out=str(folder), model=model, data=DataSpec(path=str(mixed)),
                    epochs=how.epochs, batch=how.batch, optim=OptimSpec(lr=how.lr),
                    loop=self.loop.model_copy(update={"save_every": 0, "tracker": "none"}),
                )
            )  # fmt: skip
        self.model = str(folder / "model")
        self._load_model()
        return {"new_pairs": len(rows), "old_rows": len(old), "reward_model": self.model}

    def _load_model(self) -> None:
        spec = next(r for r in self.rewards if r.model is not None and r.weight != 0)
        self.stage.scoring.rewards.parts[spec.name] = make_part(
            spec.model_copy(update={"model": self.model}), self.stage.renderer.tokenizer,
            self.loop.token_budget, self.device,
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """What resume needs beside ``audit.jsonl``."""
        names = ("since", "actions", "best", "ended", "combine", "model")
        return {name: getattr(self, name) for name in names}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from ``state``: with the rewards as they were switched, and ended where it was."""
        for name, value in state.items():
            setattr(self, name, value)
        if self.ended is not None:
            self.stage.steps = self.ended
        if self.combine is not None:
            self._switch()
        if self.model is not None:
            self._load_model()


def _comparisons(path: str) -> list[dict[str, Any]]:
    """Rows of the old comparisons, which must be jsonl to be mixed."""
    file = Path(path)
    if not file.is_file() or file.suffix != ".jsonl":
        raise ConfigError(f"audit.refresh.data: {path!r} must be a .jsonl file of comparisons")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
