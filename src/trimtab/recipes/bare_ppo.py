"""PPO on one page, on the library's own parts: python -m trimtab.recipes.bare_ppo [STEPS].

The loop that ``trimtab rl`` runs, without its run folder, resume and metrics. The reward is the
sandbox's gold score, so the printed numbers should rise.
"""

import sys
from pathlib import Path

import numpy as np
import torch

import trimtab
from trimtab.data.load_tokenizer import load_tokenizer
from trimtab.data.pack import Output, Pack, packs, scatter
from trimtab.data.render import Renderer
from trimtab.datagen.sandbox_data import prompt_groups
from trimtab.models.heads import Scorer
from trimtab.models.load import LM, ModelSpec
from trimtab.objectives.advantage import gae, token_rewards
from trimtab.objectives.kl import log_ratio
from trimtab.objectives.methods.ppo import PPO
from trimtab.objectives.policy import UpdateSpec
from trimtab.objectives.tensors import pad_rows, unpad_rows, whiten
from trimtab.rollout.collector import collect
from trimtab.rollout.engines.native import NativeEngine
from trimtab.sample.sampler import SamplingConfig
from trimtab.sandbox.world import gold_reward, make_scenes


def main(steps: int) -> None:
    """Train the sandbox's base model for ``steps`` iterations and print each one's scores."""
    base = ModelSpec(path=str(Path(trimtab.__file__).parent / "sandbox" / "base"))
    tokenizer = load_tokenizer(base.path)
    renderer = Renderer(tokenizer, max_prompt_length=512, max_completion_length=64)
    prompts = prompt_groups(make_scenes(2000, 0), renderer)

    actor = LM.load(base)
    critic = Scorer.load(base, zero=True)
    reference = actor.frozen_copy()
    engine = NativeEngine.of(actor, renderer)
    sampling = SamplingConfig(max_new_tokens=40)
    method = PPO(updates=UpdateSpec(epochs=2))
    beta, batch, budget = 0.02, 128, 8192
    optimizer = torch.optim.AdamW([*actor.model.parameters(), *critic.model.parameters()], lr=2e-4)

    def forward(pack: Pack) -> Output:
        """Actor and critic on one pack."""
        logp, entropy = actor.logps(actor.states(pack), pack)
        return Output(logp_C=logp, entropy_C=entropy, value_C=critic.values(pack))

    for step in range(steps):
        # 1. Sample completions and score them.
        picked = [prompts[i] for i in np.random.default_rng(step).choice(len(prompts), batch)]
        groups = collect(engine, renderer, picked, sampling, n=1, key=(0, step))
        completions = [c for g in groups for c in g.completions]
        scenes = [g.extra["scene"] for g in groups]
        final = torch.tensor(
            gold_reward([g.text for g in groups], [c.text for c in completions], scene=scenes)
        )

        # 2. Old and reference log-probs and values, on every token.
        with torch.no_grad():
            for pack in packs(groups, budget):
                out = forward(pack)
                ref, _ = reference.logps(reference.states(pack), pack)
                columns = {"old_logp": out.logp_C, "value": out.value_C, "ref_logp": ref}
                scatter(pack, {k: v.numpy() for k, v in columns.items() if v is not None})

        # 3. Advantages: KL in the reward, generalised advantage estimation.
        mask = pad_rows([c.mask for c in completions])
        old, ref, value = (
            pad_rows([c.tokens[k] for c in completions]) for k in ("old_logp", "ref_logp", "value")
        )
        kl = log_ratio(old, ref)
        rewards = token_rewards(final, kl, mask, beta)
        advantage, returns = gae(rewards, value, mask, method.advantage.gamma, method.advantage.lam)
        lengths = [len(c) for c in completions]
        for name, rows in (("advantage", whiten(advantage, mask)), ("return", returns)):
            for c, row in zip(completions, unpad_rows(rows, lengths), strict=True):
                c.tokens[name] = row

        # 4. Clipped updates; sums are divided by the counts of the whole step.
        for _ in range(method.updates.epochs):
            optimizer.zero_grad()
            tokens = sum(c.trained for c in completions)
            for pack in packs(groups, budget):
                terms = method(forward(pack), pack).terms.values()
                torch.stack([t.coef * t.sum / tokens for t in terms]).sum().backward()
            torch.nn.utils.clip_grad_norm_(actor.model.parameters(), 1.0)
            optimizer.step()
        print(
            f"step {step:3d}  gold {final.mean():.3f}  kl {torch.where(mask, kl, 0 * kl).sum(1).mean():.3f}"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
