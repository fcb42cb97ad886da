"""A gold audit beside training, and what it does when the reward is hacked.

Advice by default. An action is opt-in (``audit.act``), written to ``actions.jsonl``, and can be
taken back: the policy as it was lies in ``undo/step-N``. A run that ends hands over another policy
than its last when it exports; its checkpoint holds the last one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch

from trimtab.audit.gold_audit import (
    AuditedRollout,
    AuditSpec,
    AuditSummary,
    RefreshSpec,
    append_audit,
    blocks,
    choose_policy,
    read_audit,
    summarise,
    write_audit,
)
from trimtab.data.dataset import DataSpec
from trimtab.data.render import Renderer
from trimtab.data.rows import comparison
from trimtab.errors import CheckpointError, ConfigError
from trimtab.models import checkpoint
from trimtab.models.load import ModelSpec
from trimtab.rewards.learned import LearnedPart
from trimtab.rewards.score import Rewards, RewardSpec, make_part
from trimtab.rewards.scoring import Scoring
from trimtab.rollout.collector import collect
from trimtab.runs import fs, to_json, write_atomic
from trimtab.runs.console import console
from trimtab.train import reward
from trimtab.train.rollouts import Rollouts
from trimtab.train.trainer import LoopSpec, OptimSpec, Trainer
from trimtab.types import Completion, Group

ACTIONS = "actions.jsonl"


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


def too_little(spec: AuditSpec, rollouts: int) -> str:
    """What to change where a run of so many rollouts is too short for ``act: stop`` to choose; else
    empty."""
    about = round(spec.share * rollouts)
    if spec.act != "stop" or about >= 2 * spec.block_size:
        return ""
    return (
        f"about {about} of {rollouts} rollouts are audited, fewer than two blocks of {spec.block_size}: too "
        "few to tell policies apart; raise audit.share or lower audit.block_size"
    )


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
        self.rows: list[AuditedRollout] | None = None
        self.since = 0
        """Rows of earlier steps were acted on already."""
        self.actions = 0
        self.best: float | None = None
        """Mean gold of the block whose policy is kept."""
        self.ended: int | None = None
        self.handed: int | None = None
        """Step of the policy that is exported in place of the last."""
        self.why = ""
        """What is exported and why, in a sentence, once the run has ended."""
        self.combine: str | None = None
        self.model: str | None = None
        self.found: AuditSummary | None = None

    def observe(self, index: int, groups: Sequence[Group]) -> dict[str, float]:
        """Audit a share of the scored rollouts of batch ``index``; what the audit says so far."""
        step = index + 1
        rows = self._recalled(step)
        self.handed, self.why = None, ""  # a run that ended, and was given more steps
        kls = [k for g in groups for c in g.completions if (k := log_kl(c)) is not None]
        mean = float(np.mean(kls)) if kls else None
        new = self._audit(step, groups, mean)
        whole = len(blocks(self._now(), self.spec.block_size))
        rows += new
        append_audit(self.out, new)
        now = self._now()
        told = {"audit/rollouts": float(len(rows))}
        if mean is not None:
            told["audit/kl"] = mean
        if new:
            told["audit/gold"] = float(np.mean([r.gold for r in new]))
        done = [b.gold for b in blocks(now, self.spec.block_size)[whole:]]
        if done and (self.best is None or max(done) >= self.best):
            # The weights that made these rollouts, before the update that they are for.
            self.best = max(done)
            self._keep(step, self.best)
        if new:
            gold = self.spec.gold
            self.found = summarise(now, gold.low, gold.high, self.spec.alpha, self.spec.block_size)
        if self.found is not None:
            told["audit/p"] = self.found.p
        return told

    def _recalled(self, step: int) -> list[AuditedRollout]:
        """What was audited; a resumed run forgets what came at ``step``, its first, or later."""
        if self.rows is None:
            self.rows = [r for r in read_audit(self.out) if r.step < step]
            write_audit(self.out, self.rows)
            _forget(self.out / ACTIONS, step)
        return self.rows

    def _now(self) -> list[AuditedRollout]:
        return [r for r in self.rows or () if r.step > self.since]

    def _audit(
        self, step: int, groups: Sequence[Group], mean: float | None
    ) -> list[AuditedRollout]:
        done = [
            (g, i, c) for g in groups for i, c in enumerate(g.completions) if c.reward is not None
        ]
        rng = np.random.default_rng((self.loop.seed, step, 31))
        wanted = self.spec.share * len(done)
        count = int(wanted) + int(rng.random() < wanted % 1)
        if step == 1 and self.spec.act == "stop":
            count = min(len(done), max(count, self.spec.block_size))
        picked = [done[int(i)] for i in sorted(rng.permutation(len(done))[:count])]
        copies = [
            replace(g, completions=[replace(c, scores={}, reward=None)]) for g, _, c in picked
        ]
        if copies:
            self.gold(copies)
        rows: list[AuditedRollout] = []
        for (g, i, c), copy in zip(picked, copies, strict=True):
            value = copy.completions[0].scores["gold"].value
            if value is None:
                continue
            rows.append(
                AuditedRollout(
                    step=step, prompt_id=g.id, index=i, proxy=cast(float, c.reward), gold=value,
                    kl=log_kl(c), kl_mean=mean, source=self.spec.gold.source,
                )
            )  # fmt: skip
        return rows

    def _keep(self, step: int, gold: float) -> None:
        params = {n: p.detach() for n, p in self.stage.trainer.params["policy"]}
        told = {"step": step, "gold": gold}
        checkpoint.save(self.out / "best", step, {"params.policy": params}, told, keep=1)

    def act(self, index: int) -> dict[str, float]:
        """Do what is asked for when gold fell, once for each time; at the end choose what is handed over.

        Returns:
            What was handed over, as metrics; empty where the run goes on.
        """
        if self.ended is None and self.found is not None:
            advised = self.spec.act in ("none", "stop")
            if self.found.fell if advised else self.found.hacked:
                self._act(index + 1, self.found)
        if self.ended is not None or self.spec.act != "stop":
            return {} if self.handed is None else {"audit/handed_over": float(self.handed)}
        return self._end(index + 1) if index + 1 == self.stage.steps else {}

    def _act(self, step: int, found: AuditSummary) -> None:
        spec = self.spec
        saved = checkpoint.latest(self.out / "best")
        action = spec.act if self.actions < spec.max_actions else "stop"
        if action != "none" and saved is None:
            return  # nothing to go back to yet
        told: dict[str, Any] = {
            "step": step, "action": action, "p": found.p, "since": found.since,
            "gold_before": found.gold_before, "gold_after": found.gold_after,
            "proxy_gain": found.proxy_gain, "hacked": found.hacked,
        }  # fmt: skip
        if action != "none":
            assert saved is not None
            told |= self._back(step, saved)
            if action != "stop":
                self._restore(saved)
        if action == "switch":
            self.combine = spec.switch
            self._switch()
        elif action == "refresh":
            told |= self._refresh(step)
            if told["new_pairs"] == 0:
                told["action"] = action = "stop"
        self.actions += 1
        self.since, self.found = step, None
        back = f"; back to the policy of step {told['back_to']}" if "back_to" in told else ""
        said = (
            f"step {step}: gold fell from {found.gold_before:.3f} to {found.gold_after:.3f} while the "
            f"reward changed by {found.proxy_gain:+.3f} (p {found.p:.2g}): {action}{back}"
        )
        if action == "stop":
            self.ended = self.stage.steps = step
            self.handed = told["back_to"]
            self.why = told["why"] = said
        self._tell(told, said)

    def _back(self, step: int, saved: checkpoint.Checkpoint) -> dict[str, Any]:
        """Keep the policy as it is, and say where to and where from."""
        undo = self.out / "undo" / f"step-{step:08d}"
        self.stage.export(undo)
        return {"back_to": saved.step, "gold_there": saved.state["gold"], "undo": str(undo)}

    def _end(self, step: int) -> dict[str, float]:
        """The one look at the run's own end."""
        size, rows = self.spec.block_size, self._recalled(step)
        found = choose_policy(rows, size, self.spec.final_alpha)
        saved = checkpoint.latest(self.out / "best")
        told: dict[str, Any] = {"step": step, "action": "keep", "p": found.p}
        if found.best is None or found.blocks < 2:
            self.why = (
                f"The last policy is handed over: {len(rows)} audited rollouts are not "
                f"two blocks of {size} (audit.share, audit.block), so none is known to be better."
            )
        else:
            best = found.best
            told |= {"gold_best": best.gold, "gold_last": found.last}
            seen = (
                f"gold was {best.gold:.3f} over steps {best.first} to {best.last} and {found.last:.3f} "
                f"over the last block (p {found.p:.2g} for {found.blocks - 1} blocks)"
            )
            if found.back_to is None:
                self.why = f"The last policy is handed over; none is surely better: {seen}."
            elif saved is None or saved.step != found.back_to:
                self.why = f"The last policy is handed over; a better one was not kept: {seen}."
            else:
                told |= {"action": "hand-over", **self._back(step, saved)}
                self.handed = saved.step
                self.why = f"The policy of step {saved.step} is handed over: {seen}."
        told["why"] = self.why
        self._tell(told, self.why)
        figures = {"handed_over": self.handed or 0, "gold_best": told.get("gold_best"),
                   "gold_last": told.get("gold_last"), "p_final": found.p}  # fmt: skip
        return {f"audit/{k}": float(v) for k, v in figures.items() if v is not None}

    def _tell(self, told: dict[str, Any], said: str) -> None:
        with fs.open(self.out / ACTIONS, "ab") as handle:
            fs.write(handle, (to_json(told) + "\n").encode())
        console.print(f"[bold]audit[/bold]: {said}")

    def hand_over(self) -> None:
        """Put the chosen policy in the place of the last, for the export; nothing where it is the last.

        Raises:
            CheckpointError: its weights are gone.
        """
        if self.handed is None:
            return
        saved = checkpoint.latest(self.out / "best")
        if saved is None or saved.step != self.handed:
            raise CheckpointError(
                f"{self.out / 'best'}: the policy of step {self.handed}, which the audit chose, is gone; "
                f"the last one is a model in {self.out / 'undo'}"
            )
        self._restore(saved)

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
        for g in stage.last[: how.num_prompts]:
            done = [c for c in g.completions if c.text.strip()]
            if done:
                top = max(done, key=lambda c: cast(float, c.reward))
                hacked.append(replace(g, completions=[top]))
        better = collect(
            stage.rollouts.sampler, stage.renderer, hacked, stage.rollouts.sampling,
            n=how.num_completions, key=(self.loop.seed, step, 37), version=stage.trainer.updates,
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
                rows.append(comparison(g, chosen, rejected))
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
                    epochs=how.epochs, batch_size=how.batch_size, optim=OptimSpec(lr=how.lr),
                    loop=self.loop.model_copy(update={"save_steps": 0, "report_to": "none"}),
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
        names = ("since", "actions", "best", "ended", "handed", "why", "combine", "model")
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


def _forget(path: Path, step: int) -> None:
    """Drop the guard's lines of ``step`` and later: a resumed run writes them again."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [x for x in lines if x.endswith("\n")]  # the last may be torn by a crash
        kept = [x for x in whole if (json.loads(x).get("step") or 0) < step]
        if len(kept) < len(lines):
            write_atomic(path, "".join(kept).encode())


def _comparisons(path: str) -> list[dict[str, Any]]:
    """Rows of the old comparisons, which must be jsonl to be mixed."""
    file = Path(path)
    if not file.is_file() or file.suffix != ".jsonl":
        raise ConfigError(f"audit.refresh.data: {path!r} must be a .jsonl file of comparisons")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
