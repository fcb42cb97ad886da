"""A reward model scores the text that its chat template renders, at its last token, like every client."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support import templates
from tests.support.folders import write
from trimtab.data.formats import Example
from trimtab.data.load_tokenizer import load_tokenizer
from trimtab.data.render import Renderer
from trimtab.evaluate.accuracy import AccuracyConfig
from trimtab.evaluate.accuracy import main as accuracy
from trimtab.probe.probed_reward import ProbedReward
from trimtab.rewards.part_config import RewardSpec
from trimtab.rewards.weighted_sum import Rewards
from trimtab.train.reward import RewardConfig, RewardStage
from trimtab.train.reward import main as train_reward

Q = [{"role": "user", "content": "two plus two"}]
TEXTS = ["four", "seven is the sky", "four and three is seven ."]


def answer(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def classifier(path: Path, template: str, seed: int = 1) -> Path:
    """A reward model as transformers and TRL save one."""
    templates.model_folder(path, template, seed=seed)
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
    model.config.pad_token_id = 0
    model.save_pretrained(path)
    return path


def by_transformers(path: Path, texts: list[str], side: str) -> list[float]:
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side=side)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    batch = tokenizer.apply_chat_template(
        [[*Q, *answer(t)] for t in texts], tokenize=True, padding=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip
    with torch.no_grad():
        return model(**batch).logits[:, 0].tolist()


def by_trimtab(path: Path, policy: Any, groups: list[Any]) -> list[float]:
    rewards = Rewards([RewardSpec(name="rm", model=str(path))], policy, 512, "cpu")
    member = rewards.parts["rm"].members[0]  # pyright: ignore[reportAttributeAccessIssue]
    return member.scores(groups).tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "policy_template"),
    [("chatml", "chatml"), ("chatml", "space"), ("drops", "drops"), ("drops", "chatml"),
     ("zephyr", "zephyr"), ("prefills", "prefills"), ("last_end", "last_end"), ("no_end", "no_end")],
)  # fmt: skip
def test_scores_equal_those_of_transformers(
    template: str, policy_template: str, tmp_path: Path
) -> None:
    path = classifier(tmp_path / "rm", templates.ALL[template])
    policy = load_tokenizer(str(path))
    policy.chat_template = templates.ALL[policy_template]
    renderer = Renderer(policy)
    sampled = renderer.prompt(Example("0", Q, []))
    assert sampled is not None
    for text in TEXTS:
        ids = [*policy(text, add_special_tokens=False)["input_ids"], renderer.eos]
        sampled.completions.append(renderer.completion(np.array(ids), "stop"))
    scores = by_trimtab(path, policy, [sampled])
    for side in ("left", "right"):
        assert scores == pytest.approx(by_transformers(path, TEXTS, side), abs=1e-5)


def test_accuracy_and_probes_score_what_clients_score(tmp_path: Path) -> None:
    path = classifier(tmp_path / "rm", templates.CHATML)
    rng = random.Random(0)
    texts = [
        " ".join(rng.choices(["two", "four", "seven", "is", "sky", "blue"], k=4)) for _ in range(40)
    ]
    rows: list[dict[str, object]] = [
        {"prompt": Q, "chosen": answer(a + " yes"), "rejected": answer(b)}
        for a, b in zip(texts[::2], texts[1::2], strict=True)
    ]
    data = write(tmp_path / "pairs.jsonl", rows)
    chosen = [text + " yes" for text in texts[::2]]
    scores = by_transformers(path, [*chosen, *texts[1::2]], "left")
    wanted = sum(a > b for a, b in zip(scores[:20], scores[20:], strict=True)) / 20
    assert 0.0 < wanted < 1.0
    config = AccuracyConfig.model_validate(
        {"out": str(tmp_path / "accuracy"), "rewards": [{"name": "rm", "model": str(path)}],
         "data": {"pairs": str(data)}, "tokenizer": str(path), "device": "cpu"}
    )  # fmt: skip
    assert accuracy(config)["rm"]["pairs"]["accuracy"] == pytest.approx(wanted)
    probed = ProbedReward(RewardSpec(name="reward", model=str(path)), None, None, 512, "cpu")
    group = probed.groups([(Q, TEXTS, {})])
    assert probed.scores(group)[0] == pytest.approx(by_transformers(path, TEXTS, "left"), abs=1e-5)


def test_another_vocabulary_scores_the_same_text(tmp_path: Path) -> None:
    path = classifier(tmp_path / "rm", templates.CHATML)
    policy = templates.tokenizer(templates.ZEPHYR, "first")
    group = Renderer(policy).comparison(Example("0", Q, [answer(t) for t in TEXTS]))
    assert group is not None
    assert by_trimtab(path, policy, [group]) == pytest.approx(
        by_transformers(path, TEXTS, "right"), abs=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("template", ["chatml", "drops", "prefills"])
def test_training_reads_what_clients_read(template: str, tmp_path: Path) -> None:
    start = templates.model_folder(tmp_path / "start", templates.ALL[template])
    rows: list[dict[str, object]] = [
        {"prompt": Q, "chosen": answer(TEXTS[0]), "rejected": answer(TEXTS[1])}
    ] * 4
    data = write(tmp_path / "pairs.jsonl", rows)
    config = RewardConfig.model_validate(
        {"out": str(tmp_path / "rm"), "model": {"path": str(start), "device": "cpu"}, "data": str(data),
         "batch_size": 2, "optim": {"lr": 1e-3}}
    )  # fmt: skip
    stage = RewardStage(config)
    tokenizer = stage.renderer.tokenizer
    for group in stage.train:
        for c, text in zip(group.completions, TEXTS, strict=False):
            ids = tokenizer.apply_chat_template([*Q, *answer(text)], return_dict=False)
            assert [*group.prompt, *c.ids] == ids
    train_reward(config)
    wanted = by_transformers(tmp_path / "rm" / "model", TEXTS, "left")
    group = stage.renderer.scoring(Example("0", Q, [answer(t) for t in TEXTS]))
    got = by_trimtab(tmp_path / "rm" / "model", tokenizer, [group])
    assert got == pytest.approx(wanted, abs=1e-5)


def test_plain_text_keeps_the_space_in_front_of_a_completion(tmp_path: Path) -> None:
    path = classifier(tmp_path / "rm", templates.CHATML)
    policy = templates.tokenizer(templates.CHATML, "legacy")
    group = Renderer(policy).comparison(Example("0", "two plus two is", [" four", "four"]))
    assert group is not None
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        wanted = [
            float(model(**tokenizer("two plus two is" + t + "<eos>", return_tensors="pt")).logits)
            for t in (" four", "four")
        ]
    assert by_trimtab(path, policy, [group]) == pytest.approx(wanted, abs=1e-5)


def test_a_thought_that_the_prompt_begins_is_scored_whole(tmp_path: Path) -> None:
    raw = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
    )
    renderer = Renderer(templates.tokenizer(raw))
    group = renderer.prompt(Example("0", Q, []))
    assert group is not None
    ids = renderer.tokenizer("add them\n</think>\nfour<eos>", add_special_tokens=False)["input_ids"]
    group.completions.append(renderer.completion(np.array(ids), "stop"))
    scored = renderer.rerender(group)
    text = renderer.tokenizer.decode([*scored.prompt, *scored.completions[0].ids])
    assert text == "<|user|>two plus two<eos><|assistant|><think>\nadd them\n</think>\nfour<eos>"
