"""The doctor: statistics, facts, reading, importing, the command, live looks, hostile text."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import ttest_ind

from benchmarks.doctor.__main__ import main as slice_of_benchmark
from tests.support import folders
from trimtab.audit.gold_audit import AuditedRollout
from trimtab.audit.run_settings import RunSettings
from trimtab.cli.main import main as cli
from trimtab.config import build, merge
from trimtab.data.token_facts import leaked, odd_pairs, pair_facts, token_facts
from trimtab.doctor import diagnosis, doctor_text
from trimtab.doctor.alarms import all_alarms, sycophancy, thresholds
from trimtab.doctor.alarms.over_optimised import fit_gold
from trimtab.doctor.evidence import Rollout, read
from trimtab.doctor.finding import Finding
from trimtab.doctor.remedies import CATALOGUE, to_yaml
from trimtab.errors import DataError
from trimtab.runs import Run, read_findings
from trimtab.stats.change import onset, slope, two_means
from trimtab.train import rl
from trimtab.types import Completion, Group


def test_slope_agrees_with_numpy_and_covers() -> None:
    rng = np.random.default_rng(0)
    x = np.arange(40.0)
    inside = 0
    for _ in range(400):
        y = 0.3 * x + rng.normal(0, 2, 40)
        m, low, high = slope(x, y)
        inside += low <= 0.3 <= high
    assert m == pytest.approx(np.polyfit(x, y, 1)[0])
    assert 0.92 < inside / 400 < 0.98
    assert slope([1, 1, 1], [1, 2, 3]) == (0.0, -math.inf, math.inf)


def test_onset_and_welch() -> None:
    assert onset([1, 2, 3], [True, False, True], 2) is None
    assert two_means([0.0, 0.0], [1.0, 1.0]) == math.inf
    a, b = [1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 9.0]
    assert two_means(a, b) == pytest.approx(ttest_ind(b, a, equal_var=False).statistic)


def _group(prompt: str, texts_: list[str], ranks: list[int], **extra: Any) -> Group:
    done = [
        Completion(np.arange(len(t.split()) + 1), np.ones(len(t.split()) + 1, bool), t, rank=r)
        for t, r in zip(texts_, ranks, strict=True)
    ]
    return Group(prompt, np.array([1, 1, 5]), done, prompt, dict(extra))


def test_facts_of_pairs_by_hand() -> None:
    rows = [
        _group("q", ["yes it is", "no"], [0, 1], shown=[0, 1]),
        _group("Q.", ["Yes, it is!", "no"], [1, 0], shown=[0, 1]),  # the opposite, but for case
        _group("r", ["a", "b"], [0, 0]),
        _group("s", ["a", "a"], [0, 1]),
    ]
    facts = pair_facts(rows)
    assert facts["pairs"] == 3 and facts["ties"] == pytest.approx(1 / 4)
    assert facts["contradicted"] == pytest.approx(2 / 3) and facts["same"] == pytest.approx(1 / 3)
    assert facts["repeated"] == pytest.approx(2 / 3)
    assert facts["chosen_longer"] == 0.5 and facts["chosen_first"] == 0.5
    assert len(odd_pairs(rows)) == 1
    assert leaked(rows[:1], [rows[1], rows[2]]) == 0.5
    ends = token_facts(rows, bos=1, stops=(3,))
    assert ends["double_bos"] == 1.0, "every prompt begins with 1, 1"
    assert ends["without_end"] == pytest.approx(6 / 8), "three words and an end make the ids 0 to 3"


def _run(folder: Path, steps: int, **curves: Any) -> Path:
    """A folder with metrics by function of the step."""
    run = Run(
        folder,
        {
            "steps": steps,
            "method": {"type": "grpo", "kl": {"beta": 0.01}},
            "optim": {"lr": 1e-4},
        },
    )
    lines = [
        json.dumps({"step": s, **{k.replace("__", "/"): f(s) for k, f in curves.items()}})
        for s in range(1, steps + 1)
    ]
    (run.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return run.path


@pytest.mark.slow
def test_ten_thousand_steps_are_read_in_five_seconds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = {f"m__{i}": (lambda s: float(rng.normal())) for i in range(40)}
    folder = _run(
        tmp_path / "r", 10_000, reward__mean=lambda s: s / 1e4, objective__kl=lambda s: 3.0, **names
    )
    run = Run(folder)
    for step in range(100, 10_001, 100):
        run.samples(
            step,
            [
                {
                    "prompt": f"p {i}",
                    "completion": f"a b c {i} {step}",
                    "reward": 0.1 * i,
                    "finish": "stop",
                    "tokens": 5,
                }
                for i in range(64)
            ],
        )
    before = time.process_time()
    diagnosis.examine(folder)
    assert time.process_time() - before < 5.0


def test_kl_without_gain_rings_and_a_planned_shift_does_not(tmp_path: Path) -> None:
    waste = _run(
        tmp_path / "a",
        60,
        reward__mean=lambda s: min(s, 10) / 10,
        reward__std=lambda s: 0.3,
        objective__kl=lambda s: float(s),
    )
    findings = diagnosis.examine(waste).findings
    assert [f.name for f in findings] == ["kl-runaway"] and findings[0].step == 19
    assert findings[0].rank == 1 and "target: 6.0" in findings[0].change
    far = _run(
        tmp_path / "b",
        60,
        reward__mean=lambda s: s / 10,
        reward__std=lambda s: 0.3,
        objective__kl=lambda s: float(s),
    )
    assert diagnosis.examine(far).findings == ()


def test_audit_proves_or_refutes(tmp_path: Path) -> None:
    folder = _run(tmp_path / "r", 40, reward__mean=lambda s: s / 10, objective__kl=lambda s: s / 8)
    rng = np.random.default_rng(0)

    def audit(gold_at: Any) -> None:
        rows = [
            {
                "step": s,
                "prompt_id": "p",
                "proxy": s / 10,
                "gold": float(gold_at(s) + rng.normal(0, 0.1)),
                "kl": s / 8,
            }
            for s in range(1, 41)
            for _ in range(2)
        ]
        (folder / "audit.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    audit(lambda s: 0.5 + 0.01 * s)
    assert diagnosis.examine(folder).verdict == "real"
    audit(lambda s: 0.5 + 0.02 * min(s, 12) - 0.02 * max(0, s - 12))
    report = diagnosis.examine(folder)
    assert report.verdict == "not real" and report.findings[0].tier == "T2"
    assert diagnosis.examine(folder, frozenset({"audit"})).verdict == "not proven"
    fit = fit_gold(read(folder))
    assert fit is not None and 0.5 < fit.peak < 2.5
    (folder / "audit.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(DataError, match=r"audit.jsonl, line 1: .*prompt"):
        diagnosis.examine(folder)


def test_words_of_agreement() -> None:
    rollout = Rollout(
        1,
        "i think anna is in the tower . where is anna ?",
        "well , anna is in the tower .",
        1.0,
        {},
        "stop",
        7,
        None,
        None,
    )
    assert sycophancy.agrees(rollout)
    rollout.completion = "anna is in the garden ."
    assert not sycophancy.agrees(rollout)
    rollout.completion = "You're absolutely right, it is."
    assert sycophancy.agrees(rollout)


HOSTILE = (
    '<script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">\x1b[2J'
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real, small run with the doctor looking on."""
    root = tmp_path_factory.mktemp("doctor")
    model = folders.model_folder(root / "model")
    prompts = folders.prompts(root / "prompts.jsonl")
    values = {
        "model": {"path": str(model)}, "data": {"path": str(prompts)}, "out": str(root / "run"),
        "method": {"type": "grpo", "group_size": 4}, "rewards": [{"name": "r", "function": "tests.doctor.test_doctor:constant"}],
        "steps": 10, "batch_size": 6, "sampling": {"max_new_tokens": 8},
        "loop": {"sample_steps": 2, "doctor_steps": 5},
    }  # fmt: skip
    rl.main(rl.RLConfig.model_validate(values))
    return root / "run"


def constant(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """A reward that looks at nothing."""
    return [1.0 for _ in completions]


@pytest.mark.slow
def test_live_look_and_what_training_records(trained: Path) -> None:
    findings = read_findings(trained)
    assert {f["alarm"] for f in findings} >= {14} and findings[0]["source"] == "doctor"
    facts = json.loads((trained / "facts.json").read_text())
    assert facts["stage"] == "rl" and facts["double_bos"] == 0.0 and facts["template"] == "own"
    rows = [json.loads(x) for x in (trained / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["sampler/ess"] == pytest.approx(1.0, abs=1e-3) and rows[-1]["sampler/kl"] < 1e-6


def test_command(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli(["doctor", str(trained), "--json", "--html"])
    assert end.value.code == 1
    report = json.loads(capsys.readouterr().out)
    # A random model ends few answers of eight tokens, which is true and upstream.
    assert {f["name"] for f in report["findings"]} == {"reward-pipe", "endless"}
    assert report["verdict"] == "broken" and [f["rank"] for f in report["findings"]] == [1, 2]
    assert set(report["clean"]) | set(report["unchecked"]) | {
        f["name"] for f in report["findings"]
    } == {a.name for a in all_alarms()}
    cli(["doctor", str(trained), "--fail-on", "never"])
    text = capsys.readouterr().out
    assert text.startswith("BROKEN.") and "Cause:" in text
    page = (trained / "doctor.html").read_text()
    assert "<script" not in page and "default-src &#39;none&#39;" in page
    for args, code in (
        (["doctor", str(trained / "nowhere")], 2),
        (["doctor", str(trained), "--from", "csv"], 2),
    ):
        with pytest.raises(SystemExit) as end:
            cli(args)
        assert end.value.code == code


def test_what_is_to_be_pasted_is_read_back(trained: Path) -> None:
    config = yaml.safe_load((trained / "config.yaml").read_text())
    for key in ("critic", "monte_carlo"):  # a method without them refuses the keys
        del config[key]
    settings = RunSettings.of(config)
    for change in (
        CATALOGUE["kl-target"].change(settings, target=4.0, beta=0.02),
        CATALOGUE["reward-timeout"].change(settings),
    ):
        assert change
        build(rl.RLConfig, merge(config, yaml.safe_load(to_yaml(change))))
    for f in diagnosis.examine(trained).findings:
        build(rl.RLConfig, merge(config, yaml.safe_load(f.change) or {}))


def test_a_watched_reward_stays_watched() -> None:
    rewards = [{"name": "a", "model": "m"}, {"name": "b", "model": "n", "weight": 0}]
    change = CATALOGUE["residual-length"].change(RunSettings.of({"rewards": rewards}))
    assert [r.get("weight", 1) for r in change["rewards"]] == [1, 0]
    assert all(r["residual_length"] for r in change["rewards"])


def test_every_alarm_is_complete() -> None:
    alarms = all_alarms()
    numbers = [a.number for a in alarms]
    assert numbers == sorted(set(numbers))
    assert len({a.name for a in alarms}) == len({a.precedence for a in alarms}) == len(alarms)
    for a in alarms:
        assert a.remedies and set(a.remedies) <= CATALOGUE.keys(), a.name
        assert "check" in vars(sys.modules[a.check.__module__]), a.name
    for name, t in thresholds.table().items():
        assert t.unit and t.reason, name


@pytest.mark.slow
def test_hostile_text_is_inert(tmp_path: Path, trained: Path) -> None:
    folder = _run(tmp_path / "r", 12, reward__mean=lambda s: 1.0, reward__std=lambda s: 0.0)
    run = Run(folder)
    for step in range(1, 13):
        run.samples(
            step,
            [
                {
                    "prompt": HOSTILE,
                    "completion": HOSTILE,
                    "reward": 1.0,
                    "finish": "stop",
                    "tokens": 3,
                }
                for _ in range(20)
            ],
        )
    with pytest.raises(SystemExit):
        cli(["doctor", str(folder), "--html"])
    page = (folder / "doctor.html").read_text()
    assert "<script" not in page and "<img" not in page and "&lt;script&gt;" in page
    chromium = "/usr/bin/chromium"
    if not Path(chromium).exists():
        pytest.skip("no browser")
    dom = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (folder / "doctor.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip
    assert (
        "<title>Is the reward real?</title>" in dom
        and "<script" not in dom
        and "onerror=&quot;" not in dom.split("<body>")[0]
    )


def test_terminal_gets_no_control_characters(tmp_path: Path) -> None:
    finding = Finding(alarm=4, name="x", nature="alignment", title="t", message=HOSTILE, figure="f", number=1, limit=0, tier="T1", cause="c", remedy="r", change="", rank=1)  # fmt: skip
    text = doctor_text.to_text(
        diagnosis.Diagnosis(
            run="r",
            stage="rl",
            verdict="not real",
            line="l",
            findings=(finding,),
            clean=(),
            unchecked={},
            audited=0,
        )
    )
    assert "\x1b" not in text


def test_audited_reads_other_names() -> None:
    assert (
        AuditedRollout.model_validate({"step": 1, "prompt": "a", "proxy": 1, "gold": 0}).prompt_id
        == "a"
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_slice_of_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real runs: faults are seen and named first, a healthy run is left alone."""
    monkeypatch.setattr(sys, "argv", ["benchmarks.doctor", "--slice", "--out", str(tmp_path)])
    slice_of_benchmark()  # SystemExit names what was diagnosed wrongly
