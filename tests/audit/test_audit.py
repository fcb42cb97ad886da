"""The gold audit: what it reads, people in the loop, and a guard that acts on a hacked run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from tests.support import folders
from tests.support.audit_rewards import not_red
from trimtab.audit import audit_run, gold_audit
from trimtab.audit.gold_audit import FILE, AuditedRollout, blocks, read_audit, write_audit
from trimtab.audit.run_settings import RunSettings
from trimtab.cli.main import main as cli
from trimtab.config import build, merge
from trimtab.doctor.remedies import CATALOGUE, to_yaml
from trimtab.doctor.remedy_command import of_alarm
from trimtab.errors import ConfigError, DataError
from trimtab.feedback.judgement import Item, Judgement
from trimtab.models import checkpoint
from trimtab.runs import Run, read_metrics, read_samples
from trimtab.train import reward
from trimtab.train import rl as policy


def rows(n: int, gold: Any, proxy: Any, kl: Any) -> list[AuditedRollout]:
    rng = np.random.default_rng(0)
    return [
        AuditedRollout(
            step=1 + i // 4, prompt_id=str(i), proxy=proxy(i / n),
            gold=float(np.clip(rng.normal(gold(i / n), 0.15), 0, 1)), kl_mean=kl(i / n),
        )
        for i in range(n)
    ]  # fmt: skip


def hump(x: float) -> float:
    return 0.5 + 1.6 * x - 1.9 * x * x


def test_a_hacked_run_is_read_so() -> None:
    rollouts = rows(400, hump, lambda x: x, lambda x: 9 * x * x)
    summary = gold_audit.summarise(rollouts)
    assert summary.hacked and summary.p < 0.01 and summary.proxy_gain > 0
    assert summary.gold is not None and summary.gold.r2 > 0.6
    assert summary.gold.peak[1] < 3 * 0.5 < summary.gold.peak[2] + 1
    assert summary.past_peak
    assert summary.best is not None and 0.2 < summary.best.last / 100 < 0.75
    # The same with the gold scores in any order says nothing.
    order = np.random.default_rng(1).permutation(len(rollouts))
    blind = [
        r.model_copy(update={"gold": rollouts[int(i)].gold})
        for r, i in zip(rollouts, order, strict=True)
    ]
    assert not gold_audit.summarise(blind).hacked


def test_a_sound_run_is_not() -> None:
    summary = gold_audit.summarise(rows(400, lambda x: 0.5 + 0.4 * x, lambda x: x, lambda x: 4 * x))
    assert not summary.hacked and not summary.past_peak and summary.p > 0.05
    # Gold and reward fall together: something broke, but nobody was cheated.
    fell = gold_audit.summarise(rows(400, lambda x: 0.9 - 0.7 * x, lambda x: -x, lambda x: 4 * x))
    assert fell.p < 0.01 and not fell.hacked


def test_without_kl_there_is_no_curve() -> None:
    rollouts = [r.model_copy(update={"kl_mean": None}) for r in rows(80, hump, abs, lambda x: x)]
    assert gold_audit.summarise(rollouts).gold is None
    assert gold_audit.summarise([]).n == 0 and math.isnan(gold_audit.summarise([]).proxy_gain)
    assert [b.last for b in blocks(rollouts, 32)] == [8, 16]


def test_a_line_that_is_wrong_is_named(tmp_path: Path) -> None:
    write_audit(tmp_path, rows(3, hump, abs, abs))
    with (tmp_path / FILE).open("a") as handle:
        handle.write('{"step": 1, "prompt_id": "x", "proxy": 1')
    assert len(read_audit(tmp_path)) == 3, "torn by a crash"
    with (tmp_path / FILE).open("a") as handle:
        handle.write("\n{}\n")
    with pytest.raises(DataError, match=r"audit\.jsonl, line 4"):
        read_audit(tmp_path)


# A real run, small ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    folders.model_folder(folder / "model")
    folders.prompts(folder / "prompts.jsonl", 32)
    folders.comparisons(folder / "pairs.jsonl", 40)
    return folder


def rl(base: Path, out: Path, **more: Any) -> dict[str, Any]:
    return {
        "out": str(out), "model": {"path": str(base / "model"), "device": "cpu"},
        "data": {"path": str(base / "prompts.jsonl")},
        "rewards": [{"name": "red", "function": "tests.support.audit_rewards:red"}],
        "method": {"type": "rloo", "group_size": 4, "kl": {"beta": 0.0}}, "sampling": {"max_new_tokens": 6},
        "steps": 40, "batch_size": 8, "optim": {"lr": 1e-2, "lr_scheduler_type": "constant"},
        "audit": {"gold": {"function": "tests.support.audit_rewards:not_red"}, "share": 1.0, "block_size": 32},
        **more,
    }  # fmt: skip


def trained(settings: dict[str, Any]) -> list[dict[str, Any]]:
    policy.main(build(policy.RLConfig, settings))
    return read_metrics(settings["out"])


def acted(out: Path) -> list[dict[str, Any]]:
    path = out / "actions.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def audit_of(base: Path, **more: Any) -> dict[str, Any]:
    return {**rl(base, base)["audit"], **more}


@pytest.fixture(scope="module")
def stopped(base: Path) -> Path:
    out = base / "stopped"
    trained(rl(base, out, audit=audit_of(base, act="stop"), loop={"sample_steps": 1}))
    return out


@pytest.mark.slow
def test_stop_returns_to_the_best_audited_policy(base: Path, stopped: Path) -> None:
    metrics = read_metrics(stopped)
    (action,) = acted(stopped)
    assert action["action"] == "stop" and action["p"] < 0.01 and action["proxy_gain"] > 0
    assert len(metrics) == action["step"] < 40
    assert action["back_to"] < action["since"] + 8
    assert all("objective/kl" in m and "audit/p" in m for m in metrics)
    # The exported model is the best one; the hacked one lies beside it.
    saved = checkpoint.read(next((stopped / "best").glob("step-*")))
    best, now, undo = (
        saved.tensors("params.policy"), load_file(stopped / "model" / "model.safetensors"),
        load_file(Path(action["undo"]) / "model.safetensors"),
    )  # fmt: skip
    name = "model.norm.weight"
    assert (now[name] == best[name]).all() and not (undo[name] == best[name]).all()
    # Again, it goes on from its end: nothing is trained, nothing audited twice.
    before = (stopped / FILE).read_bytes()
    trained(rl(base, stopped, audit=audit_of(base, act="stop"), loop={"sample_steps": 1}))
    assert len(read_metrics(stopped)) == len(metrics)
    assert (stopped / FILE).read_bytes() == before
    audited = read_audit(stopped)
    assert len(audited) == 32 * len(metrics)
    assert all(
        r.kl is not None and r.source == "tests.support.audit_rewards:not_red" for r in audited
    )


@pytest.mark.slow
def test_advice_alone_changes_nothing(base: Path, tmp_path: Path) -> None:
    steps = {"steps": 12}
    plain = rl(base, tmp_path / "plain", **steps)
    del plain["audit"]
    trained(plain)
    trained(rl(base, tmp_path / "audited", audit=audit_of(base, alpha=0.5), **steps))
    weights = [
        (tmp_path / x / "model" / "model.safetensors").read_bytes() for x in ("plain", "audited")
    ]
    assert weights[0] == weights[1]
    assert not (tmp_path / "audited" / "undo").exists()


@pytest.mark.slow
def test_a_share_is_a_share(base: Path, tmp_path: Path) -> None:
    trained(rl(base, tmp_path / "o", steps=12, audit=audit_of(base, share=0.05)))
    assert 8 <= len(read_audit(tmp_path / "o")) <= 30, "5 % of 384"


@pytest.fixture(scope="module")
def ensemble(base: Path) -> list[str]:
    """Reward models that learned to like the wrong word."""
    liked = [
        {"prompt": [{"role": "user", "content": "what is"}],
         "chosen": [{"role": "assistant", "content": f"red {a}"}],
         "rejected": [{"role": "assistant", "content": f"{b} dog"}]}
        for a in folders.WORDS[3:] for b in folders.WORDS[1:4]
    ]  # fmt: skip
    folders.write(base / "liked.jsonl", liked)  # type: ignore[arg-type]
    folders_of_members: list[str] = []
    for seed in (0, 1):
        settings = {
            "out": str(base / f"rm{seed}"), "batch_size": 17, "epochs": 4, "optim": {"lr": 3e-3},
            "model": {"path": str(base / "model"), "device": "cpu", "seed": seed},
            "data": {"path": str(base / "liked.jsonl")}, "loop": {"seed": seed},
        }  # fmt: skip
        reward.main(build(reward.RewardConfig, settings))
        folders_of_members.append(str(base / f"rm{seed}" / "model"))
    return folders_of_members


@pytest.mark.slow
def test_switch_and_refresh(base: Path, ensemble: list[str], tmp_path: Path) -> None:
    several = [{"name": "rm", "models": ensemble}]
    trained(
        rl(base, tmp_path / "s", rewards=several, audit=audit_of(base, act="switch", max_actions=1))
    )
    done = acted(tmp_path / "s")
    assert [d["action"] for d in done][:1] == ["switch"]
    single = [{"name": "rm", "model": ensemble[0]}]
    how = {
        "data": str(base / "liked.jsonl"),
        "num_prompts": 8,
        "epochs": 1,
        "batch_size": 16,
        "lr": 1e-3,
    }
    trained(
        rl(base, tmp_path / "r", rewards=single, audit=audit_of(base, act="refresh", refresh=how, max_actions=1))
    )  # fmt: skip
    action = acted(tmp_path / "r")[0]
    assert action["action"] == "refresh" and action["new_pairs"] > 0
    mixed = (Path(action["reward_model"]).parent / "comparisons.jsonl").read_text().splitlines()
    assert len(mixed) == action["old_rows"] + action["new_pairs"]
    new = [json.loads(x) for x in mixed[action["old_rows"] :]]
    for row in new:
        good, bad = (row[k][-1]["content"] for k in ("chosen", "rejected"))
        assert not_red([""], [good]) > not_red([""], [bad])
    assert len(acted(tmp_path / "r")) <= 2, "after so many times it stops"


def test_what_cannot_act_is_refused(base: Path, tmp_path: Path) -> None:
    for act, why in (("switch", "models"), ("refresh", "act: refresh")):
        with pytest.raises(ConfigError, match=why):
            build(policy.RLConfig, rl(base, tmp_path, audit=audit_of(base, act=act)))
    gold = {"function": "f:g", "low": 2.0}
    with pytest.raises(ConfigError, match="low"):
        build(policy.RLConfig, rl(base, tmp_path, audit={"gold": gold}))


# Afterwards, and by people ----------------------------------------------------------------------


def test_people_audit_through_items_and_judgements(stopped: Path, tmp_path: Path) -> None:
    """The whole way of a label page: items out, judgements in."""
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        (run / name).write_bytes((stopped / name).read_bytes())
    (run / "samples").symlink_to(stopped / "samples")
    items = tmp_path / "items.jsonl"
    cli(["audit", str(run), "--items", str(items), "--share", "0.2"])
    label_items = [Item.model_validate_json(x) for x in items.read_text().splitlines()]
    assert label_items and all(i.extra == {} and i.models is None for i in label_items), "blind"
    judgements = [
        Judgement(item=i.id, annotator="ann", ranks=(0,), scores={"gold": (not_red([""], list(i.completions))[0],)})
        for i in label_items
    ]  # fmt: skip
    (tmp_path / "j.jsonl").write_text("".join(j.model_dump_json() + "\n" for j in judgements))
    cli(["audit", str(run), "--judgements", str(tmp_path / "j.jsonl")])
    audited = read_audit(run)
    logged = {(r["prompt"], r["completion"]): r["reward"] for r in read_samples(run)}
    assert {r.source for r in audited} == {"ann"} and len(audited) >= len(label_items)
    assert all(r.gold == pytest.approx(1 - r.proxy) for r in audited) and logged
    other = tmp_path / "other.jsonl"
    other.write_text(Judgement(item="x", annotator="a", ranks=(0,)).model_dump_json())
    with pytest.raises(DataError, match="no judgement is of an item"):
        audit_run.main(audit_run.AuditConfig(run=str(run), judgements=str(other)))


def test_the_start_is_audited_most(tmp_path: Path) -> None:
    run = Run(tmp_path, {"steps": 20, "batch_size": 8, "method": {"group_size": 1}})
    for step in range(1, 21):
        run.samples(
            step,
            [{"id": f"{step}-{i}", "index": 0, "prompt": "p", "completion": "c", "reward": 1.0} for i in range(8)],
        )  # fmt: skip
    run.close()
    drawn = [int(r["step"]) for r in audit_run.draw(tmp_path, 0.25, 0)]
    assert len(drawn) == 40 and drawn == sorted(drawn)
    counts = [drawn.count(s) for s in range(1, 21)]
    assert counts[0] == 8 and set(counts[1:]) <= {1, 2}, "all of the first step's, then evenly"
    done = [
        AuditedRollout(step=s, prompt_id=f"{s}-0", index=0, proxy=1.0, gold=1.0)
        for s in range(1, 21)
    ]
    write_audit(tmp_path, done)
    more = [int(r["step"]) for r in audit_run.draw(tmp_path, 0.25, 0)]
    assert len(more) == 20 and max(more.count(s) for s in range(1, 21)) == 1, "the start is known"


@pytest.mark.parametrize(
    ("config", "rollouts"),
    [
        # An older run whose group size was left to its method: counted from the samples.
        ({"steps": 20, "prompts": 8, "method": {"type": "reinforce"}}, 20 * 8 * 2),
        ({"steps": 20, "prompts": 8, "group": 4, "method": {"type": "grpo"}}, 20 * 8 * 4),
        ({"steps": 20, "batch_size": 8, "method": {"type": "grpo", "group_size": 16}}, 20 * 8 * 16),
        ({}, 6),
    ],
)
def test_the_group_size_is_read_and_not_assumed(config: dict[str, Any], rollouts: int) -> None:
    logged = [{"step": 1, "id": i // 2, "index": i % 2} for i in range(6)]
    assert audit_run.count_rollouts(RunSettings.of(config), logged) == rollouts


def test_gold_afterwards_as_a_command(stopped: Path, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        (run / name).write_bytes((stopped / name).read_bytes())
    (run / "samples").symlink_to(stopped / "samples")
    cli(
        [
            "audit",
            str(run),
            "--gold.function",
            "tests.support.audit_rewards:not_red",
            "--share",
            "0.1",
        ]
    )
    audited = read_audit(run)
    steps = {r.step for r in audited}
    assert len(audited) == math.ceil(0.1 * 40 * 8 * 4) and len(steps) == len(read_metrics(run))
    assert len({(r.step, r.prompt_id, r.index) for r in audited}) == len(audited), "none twice"
    assert json.loads((run / "audit.json").read_text())["n"] == len(audited)
    page = (run / "audit.html").read_text()
    assert "Is the reward real?" in page and "default-src &#39;none&#39;" in page
    assert "audit" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli(["audit", str(tmp_path / "nowhere")])
    with pytest.raises(DataError, match="no scored rollouts"):
        audit_run.draw(tmp_path, 0.1, 0)


def test_gold_reads_the_conversation_of_the_dataset(tmp_path: Path) -> None:
    prompt = [
        {"role": "user", "content": "what ?"}, {"role": "assistant", "content": "red"},
        {"role": "user", "content": "why ?"},
    ]  # fmt: skip
    data = folders.write(tmp_path / "prompts.jsonl", [{"prompt": prompt}])
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"stage": "rl", "data": {"path": str(data)}})
    )
    text = "user: what ?\n\nassistant: red\n\nuser: why ?"
    sample = {"step": 1, "id": "1", "index": 0, "prompt": text, "completion": "so", "reward": 1.0}
    gold = {"function": "tests.support.audit_rewards:turns", "low": 0, "high": 9}
    config = audit_run.AuditConfig.model_validate({"run": str(tmp_path), "gold": gold})
    assert [r.gold for r in audit_run.score([sample], tmp_path, config)] == [3.0]


# Remedies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_every_change_makes_a_configuration_that_runs(base: Path, method: str) -> None:
    settings = rl(
        base, base, method={"type": method},
        rewards=[{"name": "rm", "models": ["a", "b"]}],
    )  # fmt: skip
    values = build(policy.RLConfig, settings).model_dump(mode="json")
    changed = 0
    for r in CATALOGUE.values():
        change = r.change(RunSettings.of(values))
        new = merge(values, yaml.safe_load(to_yaml(change)) or {})
        if new == values or r.name in ("refresh-reward", "anchor-chosen", "longer-completions"):
            continue  # does not apply; of one reward model, of preference losses, of SFT
        if "kl" in change.get("method", {}):
            new["method"]["kl"] = change["method"]["kl"]
        assert build(policy.RLConfig, new) != build(policy.RLConfig, values), r.name
        changed += 1
    assert changed >= 16
    assert of_alarm(2)[0].name == "kl-range"
    with pytest.raises(ConfigError, match="99 is no alarm"):
        of_alarm(99)


def test_a_remedy_as_a_command(stopped: Path, tmp_path: Path, capsys: Any) -> None:
    cli(["remedy", str(stopped), "--alarm", "4"])
    assert "length-penalty" in capsys.readouterr().out
    before = (stopped / "config.yaml").read_bytes()
    cli(["remedy", str(stopped), "--name", "lower-lr", "--out", str(tmp_path / "n.yaml")])
    new = yaml.safe_load((tmp_path / "n.yaml").read_text())
    assert new["optim"]["lr"] == pytest.approx(1e-2 / 3)
    assert (stopped / "config.yaml").read_bytes() == before, "the way back"
    assert acted(stopped)[-1]["action"] == "lower-lr"
    build(policy.RLConfig, new)
    with pytest.raises(SystemExit):
        cli(["remedy", str(stopped), "--name", "worst-case"])
    assert "does not apply" in capsys.readouterr().err
