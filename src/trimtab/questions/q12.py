"""Question 12: who deserves the reward? Credit assignment over the tokens of a completion.

The true effect of every reasoning step is known exactly on word problems, so advantages can be compared with
it. Nothing but a critic is trained for that. Then the same GRPO learns from rewards of tokens, of steps and of
outcomes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.questions import chain
from trimtab.questions import credit_measures as measures
from trimtab.questions import credit_stages as stages
from trimtab.questions.arm_stages import read_answers
from trimtab.questions.claim import Settings
from trimtab.questions.experiment import Experiment, Result, mean_over_seeds
from trimtab.questions.measure import ArmResult, Measure, over_prompts
from trimtab.questions.word_problem_arms import PER_PROMPT, iterations_to
from trimtab.report.charts import Chart, Line, line_chart
from trimtab.runs import json_lines, read_metrics

LAMS = (0.0, 0.5, 0.75, 0.95, 1.0)


def start(_: Path, seed: int, settings: Settings, starts: Path) -> Path:
    """The SFT model on problems of one to six steps, problems by number of steps, and what is learned
    from its completions: a process reward model and a DPO policy."""
    folder = chain.word_problems(starts, seed, settings.sizes, task=chain.ONE_TO_SIX)
    for split in ("prompts", "heldout"):
        chain.split_by_steps(folder / "tasks" / f"{split}.jsonl", settings.options["steps"])
    chain.run_stages(folder / "credit", stages.learned_stages(settings), seed, {"start": folder})
    return folder


def arm(out: Path, start: Path, seed: int, values: dict[str, Any], settings: Settings) -> ArmResult:
    """Train one arm, or compare its advantages with the true effects of steps."""
    learns = "reward" in values
    plan = stages.learning_stages if learns else stages.advantage_stages
    chain.run_stages(out / "stages", plan(values, settings), seed, {"start": start})
    return (_learned if learns else _compared)(out / "stages", settings)


def _learned(folder: Path, settings: Settings) -> ArmResult:
    sizes, options = settings.sizes, settings.options
    right = read_answers(folder / "compare", "rl", PER_PROMPT).scores["right"]
    rows = read_metrics(folder / "rl")
    curve = [float(r["reward/right"]) for r in rows]
    drawn = float(sizes["batch"] * options["group_size"])
    needed = drawn * iterations_to(curve, options["goal"], options["window"])
    result = {"pass": over_prompts(right.mean(1)), "needed": Measure(needed)}
    if f"reward/{stages.LEARNED}" in rows[-1]:
        scores = [float(r[f"reward/{stages.LEARNED}"]) for r in rows]
        tail = options["window"]
        result["overstated"] = Measure(float(np.mean(scores[-tail:]) - np.mean(curve[-tail:])))
    return ArmResult(result, {"pass": curve})


def _compared(folder: Path, settings: Settings) -> ArmResult:
    options = settings.options
    wrong, careful = float(options["wrong"]), float(options["careful"])
    lines = json_lines((folder / "advantages" / "advantages.jsonl").read_bytes())
    rows: list[dict[str, Any]] = [json.loads(line) for _, line in lines]
    truth = [measures.true_effects(row, wrong) for row in rows]
    prompt = [row["prompt"] for row, effects in zip(rows, truth, strict=True) for _ in effects]
    effects_N = [effect for effects in truth for effect in effects]

    def flat(name: str, key: str = "") -> list[float]:
        source = [row[name][key] if key else row[name] for row in rows]
        return [x for of, effects in zip(source, truth, strict=True) for x in of[: len(effects)]]

    if "score" in rows[0]:
        gains = [
            x for row, of in zip(rows, truth, strict=True) for x in measures.gains(row, len(of))
        ]
        return ArmResult({"rho": measures.rank_correlation(gains, effects_N, prompt)})
    result = {"rho": measures.rank_correlation(flat("advantage"), effects_N, prompt)}
    if "value" in rows[0]:
        exact = [v for row in rows for v in measures.true_values(row, wrong)]
        result["explained"] = measures.explained(flat("value"), exact, prompt)
        for lam in LAMS:
            of_lam = flat("advantages", f"{lam:g}")
            result[f"rho@{lam:g}"] = measures.rank_correlation(of_lam, effects_N, prompt)
    else:
        result |= {
            "repaired": measures.repaired(rows),
            "erring": measures.cost_of_a_mistake(rows, wrong),
            "careful": measures.cost_of_a_mistake(rows, careful),
        }
    return ArmResult(result)


def derive(arms: Mapping[str, ArmResult], settings: Settings) -> dict[str, ArmResult]:
    """The lambdas of each critic as arms, and what the completions say without any estimator."""
    derived: dict[str, ArmResult] = {}
    for steps in settings.options["steps"]:
        at = f"[steps={steps}]"
        critic, sampled = arms[f"critic{at}"].measures, arms[f"group{at}"].measures
        for lam in LAMS:
            derived[f"lambda={lam:g}{at}"] = ArmResult({"rho": critic[f"rho@{lam:g}"]})
        derived[f"solutions{at}"] = ArmResult({"repaired": sampled["repaired"]})
        for writer in ("erring", "careful"):
            derived[f"{writer}{at}"] = ArmResult({"cost": sampled[writer]})
    return derived


def figure(result: Result, words: Mapping[str, str]) -> Chart | None:
    """Rank correlation with the true effect by lambda, for each number of steps."""
    lines = [
        Line(
            words[f"steps{steps}"],
            LAMS,
            [mean_over_seeds(result, f"lambda={lam:g}[steps={steps}]", "rho") for lam in LAMS],
        )
        for steps in (2, 4, 6)
    ]
    return line_chart(words["title"], lines, words["x"], words["y"], words["see"])


EXPERIMENT = Experiment(start, arm, figure, derive)
