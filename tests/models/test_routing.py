"""Routing replay: at equal weights it changes nothing; after an update it keeps the experts of before."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support import folders
from tests.support.models import tiny
from trimtab.config import build
from trimtab.data.pack import Pack, packs
from trimtab.errors import ConfigError, ModelError
from trimtab.models.forward import set_attention
from trimtab.models.load import LM, ModelSpec
from trimtab.models.packed import PackedLM
from trimtab.models.routing import Routing, RoutingMode, expert_weights, gather_experts, routers_of
from trimtab.train import rl
from trimtab.types import Completion, Group

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "num_local_experts": 5, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LAYOUTS = [(True, True), (False, True), (False, False)]
"""(whether prompts are shared, whether tree attention is used): the ways in which tokens reach a router."""


def mixture(per_token: int = 2) -> nn.Module:
    config = AutoConfig.for_model("mixtral", **SIZES, num_experts_per_tok=per_token)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(4.0)
    return model.eval()


def groups() -> list[Group]:
    rng = np.random.default_rng(3)
    sizes = [(4, [3, 5, 2]), (6, [4]), (2, [1, 6])]
    return [
        Group(
            str(i),
            rng.integers(3, 64, width),
            [Completion(rng.integers(3, 64, n), np.ones(n, bool)) for n in lengths],
        )
        for i, (width, lengths) in enumerate(sizes)
    ]


class Setting:
    """A mixture, its packs, and log-probs with a gradient."""

    def __init__(self, mode: RoutingMode, layout: tuple[bool, bool], per_token: int = 2) -> None:
        share, exact = layout
        self.lm = LM(mixture(per_token), ModelSpec(path="none"))
        self.lm.exact = exact
        self.root = PackedLM(self.lm)
        self.routing = Routing(self.lm, mode)
        self.packs = packs(groups(), 20, share=share)

    def score(self) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.forward(p) for p in self.packs])

    def forward(self, pack: Pack) -> Tensor:
        with self.routing(pack):
            logp = self.root.outputs(pack).logp_C
        assert logp is not None
        return logp

    def train(self) -> Tensor:
        return torch.cat([self.forward(p) for p in self.packs])

    def gradient(self) -> Tensor:
        self.train().sum().backward()
        return torch.cat(
            [p.grad.flatten() for p in self.lm.model.parameters() if p.grad is not None]
        )

    def move_routers(self) -> None:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for router in routers_of(self.lm.model):
                weight: Any = router.weight
                weight.add_(torch.randn(weight.shape, generator=generator))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_at_equal_weights_replay_changes_nothing(layout: tuple[bool, bool]) -> None:
    plain, replayed = Setting("own", layout), Setting("replay", layout)
    assert torch.equal(plain.score(), replayed.score())
    assert torch.equal(plain.gradient(), replayed.gradient())
    assert replayed.routing.metrics() == {"routing/flips": 0.0, "routing/drift": 0.0}
    assert plain.routing.metrics() == {} and replayed.routing.metrics() == {}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_expert_per_token_makes_replay_blind_to_the_router(layout: tuple[bool, bool]) -> None:
    """With one expert its weight is 1, so replay must undo any change of the router.

    Exactly where rows are not padded. Padding keeps to the router, so it changes how many rows an expert
    multiplies at once, and with it the rounding of the others on some processors.
    """
    setting = Setting("replay", layout, per_token=1)
    before = setting.score()
    setting.move_routers()
    gap = float((setting.train() - before).abs().max().detach())
    assert gap == 0.0 if layout[1] else gap < 1e-6
    metrics = setting.routing.metrics()
    assert metrics["routing/flips"] == 0.0 and metrics["routing/drift"] > 0.1
    assert not torch.allclose(setting.score(), before)  # a forward without a gradient records anew


@pytest.mark.parametrize("layout", LAYOUTS)
def test_flips_are_those_of_plain_forwards(layout: tuple[bool, bool]) -> None:
    setting = Setting("watch", layout)

    def experts() -> list[tuple[Tensor, ...]]:
        """By prompt and completion, from a forward of every sequence alone."""
        set_attention(setting.lm.model, "sdpa")
        taken: list[tuple[Tensor, ...]] = []
        for g in groups():
            for c in g.completions:
                rows: list[Tensor] = []
                hooks = [
                    m.register_forward_hook(lambda _m, _i, out, to=rows: to.append(out[2]))
                    for m in routers_of(setting.lm.model)
                ]
                with torch.no_grad():
                    setting.lm.model(
                        input_ids=torch.from_numpy(np.concatenate([g.prompt, c.ids]))[None]
                    )
                for hook in hooks:
                    hook.remove()
                taken.append(tuple(rows))
        return taken

    old = experts()
    setting.score()
    done = [c for p in setting.packs for g in p.groups for c in g.completions]
    by_ids = {c.ids.tobytes(): c.experts for c in done}
    for c, rows in zip([c for g in groups() for c in g.completions], old, strict=True):
        recorded = by_ids[c.ids.tobytes()]
        assert recorded is not None
        assert np.array_equal(recorded, torch.stack(rows, 1).numpy())
    setting.move_routers()
    new = experts()
    plain = setting.train()
    share = layout[0]
    changed = total = 0
    seen: set[str] = set()
    for i, g in enumerate([group for group in groups() for _ in group.completions]):
        start = len(g.prompt) if share and len(g.completions) > 1 and g.id in seen else 0
        seen.add(g.id)
        for x, y in zip(old[i], new[i], strict=True):
            differ = (x.sort(-1).values != y.sort(-1).values).any(-1)[start:]
            changed, total = changed + int(differ.sum()), total + len(differ)
    assert changed > 0
    metrics = setting.routing.metrics()
    assert metrics["routing/flips"] == metrics["routing/drift"] == pytest.approx(changed / total)
    setting.routing.mode = "own"
    assert torch.equal(plain, setting.train())  # watching changes nothing


def test_experts_of_a_shared_prompt_are_put_back_where_they_were() -> None:
    setting = Setting("replay", (True, True))
    setting.score()
    recorded = [gather_experts(p) for p in setting.packs]
    assert all(r.shape == (p.size, 3, 2) for r, p in zip(recorded, setting.packs, strict=True))
    singles = [
        Group(g.id, g.prompt, [c]) for p in setting.packs for g in p.groups for c in g.completions
    ]
    for pack in packs(singles, 1000, share=True):  # as minibatches smaller than a group are
        experts = gather_experts(pack)
        for segment, g in zip(pack.segments, pack.groups, strict=True):
            part = experts[segment.start : segment.start + segment.length].numpy()
            assert np.array_equal(part, g.completions[0].experts)


def test_weights_are_those_of_the_routers_family() -> None:
    logits, chosen = torch.tensor([[0.0, math.log(3.0), math.log(4.0)]]), torch.tensor([[1, 2]])
    router = nn.Linear(1, 1)
    assert expert_weights(router, logits, chosen).tolist()[0] == pytest.approx([3 / 7, 4 / 7])
    router.norm_topk_prob = False  # pyright: ignore[reportArgumentType]
    assert expert_weights(router, logits, chosen).tolist()[0] == pytest.approx([3 / 8, 4 / 8])


def test_what_cannot_be_replayed_is_refused() -> None:
    dense = LM(tiny("llama"), ModelSpec(path="none"))
    with pytest.raises(ModelError, match="LlamaForCausalLM has no router"):
        Routing(dense, "replay")
    assert Routing(dense, "own").metrics() == {}
    lm = LM(mixture(), ModelSpec(path="none"))
    lm.model.gradient_checkpointing_enable()  # pyright: ignore[reportCallIssue]
    with pytest.raises(ConfigError, match=r"model\.gradient_checkpointing"):
        Routing(lm, "watch")
    setting = Setting("replay", (True, True))
    routers_of(setting.lm.model)[1].norm_topk_prob = False  # pyright: ignore[reportArgumentType]
    with pytest.raises(ModelError, match="weighs its experts in another way"):
        setting.score()


def test_in_rl_flips_fall_to_zero(tmp_path: Path) -> None:
    mixture().save_pretrained(tmp_path / "model")
    folders.tokenizer().save_pretrained(tmp_path / "model")
    folders.prompts(tmp_path / "prompts.jsonl", 16)
    measured: dict[str, dict[str, float]] = {}
    for mode in ("own", "watch", "replay"):
        method = {"type": "grpo", "group_size": 4, "updates": {"minibatches": 4}}
        values = folders.rl_settings(tmp_path, tmp_path / mode, method=method, routing=mode)
        stage = rl.RLStage(build(rl.RLConfig, {**values, "batch_size": 4, "optim": {"lr": 2e-2}}))
        measured[mode] = stage.step(0)
        stage.close()
    assert "routing/flips" not in measured["own"]
    assert measured["watch"]["routing/flips"] > 0.01
    assert measured["replay"]["routing/flips"] == 0.0 < measured["replay"]["routing/drift"]
    # The first of the four updates is at equal weights; watching changes none of them.
    assert measured["watch"]["policy/loss"] == measured["own"]["policy/loss"]
    assert measured["replay"]["policy/loss"] != measured["own"]["policy/loss"]
