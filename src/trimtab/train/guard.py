"""The gold audit of a run in training, and what it does when the reward is hacked.

By default it only reports. An action is opt-in (``audit.act``), is written to ``actions.jsonl``, and can
be undone: the policy before it is saved in ``undo/step-N``. Which policy a run exports is decided at the
export; the run's last checkpoint always has the last policy.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from trimtab import ranks
from trimtab.audit.gold_audit import (
    AuditedRollout,
    AuditSpec,
    AuditSummary,
    blocks,
    choose_policy,
    summarise,
)
from trimtab.errors import CheckpointError
from trimtab.models import checkpoint
from trimtab.models.shard import reshard
from trimtab.rewards.learned import LearnedPart
from trimtab.rewards.part_config import RewardSpec
from trimtab.rewards.weighted_sum import Rewards, make_part
from trimtab.train import audit_log
from trimtab.train.refresh import comparisons_by_gold, retrain
from trimtab.train.rollouts import RolloutStage
from trimtab.train.scored import episode_kls, log_ratio
from trimtab.train.stage import Metrics
from trimtab.types import Group, Row

log = logging.getLogger(__name__)


def check_action(spec: AuditSpec, rewards: Sequence[RewardSpec]) -> None:
    """Check that the rewards of a run allow the action.

    Raises:
        ValueError: there is no ensemble to switch, or no single model to refresh.
    """
    trained = [r for r in rewards if r.weight != 0]
    if spec.act == "switch" and not any(r.models and r.combine == "mean" for r in trained):
        raise ValueError("audit.act: switch needs a reward with 'models' and combine: mean")
    if spec.act == "refresh" and sum(r.model is not None for r in trained) != 1:
        raise ValueError("audit.act: refresh needs exactly one reward with 'model'")


@dataclass
class GuardState:
    """What resuming needs in addition to ``audit.jsonl``."""

    since: int = 0
    """Rollouts up to this step have already led to an action."""
    actions: int = 0
    """Actions so far."""
    best: float | None = None
    """Mean gold of the block whose policy is saved in ``best``."""
    ended: int | None = None
    """The step at which ``act: stop`` ended the run."""
    handed: int | None = None
    """Step of the policy that is exported instead of the last."""
    why: str = ""
    """Which policy is exported and why, in a sentence, once the run has ended."""
    combine: str | None = None
    """How ensembles combine their members, after ``act: switch``."""
    model: str | None = None
    """The reward model, after ``act: refresh``."""


class Guard:
    """Audits rollouts during training and acts on the result.

    Args:
        stage: The stage whose rollouts, weights and rewards are audited.
        rewards: The same, loaded; an action changes them.
        rollouts: How many the run samples. A warning says when they are too few to compare policies.
    """

    def __init__(
        self,
        stage: RolloutStage[Any],
        spec: AuditSpec,
        specs: Sequence[RewardSpec],
        rewards: Rewards,
        rollouts: int,
    ) -> None:
        audited = round(spec.share * rollouts)
        if spec.act == "stop" and audited < 2 * spec.block_size:
            log.warning(
                "audit: about %d of %d rollouts are audited, fewer than two blocks of %d: too few to "
                "compare policies; raise audit.share or lower audit.block_size",
                audited,
                rollouts,
                spec.block_size,
            )
        c = stage.config
        self.stage, self.spec, self.specs, self.rewards = stage, spec, specs, rewards
        self.out, self.loop, self.device = Path(c.out), c.loop, c.model.device
        self.tokenizer = stage.renderer.tokenizer
        here = ranks.current()
        self.gold = Rewards(
            here.main_only([spec.gold.reward()]),
            self.tokenizer,
            self.loop.token_budget,
            self.device,
        )
        self.score_gold = here.score(self.gold)
        stage.prepare(self.gold)
        self.audited: list[AuditedRollout] | None = None
        self.summary: AuditSummary | None = None
        self.progress = GuardState()

    @property
    def why(self) -> str:
        """Which policy is exported and why; empty before the run has ended."""
        return self.progress.why

    def observe(self, index: int, groups: Sequence[Group]) -> Metrics:
        """Audit a share of the scored rollouts of iteration ``index``.

        Returns:
            What the audit shows so far.
        """
        step = index + 1
        size, gold = self.spec.block_size, self.spec.gold
        audited = self._read(step)
        # A run that had ended and is given more steps chooses again.
        self.progress.handed, self.progress.why = None, ""
        kls = episode_kls(groups)
        kl_mean = float(np.mean(kls)) if kls else None
        new = self._audit(step, groups, kl_mean)
        complete = len(blocks(self._recent(), size))
        audited += new
        audit_log.append(self.out, new)
        recent = self._recent()
        metrics = {"audit/rollouts": float(len(audited))}
        if kl_mean is not None:
            metrics["audit/kl"] = kl_mean
        if new:
            metrics["audit/gold"] = float(np.mean([r.gold for r in new]))
        golds = [b.gold for b in blocks(recent, size)[complete:]]
        if golds and (self.progress.best is None or max(golds) >= self.progress.best):
            # The weights that sampled these rollouts, before the update on them.
            self.progress.best = max(golds)
            self._save_best(step, self.progress.best)
        if new:
            self.summary = summarise(recent, gold.low, gold.high, self.spec.alpha, size)
        if self.summary is not None:
            metrics["audit/p"] = self.summary.p
        return metrics

    def _read(self, step: int) -> list[AuditedRollout]:
        """All audited rollouts; a resumed run drops those of ``step``, its first, and later ones."""
        if self.audited is None:
            self.audited = audit_log.rewind(self.out, step)
        return self.audited

    def _recent(self) -> list[AuditedRollout]:
        """The audited rollouts since the last action."""
        return [r for r in self.audited or () if r.step > self.progress.since]

    def _audit(
        self, step: int, groups: Sequence[Group], kl_mean: float | None
    ) -> list[AuditedRollout]:
        """Gold scores of a random share of the scored completions."""
        scored = [
            (g, i, c) for g in groups for i, c in enumerate(g.completions) if c.reward is not None
        ]
        rng = np.random.default_rng((self.loop.seed, step, 31))
        expected = self.spec.share * len(scored)
        count = int(expected) + int(rng.random() < expected % 1)
        if step == 1 and self.spec.act == "stop":
            count = min(len(scored), max(count, self.spec.block_size))
        picked = [scored[int(i)] for i in sorted(rng.permutation(len(scored))[:count])]
        copies = [
            replace(g, completions=[replace(c, scores={}, reward=None)]) for g, _, c in picked
        ]
        if copies:
            self.score_gold(copies)
        return [
            AuditedRollout(
                step=step,
                prompt_id=g.id,
                index=i,
                proxy=cast(float, c.reward),
                gold=gold,
                kl=log_ratio(c),
                kl_mean=kl_mean,
                source=self.spec.gold.source,
            )
            for (g, i, c), copy in zip(picked, copies, strict=True)
            if (gold := copy.completions[0].scores["gold"].value) is not None
        ]

    def _save_best(self, step: int, gold: float) -> None:
        """Save the policy in ``best``, replacing the one there."""
        params = dict(self.stage.trainer.params["policy"])
        state = {"step": step, "gold": gold}
        checkpoint.save(self.out / "best", step, {"params.policy": params}, state, keep=1)

    def act(self, index: int) -> Metrics:
        """Take the configured action if gold fell; after the last step, choose the policy to export.

        Returns:
            Metrics of the choice; empty before the run has ended.
        """
        step, progress = index + 1, self.progress
        if progress.ended is None and self.summary is not None:
            # Actions against the reward need the reward to be at fault: gold fell and it did not.
            blame_reward = self.spec.act in ("switch", "refresh")
            if self.summary.hacked if blame_reward else self.summary.fell:
                self._act(step, self.summary)
        if progress.ended is not None or self.spec.act != "stop":
            return {} if progress.handed is None else {"audit/handed_over": float(progress.handed)}
        return self._choose(step) if step == self.stage.steps else {}

    def _act(self, step: int, summary: AuditSummary) -> None:
        """Take the configured action, or stop after ``max_actions`` of them."""
        progress = self.progress
        saved = checkpoint.latest_of_main(self.out / "best")
        action = self.spec.act if progress.actions < self.spec.max_actions else "stop"
        if action != "none" and saved is None:
            return  # no block is complete yet, so there is no policy to return to
        record: Row = {
            "step": step,
            "action": action,
            "p": summary.p,
            "since": summary.since,
            "gold_before": summary.gold_before,
            "gold_after": summary.gold_after,
            "proxy_gain": summary.proxy_gain,
            "hacked": summary.hacked,
        }
        if saved is not None and action != "none":
            record |= self._export_undo(step, saved)
            if action != "stop":
                self._restore(saved)
        if action == "switch":
            progress.combine = self.spec.switch
            self._switch()
        elif action == "refresh":
            record |= self._refresh(step)
            if record["new_pairs"] == 0:
                record["action"] = action = "stop"
        progress.actions += 1
        progress.since, self.summary = step, None
        back = ""
        if "back_to" in record:
            back = f"; returned to the policy of step {record['back_to']}"
        message = (
            f"step {step}: gold fell from {summary.gold_before:.3f} to {summary.gold_after:.3f} while "
            f"the reward changed by {summary.proxy_gain:+.3f} (p {summary.p:.2g}): {action}{back}"
        )
        if action == "stop":
            progress.ended = self.stage.steps = step
            progress.handed = record["back_to"]
            progress.why = record["why"] = message
        self._record(record, message)

    def _export_undo(self, step: int, saved: checkpoint.Checkpoint) -> Row:
        """Export the current policy, so that the action can be undone; its part of the record."""
        undo = self.out / "undo" / f"step-{step:08d}"
        self.stage.export(undo)
        return {"back_to": saved.step, "gold_there": saved.state["gold"], "undo": str(undo)}

    def _choose(self, step: int) -> Metrics:
        """Choose the policy to export at the regular end of a run with ``act: stop``."""
        size, audited = self.spec.block_size, self._read(step)
        choice = choose_policy(audited, size, self.spec.final_alpha)
        saved = checkpoint.latest_of_main(self.out / "best")
        record: Row = {"step": step, "action": "keep", "p": choice.p}
        best = choice.best
        if best is None or choice.blocks < 2:
            why = (
                f"The last policy is exported: {len(audited)} audited rollouts are fewer than two "
                f"blocks of {size} (audit.share, audit.block_size), so no policy can be compared with it."
            )
        else:
            record |= {"gold_best": best.gold, "gold_last": choice.last}
            evidence = (
                f"gold was {best.gold:.3f} over steps {best.first} to {best.last} and "
                f"{choice.last:.3f} over the last block (p {choice.p:.2g} for {choice.blocks - 1} blocks)"
            )
            if choice.back_to is None:
                why = f"The last policy is exported; none is significantly better: {evidence}."
            elif saved is None or saved.step != choice.back_to:
                why = f"The last policy is exported; a better one was not saved: {evidence}."
            else:
                record |= {"action": "hand-over", **self._export_undo(step, saved)}
                self.progress.handed = saved.step
                why = f"The policy of step {saved.step} is exported: {evidence}."
        self.progress.why = record["why"] = why
        self._record(record, why)
        handed = float(self.progress.handed or 0)
        metrics = {"audit/handed_over": handed, "audit/p_final": choice.p}
        return metrics | {
            f"audit/{k}": float(record[k]) for k in ("gold_best", "gold_last") if k in record
        }

    def _record(self, record: Row, message: str) -> None:
        """Append a line to ``actions.jsonl``, and log the message."""
        audit_log.append_action(self.out, record)
        log.warning("audit: %s", message)

    def restore_choice(self) -> None:
        """Load the weights of the chosen policy for the export, unless it is the last one.

        Raises:
            CheckpointError: its weights are missing.
        """
        step = self.progress.handed
        if step is None:
            return
        saved = checkpoint.latest_of_main(self.out / "best")
        if saved is None or saved.step != step:
            raise CheckpointError(
                f"{self.out / 'best'}: the policy of step {step}, which the audit chose, is missing; the "
                f"last policy is exported in {self.out / 'undo'}"
            )
        self._restore(saved)

    @torch.no_grad()
    def _restore(self, saved: checkpoint.Checkpoint) -> None:
        """Load the weights of a saved policy."""
        reshard(self.stage.root)
        policy = dict(self.stage.trainer.params["policy"])
        tensors = saved.tensors("params.policy", policy.get)
        for name, p in policy.items():
            p.copy_(tensors[name])
            # The optimiser's moments belong to other weights.
            self.stage.trainer.optimizer.state.pop(p, None)
        self.stage.synced = None

    def _switch(self) -> None:
        """Set how ensembles combine their members, as the action says."""
        for part in self.rewards.parts.values():
            if isinstance(part, LearnedPart) and len(part.members) > 1:
                part.spec = part.spec.model_copy(update={"combine": self.progress.combine})

    def _trained_reward(self) -> RewardSpec:
        """The reward whose model ``act: refresh`` retrains."""
        return next(r for r in self.specs if r.model is not None and r.weight != 0)

    def _refresh(self, step: int) -> Row:
        """Retrain the reward model with new comparisons; its part of the record."""
        spec = self.spec.refresh
        assert spec is not None
        rows = comparisons_by_gold(self.stage, spec, self.score_gold, (self.loop.seed, step, 37))
        if not rows:
            return {"new_pairs": 0}  # gold scores are equal: nothing can be learnt
        folder = self.out / f"refresh-{step:08d}"
        path = self.progress.model or str(self._trained_reward().model)
        old_rows = retrain(path, self.device, rows, spec, folder, self.loop)
        self.progress.model = str(folder / "model")
        self._load_model()
        return {
            "new_pairs": len(rows),
            "old_rows": old_rows,
            "reward_model": self.progress.model,
        }

    def _load_model(self) -> None:
        """Score with the retrained reward model from now on."""
        if not ranks.current().is_main:
            return
        spec = self._trained_reward().model_copy(update={"model": self.progress.model})
        self.rewards.parts[spec.name] = make_part(
            spec, self.tokenizer, self.loop.token_budget, self.device
        )

    def state(self) -> dict[str, Any]:
        """What resuming needs in addition to ``audit.jsonl``."""
        return asdict(self.progress)

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore ``state``: rewards as the actions left them, and the end of the run."""
        self.progress = GuardState(**state)
        if self.progress.ended is not None:
            self.stage.steps = self.progress.ended
        if self.progress.combine is not None:
            self._switch()
        if self.progress.model is not None:
            self._load_model()
