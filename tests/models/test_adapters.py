"""Whatever adapters a run starts from and trains, its export is the model that it ended with."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    TaskType,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import trimtab as tt
from tests.support import folders
from tests.support.models import tiny
from trimtab.data.pack import build
from trimtab.errors import ConfigError, ModelError
from trimtab.models.export import save_model
from trimtab.models.heads import Scorer
from trimtab.models.load import LM
from trimtab.models.lora import LoraSpec
from trimtab.models.model_spec import ModelSpec
from trimtab.rewards.part_config import RewardSpec
from trimtab.rewards.weighted_sum import Rewards
from trimtab.sample.sampler import Request, Sampler, SamplingConfig
from trimtab.types import Completion, Group

IDS = np.array([4, 9, 20, 7, 11, 8, 25, 13, 2])
PROMPT = 4
CASES = [
    (("q_proj", "up_proj"), ()),
    (("q_proj", "embed_tokens"), ()),
    (("lm_head",), ()),
    (("embed_tokens", "lm_head", "v_proj"), ()),
    (("q_proj",), ("embed_tokens",)),
    (("v_proj",), ("lm_head",)),
]
STARTS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("base", {"lora": True}, ("merged", "adapter")),
    ("adapter", {"adapter": "continue"}, ("merged", "adapter")),
    ("adapter", {"lora": True}, ("merged", "adapter")),
    ("adapter", {}, ("merged",)),
]


def group() -> Group:
    ids = IDS[PROMPT:]
    return Group("0", IDS[:PROMPT], [Completion(ids, np.ones(len(ids), dtype=bool))])


def nll(lm: LM) -> float:
    """Mean NLL of the completion, by the packed forward."""
    pack = build([group()], share=lm.exact)
    lm.model.eval()
    with torch.no_grad():
        return -float(lm.logps(lm.states(pack), pack)[0].mean())


def plain_nll(model: Any) -> float:
    """The same, by transformers."""
    ids = torch.from_numpy(IDS)[None]
    with torch.no_grad():
        logp = model.eval()(input_ids=ids).logits[0].log_softmax(-1)
    return -float(logp[PROMPT - 1 : -1].gather(1, ids[0, PROMPT:, None]).mean())


def shake(model: Any, seed: int, scale: float = 0.3) -> None:
    """What training does to the trained weights."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(scale * torch.randn(p.shape, generator=draws) if p.ndim > 1 else 0.0)


def lm_folder(path: Path, *, tied: bool) -> Path:
    tiny("llama", tie_word_embeddings=tied).save_pretrained(path)
    folders.tokenizer().save_pretrained(path)
    return path


def adapter_folder(path: Path, base: Path, targets: Any, modules: Any) -> Path:
    """An adapter as peft and TRL save it; without a tokenizer, as peft."""
    config = LoraConfig(
        r=3, lora_alpha=6, target_modules=list(targets), modules_to_save=list(modules) or None,
        task_type=TaskType.CAUSAL_LM,
    )  # fmt: skip
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    shake(model, 5)
    model.save_pretrained(path, save_embedding_layers=False)
    return path


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("tied", "targets", "modules"),
    [
        pytest.param(tied, *case, marks=() if tied and n in (3, 4) else pytest.mark.slow)
        for tied in (False, True)
        for n, case in enumerate(CASES)
    ],
)
def test_the_export_is_the_trained_model(
    tied: bool, targets: tuple[str, ...], modules: tuple[str, ...], tmp_path: Path
) -> None:
    base = lm_folder(tmp_path / "lm", tied=tied)
    first = adapter_folder(tmp_path / "first", base, targets, modules)
    starts = {"base": base, "adapter": first}
    began = {
        "base": plain_nll(AutoModelForCausalLM.from_pretrained(base)),
        "adapter": plain_nll(AutoPeftModelForCausalLM.from_pretrained(first)),
    }
    assert abs(began["base"] - began["adapter"]) > 0.01
    lora = LoraSpec(r=4, targets=targets, modules_to_save=modules)
    for n, (start, keys, exports) in enumerate(STARTS):
        keys = {**keys, "lora": lora} if "lora" in keys else keys
        spec = ModelSpec(path=str(starts[start]), device="cpu", **keys)
        lm = LM.load(spec)
        assert nll(lm) == pytest.approx(began[start], abs=1e-4), (start, keys)
        shake(lm.model, n)
        want = nll(lm)
        assert abs(want - began[start]) > 0.01
        if lm.starts_without_adapters:
            with lm.adapters_off():
                assert nll(lm) == pytest.approx(began[start], abs=1e-4)
        for export in exports:
            out = tmp_path / f"{n}-{export}" / "model"
            save_model(lm.model, out, folders.tokenizer(), adapter=export == "adapter")
            assert nll(lm) == pytest.approx(want, abs=1e-6)  # the export changes nothing
            readers = [AutoModelForCausalLM] + [AutoPeftModelForCausalLM] * (export == "adapter")
            for reader in readers:
                got = plain_nll(reader.from_pretrained(out))
                assert got == pytest.approx(want, abs=1e-4), (start, keys, export, reader)
            again = LM.load(ModelSpec(path=str(out), device="cpu"), train=False)
            assert nll(again) == pytest.approx(want, abs=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_sampling_uses_adapters_of_the_embeddings(tied: bool, tmp_path: Path) -> None:
    base = lm_folder(tmp_path / "lm", tied=tied)
    lora = LoraSpec(r=4, targets=("embed_tokens", "lm_head"))
    lm = LM.load(ModelSpec(path=str(base), device="cpu", lora=lora))
    shake(lm.model, 1)
    sampler = Sampler(lm.plain_attention(), stop_ids=())
    sampled = sampler([Request(IDS[:PROMPT], (0,))], SamplingConfig(max_new_tokens=6))[0][0]
    ids = sampled.ids
    pack = build([Group("0", IDS[:PROMPT], [Completion(ids, np.ones(len(ids), dtype=bool))])])
    with torch.no_grad():
        logp = lm.logps(lm.states(pack), pack)[0]
    torch.testing.assert_close(logp, torch.from_numpy(sampled.logp), atol=1e-4, rtol=1e-4)


def scores(scorer: Scorer) -> float:
    pack = build([group()], share=scorer.exact)
    scorer.model.eval()
    with torch.no_grad():
        return float(scorer.scores(pack)[0])


def plain_score(model: Any) -> float:
    with torch.no_grad():
        return float(model.eval()(input_ids=torch.from_numpy(IDS)[None]).logits[0, 0])


def reward_adapter(path: Path, base: Path) -> Path:
    """A reward model as TRL saves it with peft: no config.json, the head in modules_to_save."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    config = LoraConfig(r=3, target_modules=["q_proj"], task_type=TaskType.SEQ_CLS)
    peft_model = get_peft_model(model, config)
    shake(peft_model, 7)
    peft_model.save_pretrained(path)
    folders.tokenizer().save_pretrained(path)
    return path


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.slow
def test_reward_models_with_adapters(tmp_path: Path) -> None:
    base = lm_folder(tmp_path / "lm", tied=True)
    starts = {
        "lm": base,
        "sft": adapter_folder(tmp_path / "sft", base, ("q_proj", "lm_head"), ()),
        "rm": reward_adapter(tmp_path / "rm", base),
    }
    theirs = AutoPeftModelForSequenceClassification.from_pretrained(starts["rm"], num_labels=1)
    frozen = Scorer.load(ModelSpec(path=str(starts["rm"]), device="cpu"), train=False)
    assert scores(frozen) == pytest.approx(plain_score(theirs), abs=1e-4)
    with pytest.raises(ModelError, match="would be random"):
        Scorer.load(ModelSpec(path=str(starts["sft"]), device="cpu"), train=False)
    ways: list[tuple[str, dict[str, Any]]] = [
        ("lm", {"lora": LoraSpec(r=4)}),
        *itertools.product(["sft", "rm"], [{"lora": LoraSpec(r=4)}, {"adapter": "continue"}, {}]),
    ]
    for n, (start, keys) in enumerate(ways):
        spec = ModelSpec(path=str(starts[start]), device="cpu", **keys)
        scorer = Scorer.load(spec, pad_id=0)
        if start == "rm":
            assert scores(scorer) == pytest.approx(plain_score(theirs), abs=1e-4)
        shake(scorer.model, n)
        scorer.set_normalisation(0.25, 3.0)
        want = scores(scorer)
        for export in ("merged", "adapter")[: 1 + spec.trains_adapters]:
            out = tmp_path / f"{n}-{export}" / "model"
            save_model(scorer.model, out, folders.tokenizer(), adapter=export == "adapter")
            if export == "merged":
                plain = AutoModelForSequenceClassification.from_pretrained(out)
                assert plain.config.pad_token_id == 0
            else:
                plain = AutoPeftModelForSequenceClassification.from_pretrained(out, num_labels=1)
            assert plain_score(plain) == pytest.approx(want, abs=1e-4), (start, keys, export)
            again = Scorer.load(ModelSpec(path=str(out), device="cpu"), train=False)
            assert scores(again) == pytest.approx(want, abs=1e-4)
            assert (again.mean, again.std) == (0.25, 3.0)


RUNS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("sft", {"lora": {"r": 4, "targets": ["embed_tokens", "q_proj"]}}, {}),
    ("sft", {"adapter": "continue"}, {"export": "adapter"}),
    ("dpo", {"adapter": "continue"}, {}),
    ("dpo", {"lora": {"r": 4}}, {"export": "adapter"}),
    ("dpo", {}, {}),
    ("rl", {"adapter": "continue"}, {"export": "adapter"}),
    ("rl", {"lora": {"r": 4}}, {}),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("stage", "model", "keys"), RUNS)
def test_stages_from_an_adapter(
    stage: str, model: dict[str, Any], keys: dict[str, Any], tmp_path: Path
) -> None:
    """The reference is the start, adapter included; the export is the model of the last checkpoint."""
    base = lm_folder(tmp_path / "lm", tied=True)
    start = adapter_folder(tmp_path / "start", base, ("q_proj", "lm_head"), ())
    spec = {"path": str(start), "device": "cpu", **model}
    keys = {"batch_size": 4, "optim": {"lr": 1e-2}, "out": tmp_path / "run", **keys}
    if stage == "sft":
        run = tt.sft(spec, str(folders.demonstrations(tmp_path / "d.jsonl", 8)), **keys)
    elif stage == "dpo":
        run = tt.dpo(spec, str(folders.comparisons(tmp_path / "c.jsonl", 8)), **keys)
        assert run.metrics["loss"].iloc[0] == pytest.approx(np.log(2), abs=1e-4)
    else:
        method = tt.GRPO(group_size=2, kl={"beta": 0.1})
        data = str(folders.prompts(tmp_path / "p.jsonl", 4))
        sampling = {"max_new_tokens": 4}
        run = tt.rl(spec, data, [folders.wordy], method=method, steps=2, sampling=sampling, **keys)
        assert run.metrics["objective/kl"].iloc[0] == pytest.approx(0.0, abs=1e-5)
    trained = LM.load(ModelSpec(**spec))
    before = nll(trained)
    [checkpoint] = (run.path / "checkpoints").glob("step-*")
    [file] = [f for f in checkpoint.glob("params.*.safetensors") if "critic" not in f.name]
    tensors = load_file(file)
    with torch.no_grad():
        for name, p in trained.model.named_parameters():
            if p.requires_grad:
                p.copy_(tensors[name])
    want = nll(trained)
    assert abs(want - before) > 1e-3
    assert plain_nll(run.load_model()[0]) == pytest.approx(want, abs=1e-4)


def test_an_exported_adapter_names_its_base_by_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = lm_folder(tmp_path / "lm", tied=False)
    monkeypatch.chdir(tmp_path)
    start = adapter_folder(Path("adapter"), Path("lm"), ("q_proj",), ())
    for path, keys in ((start, {"adapter": "continue"}), (Path("lm"), {"lora": LoraSpec(r=2)})):
        lm = LM.load(ModelSpec(path=str(path), device="cpu", **keys))
        out = Path(f"out-{path.name}") / "model"
        save_model(lm.model, out, folders.tokenizer(), adapter=True)
        values = json.loads((out / "adapter_config.json").read_text())
        assert values["base_model_name_or_path"] == str(base.resolve())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_reward_model_is_exported_as_an_adapter(tmp_path: Path) -> None:
    base = lm_folder(tmp_path / "lm", tied=True)
    spec = {"path": str(base), "device": "cpu", "lora": {"r": 4}}
    data = str(folders.comparisons(tmp_path / "pairs.jsonl", 8))
    keys = {"out": tmp_path / "run", "optim": {"lr": 1e-2}, "batch_size": 4, "export": "adapter"}
    run = tt.reward_model(spec, data, **keys)
    assert not (Path(run.model) / "model.safetensors").exists()
    frozen = Scorer.load(ModelSpec(path=run.model, device="cpu"), train=False)
    assert frozen.std not in (0.0, 1.0)
    plain, tokens = run.load_model()
    assert plain_score(plain) == pytest.approx(scores(frozen), abs=1e-4)
    # The statistics reach a policy's run, and the merged model of a later one.
    part = Rewards([RewardSpec(name="rm", model=run.model)], tokens, 99, "cpu").parts["rm"]
    assert (part.members[0].mean, part.members[0].std) == (frozen.mean, frozen.std)  # type: ignore[attr-defined]


def test_adapters_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    base = lm_folder(tmp_path / "lm", tied=False)
    path = adapter_folder(tmp_path / "adapter", base, ("q_proj",), ())

    def load(**keys: Any) -> LM:
        return LM.load(ModelSpec(path=str(path), device="cpu", **keys))

    with pytest.raises(ModelError, match="holds no adapter to continue"):
        LM.load(ModelSpec(path=str(base), adapter="continue"))
    with pytest.raises(ConfigError, match="starts a new one"):
        tt.sft({"path": str(path), "adapter": "continue", "lora": {"r": 2}}, "x.jsonl")
    with pytest.raises(ConfigError, match="export: adapter needs"):
        tt.sft(str(path), "x.jsonl", export="adapter")
    weights = load_file(path / "adapter_model.safetensors")
    one, *others = sorted(weights)
    save_file({n: weights[n] for n in others}, path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="the adapter lacks weights"):
        load()
    odd = {**weights, one.replace("layers.0", "layers.7"): weights[one].clone()}
    save_file(odd, path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"the adapter has weights .*layers\.7"):
        load()
    save_file({**weights, one: torch.zeros(3, 5)}, path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="does not fit its base"):
        load(adapter="continue")
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        load()
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="which one is meant"):
        load()
    (path / "model.safetensors").unlink()
    values = json.loads((path / "adapter_config.json").read_text())
    gone = {**values, "base_model_name_or_path": str(tmp_path / "gone")}
    (path / "adapter_config.json").write_text(json.dumps(gone))
    with pytest.raises(ModelError, match="the base of the adapter in"):
        load()
    itself = {**values, "base_model_name_or_path": str(path)}
    (path / "adapter_config.json").write_text(json.dumps(itself))
    with pytest.raises(ModelError, match="is an adapter too"):
        load()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("tied", "modules"), [(True, None), (False, None), (False, ["embed_tokens", "lm_head"])]
)
def test_an_adapter_with_more_tokens_than_its_base(
    tied: bool, modules: list[str] | None, tmp_path: Path
) -> None:
    base = lm_folder(tmp_path / "lm", tied=tied)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(70)
    config = LoraConfig(
        r=3, target_modules=["q_proj"], modules_to_save=modules, task_type=TaskType.CAUSAL_LM
    )
    wider = get_peft_model(model, config)
    shake(wider, 3)
    want = plain_nll(wider)
    wider.save_pretrained(tmp_path / "adapter")
    spec = ModelSpec(path=str(tmp_path / "adapter"), device="cpu", adapter="continue")
    lm = LM.load(spec)
    assert nll(lm) == pytest.approx(want, abs=1e-4)
    for export in ("merged", "adapter"):
        out = tmp_path / export / "model"
        save_model(lm.model, out, folders.tokenizer(), adapter=export == "adapter")
        again = LM.load(ModelSpec(path=str(out), device="cpu"), train=False)
        assert again.model.config.vocab_size == 70
        assert nll(again) == pytest.approx(want, abs=1e-4)
