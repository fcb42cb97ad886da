from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import transformers as tf
from pydantic import ValidationError

from trimtab.errors import ConfigError, ModelError
from trimtab.sample.draw import SamplingConfig, draw, uniforms
from trimtab.sample.sampler import Request, Sampler

V = 61
SMALL = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.4,
}  # fmt: skip
KINDS = {
    "llama": lambda: tf.LlamaConfig(**SMALL),
    "qwen2": lambda: tf.Qwen2Config(**SMALL),
    "qwen3": lambda: tf.Qwen3Config(**SMALL, head_dim=8),
    "mistral": lambda: tf.MistralConfig(**SMALL, sliding_window=4),
    "gemma2": lambda: tf.Gemma2Config(
        **SMALL, head_dim=8, sliding_window=4, attn_logit_softcapping=5.0
    ),
    "gpt2": lambda: tf.GPT2Config(
        vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.4,
        bos_token_id=1, eos_token_id=2,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True, params=[False, True], ids=["rows", "columns"])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of laying out a query's products, whoever made this processor."""
    monkeypatch.setattr("trimtab.sample.kv_cache.query_as_column", lambda: request.param)


def tiny(kind: str = "llama"):
    torch.manual_seed(0)
    return tf.AutoModelForCausalLM.from_config(KINDS[kind](), attn_implementation="eager")


def prompts(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, V, rng.integers(1, 20)) for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_greedy_equals_generate(kind: str) -> None:
    model = tiny(kind).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler = Sampler(model)
    requests = prompts(200 if kind == "llama" else 20)
    got = sampler(
        [Request(p, (0, i)) for i, p in enumerate(requests)],
        SamplingConfig(temperature=0.0, max_new_tokens=12, slots=32),
    )
    assert model.training and model.config._attn_implementation == "eager"
    model.eval()
    stops = 0
    for prompt, (one,) in zip(requests, got, strict=True):
        ids = torch.from_numpy(prompt)[None]
        want = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )
        np.testing.assert_array_equal(one.ids, want[0, len(prompt) :].numpy())
        assert one.finish == ("stop" if one.ids[-1] == 2 else "length")
        stops += one.finish == "stop"
    assert kind != "llama" or stops > 0


@pytest.mark.slow
def test_same_ids_alone_batched_and_in_other_slots() -> None:
    sampler = Sampler(tiny())
    requests = [Request(p, (7, i), n=3) for i, p in enumerate(prompts(12))]
    expected = sampler(requests, SamplingConfig(max_new_tokens=10))
    few = sampler(requests, SamplingConfig(max_new_tokens=10, slots=2))
    sampler.exact = False
    plain = sampler(requests, SamplingConfig(max_new_tokens=10))
    sampler.exact = True
    for i, request in enumerate(requests):
        (alone,) = sampler([request], SamplingConfig(max_new_tokens=10))
        for a, b, c, d in zip(alone, expected[i], few[i], plain[i], strict=True):
            for other in (b, c, d):
                np.testing.assert_array_equal(a.ids, other.ids)
                np.testing.assert_allclose(a.logp, other.logp, atol=1e-4)
    assert any(not np.array_equal(g[0].ids, g[1].ids) for g in expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "gpt2"])
def test_logp_equals_full_forward(kind: str) -> None:
    model = tiny(kind).eval()
    requests = prompts(10)
    config = SamplingConfig(temperature=0.7, max_new_tokens=10, slots=3)
    got = Sampler(model)([Request(p, (1, i), 2) for i, p in enumerate(requests)], config)
    for prompt, group in zip(requests, got, strict=True):
        for one in group:
            ids = torch.from_numpy(np.concatenate([prompt, one.ids]))
            with torch.no_grad():
                logp = (model(ids[None]).logits[0] / 0.7).log_softmax(-1)
            want = logp[torch.arange(len(prompt) - 1, len(ids) - 1), ids[len(prompt) :]]
            np.testing.assert_allclose(one.logp, want.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "keep"),
    [({}, 5), ({"top_k": 3}, 3), ({"top_p": 0.6}, 2), ({"min_p": 0.3}, 3), ({"top_p": 1e-6}, 1)],
)
def test_frequencies_follow_the_renormalised_distribution(settings: dict, keep: int) -> None:
    p = np.array([0.1, 0.4, 0.05, 0.3, 0.15])
    kept_ids = np.zeros(5, bool)
    kept_ids[np.argsort(-p)[:keep]] = True
    want = np.where(kept_ids, p, 0.0) / p[kept_ids].sum()
    count = 20000
    logits = torch.from_numpy(np.log(p)).expand(count, 5)
    ids, logp = draw(logits, torch.from_numpy(uniforms((3,), count)), SamplingConfig(**settings))
    seen = np.bincount(ids.numpy(), minlength=5)
    assert seen[~kept_ids].sum() == 0
    chi = ((seen[kept_ids] - count * want[kept_ids]) ** 2 / (count * want[kept_ids])).sum()
    assert chi < 20.0
    np.testing.assert_allclose(logp.numpy(), np.log(want[ids.numpy()]), atol=1e-5)


class Letters:
    eos_token_id = 2

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(f"<{i}>" for i in ids)


def test_stop_strings_end_with_the_completing_token() -> None:
    sampler = Sampler(tiny(), Letters())
    request = Request(prompts(1)[0], (0,))
    ((free,),) = sampler([request], SamplingConfig(max_new_tokens=20))
    stop = f"<{free.ids[3]}><{free.ids[4]}>"
    ((one,),) = sampler([request], SamplingConfig(max_new_tokens=20, stop=(stop,)))
    np.testing.assert_array_equal(one.ids, free.ids[:5])
    assert one.finish == "stop"
    with pytest.raises(ConfigError, match="tokenizer"):
        Sampler(tiny())([request], SamplingConfig(stop=("x",)))


def test_completions_share_one_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(tiny())
    seen: list[int] = []
    inner = sampler._prefill

    def counted(slots, requests):
        seen.append(len(requests))
        return inner(slots, requests)

    monkeypatch.setattr(sampler, "_prefill", counted)
    got = sampler([Request(prompts(1)[0], (0,), n=9)], SamplingConfig(max_new_tokens=4, slots=2))
    assert seen == [1] and len(got[0]) == 9


def test_limits_and_bad_input() -> None:
    sampler = Sampler(tiny(), stop_ids=())
    ((one,),) = sampler([Request(np.full(62, 5), (0,))], SamplingConfig())
    assert len(one.ids) == 3 and one.finish == "length"
    for bad in (np.full(65, 5), np.zeros(0, np.int64), np.array([V])):
        with pytest.raises(ModelError, match="prompt 1"):
            sampler([Request(bad, (0,))], SamplingConfig())
    assert sampler([], SamplingConfig()) == []
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"slots": 0}, {"max_new_tokens": 0}):
        with pytest.raises(ValidationError):
            SamplingConfig(**wrong)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("n", [1, 3])
def test_fast_decoding_equals_the_models_own_forward(kind: str, n: int) -> None:
    sampler = Sampler(tiny(kind))
    assert sampler.supports_fast
    requests = [Request(p, (5, i), n) for i, p in enumerate(prompts(9))]
    config = SamplingConfig(max_new_tokens=40, slots=8)
    fast = sampler(requests, config)
    sampler.supports_fast = False
    for request, a, b in zip(requests, sampler(requests, config), fast, strict=True):
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            sampled = parted(one.ids, other.ids)
            if sampled is not None:
                # Both are right where the number drawn lies on the edge between two tokens.
                assert edge(kind, request, i, one.ids[:sampled]) < 1e-6
            np.testing.assert_allclose(one.logp[:sampled], other.logp[:sampled], atol=1e-4)


def parted(a: np.ndarray, b: np.ndarray) -> int | None:
    """Where two rows of ids first differ."""
    differs = [i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
    return differs[0] if differs else None if len(a) == len(b) else min(len(a), len(b))


def edge(kind: str, request: Request, i: int, ids: np.ndarray) -> float:
    """How far the number that draws the token after ``ids`` lies from a change of token."""
    cumulative = torch.from_numpy(np.concatenate([request.prompt, ids]))[None]
    with torch.no_grad():
        cdf = tiny(kind).eval()(input_ids=cumulative).logits[0, -1].double().softmax(-1).cumsum(0)
    return float((cdf - uniforms((*request.key, i), len(ids) + 1)[-1]).abs().min())


def test_fast_decoding_follows_the_live_weights_and_adapters() -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny(), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    sampler = Sampler(model)
    assert sampler.supports_fast
    requests = [Request(p, (5, i)) for i, p in enumerate(prompts(4))]
    config = SamplingConfig(max_new_tokens=12)
    before = sampler(requests, config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    after = sampler(requests, config)
    sampler.supports_fast = False
    plain = sampler(requests, config)
    assert any(not np.array_equal(a[0].ids, b[0].ids) for a, b in zip(before, after, strict=True))
    for (one,), (other,) in zip(after, plain, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
    assert not Sampler(tiny("gpt2")).supports_fast


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("part", [32, 1024])
def test_a_common_beginning_is_prefilled_once(
    kind: str, n: int, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts with one system prompt: fewer tokens are computed, and completions stay the same."""
    monkeypatch.setattr("trimtab.sample.sampler.PREFILL_TOKENS", part)
    sampler = Sampler(tiny(kind))
    system = np.random.default_rng(1).integers(3, V, 24)
    begun = [np.concatenate([system, [3 + i], p]) for i, p in enumerate(prompts(8))]
    # Nothing but the system prompt: it leaves one token to compute.
    requests = [Request(p, (2, i), n) for i, p in enumerate([*begun, system])]
    config = SamplingConfig(max_new_tokens=8, slots=5)
    seen: list[int] = []
    inner = sampler._prefill_part

    def counted(slots, part):
        seen.append(sum(len(p) - slots.begun for p in part))
        return inner(slots, part)

    monkeypatch.setattr(sampler, "_prefill_part", counted)
    got = sampler(requests, config)
    assert sum(seen) == 23 + sum(len(r.prompt) - 23 for r in requests)
    seen.clear()
    monkeypatch.setattr("trimtab.sample.sampler.SHORTEST_BEGINNING", 1000)
    want = sampler(requests, config)
    assert sum(seen) == sum(len(r.prompt) for r in requests)
    for group, other in zip(got, want, strict=True):
        for one, two in zip(group, other, strict=True):
            np.testing.assert_array_equal(one.ids, two.ids)
            np.testing.assert_allclose(one.logp, two.logp, atol=1e-4)
    seen.clear()
    sampler([Request(begun[0], (0,), 4)], config)
    assert seen == [len(begun[0])], "one prompt has nothing in common with another"


def test_prompts_are_prefilled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(tiny())
    requests = [Request(p, (5, i), 2) for i, p in enumerate(prompts(12))]
    expected = sampler(requests, SamplingConfig(max_new_tokens=8))
    seen: list[int] = []
    inner = sampler._prefill_part

    def counted(slots, part):
        seen.append(sum(len(p) - slots.begun for p in part))
        return inner(slots, part)

    monkeypatch.setattr("trimtab.sample.sampler.PREFILL_TOKENS", 40)
    monkeypatch.setattr(sampler, "_prefill_part", counted)
    parts = sampler(requests, SamplingConfig(max_new_tokens=8))
    assert len(seen) > 3
    assert max(seen) <= 40
    for a, b in zip(expected, parts, strict=True):
        for one, other in zip(a, b, strict=True):
            np.testing.assert_array_equal(one.ids, other.ids)
