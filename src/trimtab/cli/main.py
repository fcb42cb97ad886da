"""The command: a table of names, each with its configuration and its main."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import trimtab
from trimtab.cli.flags import parse, show_keys
from trimtab.cli.terminal import print_logs
from trimtab.config import Config, build, merge, read_yaml
from trimtab.errors import ConfigError, UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Command:
    """A stage command: where its configuration and main are, imported when it is called."""

    module: str
    config: str
    about: str
    place: str = ""
    """The key that words without a flag fill; a YAML file among them is the configuration."""
    many: bool = False
    """Takes files of labels, at least one."""
    stage: str = ""
    """Its class where it is a training stage: what ``--plan`` measures."""


STAGES = {
    "sft": Command(
        "trimtab.train.sft",
        "SFTConfig",
        "supervised fine-tuning on demonstrations",
        stage="SFTStage",
    ),
    "reward": Command(
        "trimtab.train.reward", "RewardConfig", "reward model on comparisons", stage="RewardStage"
    ),
    "process": Command(
        "trimtab.train.process",
        "ProcessConfig",
        "process reward model on steps",
        stage="ProcessStage",
    ),
    "dpo": Command(
        "trimtab.train.dpo",
        "PreferenceConfig",
        "DPO and its relatives, KTO too",
        stage="PreferenceStage",
    ),
    "online_dpo": Command(
        "trimtab.train.online_dpo",
        "OnlineConfig",
        "direct methods on pairs of the policy's own answers",
        stage="OnlineStage",
    ),
    "best_of_n": Command(
        "trimtab.datagen.best_of_n", "BestOfNConfig", "best of n answers, as rows for sft and dpo"
    ),
    "sample": Command(
        "trimtab.datagen.sample", "SampleConfig", "a model's answers, to be compared"
    ),
    "judge": Command(
        "trimtab.datagen.judge_labels",
        "JudgeConfig",
        "AI labels by any OpenAI-compatible endpoint",
        place="data",
    ),
    "calibrate": Command(
        "trimtab.datagen.calibrate_judge",
        "CalibrateConfig",
        "a judge's labels made people's, by a few of theirs",
    ),
    "revise": Command(
        "trimtab.datagen.revise",
        "ReviseConfig",
        "critique and revision by a constitution",
        place="data",
    ),
    "accuracy": Command(
        "trimtab.evaluate.accuracy", "AccuracyConfig", "rewards against held-out comparisons"
    ),
    "probe": Command(
        "trimtab.probe.probes",
        "ProbeConfig",
        "probe REWARD_MODEL: what a reward pays for beside the content, before any RL",
        "reward",
    ),
    "audit": Command(
        "trimtab.audit.audit_run",
        "AuditConfig",
        "audit RUN: gold scores of a small share of its rollouts, and whether the reward is real",
        "run",
    ),
    "compare": Command(
        "trimtab.evaluate.compare",
        "CompareConfig",
        "compare [RUN]: complete held-out prompts with several models, score and compare",
        "run",
    ),
    "remedy": Command(
        "trimtab.doctor.remedies",
        "RemedyConfig",
        "remedy RUN: changes of its configuration against each alarm",
        "run",
    ),
    "sweep": Command(
        "trimtab.launch.sweep",
        "SweepConfig",
        "sweep RL.yaml: a grid of short runs; gold and reward against KL",
    ),
    "mix": Command("trimtab.datagen.mix", "MixConfig", "rows of several files in one"),
    "rl": Command(
        "trimtab.train.rl",
        "RLConfig",
        "online methods: PPO, GRPO, DAPO and their relatives",
        stage="RLStage",
    ),
}

FILES = {
    "agreement": Command(
        "trimtab.evaluate.agreement",
        "AgreementConfig",
        "agreement FILES: how far annotators agree, how good and how biased each is",
        place="files",
        many=True,
    ),
    "evaluate": Command(
        "trimtab.evaluate.leaderboard",
        "EvaluateConfig",
        "evaluate FILES: win rates, length-controlled ones and Elo from verdicts",
        place="files",
        many=True,
    ),
    "exchange": Command(
        "trimtab.exchange.convert",
        "ExchangeConfig",
        "exchange FILES --to FILE: labels from and to other tools' formats and the hub",
        place="files",
        many=True,
    ),
}
COMMANDS = FILES | STAGES
"""All that are a configuration and a main."""

OTHERS = {
    "run": "run RECIPE.yaml: every stage of a pipeline, each skipped when already whole",
    "label": "label ANSWERS.jsonl: pages on which people compare answers",
    "chat": "chat MODEL: talk to a model folder",
    "report": "report RUN: write report.html of a run or pipeline folder",
    "doctor": "doctor RUN: is the reward real? what is wrong, since when, why, and what to change",
    "recipes": "list the recipes",
}


def usage() -> str:
    """What ``trimtab --help`` prints."""
    lines = [
        f"trimtab {trimtab.__version__}: steer language models by preference",
        "",
        "usage: trimtab COMMAND ...",
        "",
    ]
    lines += [f"  {name:<13}{text}" for name, text in OTHERS.items()]
    lines += [f"  {name:<13}{c.about}" for name, c in COMMANDS.items()]
    lines += [
        "",
        "A stage takes a YAML file, flags, or both: trimtab sft sft.yaml --optim.lr 1e-4",
        "  --dry-run   print the resolved configuration and stop",
        "  --plan      a training stage: predict its time and memory from a few steps, and stop",
        "  --help      after a command: its keys with the values that would be used",
    ]
    return "\n".join(lines)


def _given(places: list[str], flags: dict[str, Any], most: int = 1) -> dict[str, Any]:
    if len(places) > most:
        raise ConfigError(f"unexpected argument {places[most]!r}; flags are written --key value")
    return merge(read_yaml(places[0]), flags) if places else flags


def stage(name: str, args: Sequence[str]) -> None:
    """``trimtab sft | reward | agreement | …``: one of ``COMMANDS``."""
    command = COMMANDS[name]
    places, flags, switches = parse(args, frozenset({"plan"}))
    if "plan" in switches and not command.stage:
        raise ConfigError(f"--plan is for training stages; {name} trains nothing")
    settings = [p for p in places if p.endswith((".yaml", ".yml"))] if command.place else places
    values = _given(settings, flags)
    named = [p for p in places if p not in settings]
    if named:
        one = not command.many and len(named) == 1
        values.setdefault(command.place, named[0] if one else named)
    module = importlib.import_module(command.module)
    kind: type[Config] = getattr(module, command.config)
    if "help" in switches:
        print(show_keys(f"{name} FILES" if command.many else name, kind, values))
        return
    if command.many and command.place not in values:
        raise ConfigError(f"give the files: trimtab {command.about.partition(':')[0]}")
    config = build(kind, values, settings[0] if settings else f"trimtab {name}")
    if "dry-run" in switches:
        shown = config.model_dump(mode="json", by_alias=True)
        print(yaml.safe_dump(shown, sort_keys=False))
        return
    if "plan" in switches:
        from trimtab.launch.plan import plan

        print(plan(getattr(module, command.stage), config).text())
        return
    module.main(config)


RECIPES = Path(trimtab.__file__).parent / "recipes"


def find_recipe(name: str) -> Path:
    """The recipe file ``name``, or the packaged recipe of that name."""
    packaged = RECIPES / f"{name.removesuffix('.yaml')}.yaml"
    return packaged if not Path(name).is_file() and packaged.is_file() else Path(name)


def run(args: Sequence[str]) -> None:
    """``trimtab run RECIPE.yaml``; ``--STAGE.key value`` changes a stage, ``--out`` the folder."""
    places, flags, switches = parse(args, frozenset({"fresh"}))
    if not places:
        print("trimtab run RECIPE.yaml [--out DIR] [--STAGE.key value ...] [--dry-run] [--fresh]")
        if "help" in switches:
            return
        raise ConfigError("give a recipe file; 'trimtab recipes' lists them")
    from trimtab.launch import recipe as pipeline

    places[0] = str(find_recipe(places[0]))
    values = read_yaml(places[0])
    stages: dict[str, Any] = dict(values.get("stages") or {})
    for key, value in flags.items():
        if key in stages:
            stages[key] = merge(stages[key], value) if isinstance(value, dict) else value
        elif key in pipeline.Recipe.model_fields:
            values[key] = value
        else:
            raise ConfigError(
                f"--{key}: neither a stage of {places[0]} ({', '.join(stages)}) nor a key of a recipe"
            )
    values["stages"] = stages
    recipe = build(pipeline.Recipe, values, places[0])
    if "help" in switches or "dry-run" in switches:
        for planned in pipeline.plan(recipe, places[0]):
            state = "whole" if planned.whole else "to do"
            print(f"# {planned.name}: {planned.kind} -> {planned.folder} ({state})")
            print(
                yaml.safe_dump(
                    {planned.name: planned.config.model_dump(mode="json")}, sort_keys=False
                )
            )
        return
    pipeline.run(recipe, places[0], fresh="fresh" in switches)


def report(args: Sequence[str]) -> None:
    """``trimtab report RUN``."""
    places, _, switches = parse(args)
    if "help" in switches or not places:
        print("trimtab report RUN: writes RUN/report.html from a training run or a pipeline folder")
        return
    from trimtab.report.run_report import report_pipeline, report_run

    folder = Path(places[0])
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such run folder")
    nested = any(folder.glob("*/metrics.jsonl"))
    print(report_pipeline(folder) if nested else report_run(folder))


DOCTOR = """trimtab doctor RUN [--json] [--html] [--from trl|wandb|jsonl] [--out DIR] [--fail-on any|critical|never]

  RUN         a run folder; with --from, files of another library
  --json      the diagnosis as JSON on standard output, and nothing else there
  --html      also write RUN/doctor.html, one self-contained page
  --from      import first: TRL's output folder, a W&B export, or jsonl of metrics and rollouts
  --out       where the imported run folder goes (RUN-doctor)
  --fail-on   exit status 1 when there is such a finding (any); 0 otherwise, 2 for a bad RUN

Findings go to RUN/findings.jsonl. While training: --loop.doctor-steps N on any training stage."""


def doctor(args: Sequence[str]) -> None:
    """``trimtab doctor RUN``."""
    places, flags, switches = parse(args, frozenset({"json", "html"}))
    if "help" in switches or not places:
        print(DOCTOR)
        return
    unknown = sorted(flags.keys() - {"from", "out", "fail_on"})
    if unknown or len(places) > 1:
        raise ConfigError(
            f"doctor: unexpected {unknown[0] if unknown else places[1]!r}; see --help"
        )
    fail, source = str(flags.get("fail_on", "any")), flags.get("from")
    if fail not in ("any", "critical", "never"):
        raise ConfigError(f"--fail-on: {fail!r} is none of any, critical, never")
    if source not in (None, "trl", "wandb", "jsonl"):
        raise ConfigError(f"--from: {source!r} is none of trl, wandb, jsonl")
    from trimtab.doctor import diagnosis, doctor_page, importer, show

    folder = Path(places[0])
    if source is not None:
        folder = importer.bring(folder, source, str(flags.get("out") or f"{folder}-doctor"))
    found = diagnosis.examine(folder)
    diagnosis.write(folder, found.findings)
    if "html" in switches:
        where = doctor_page.write(folder, found)
        print(where, file=sys.stderr if "json" in switches else sys.stdout)
    print(found.model_dump_json(indent=1) if "json" in switches else show.text(found))
    bad = [f for f in found.findings if fail == "any" or f.severity == fail]
    if bad:
        raise SystemExit(1)


def recipes(args: Sequence[str]) -> None:
    """``trimtab recipes``."""
    seen: set[Path] = set()
    for folder in (Path("recipes"), RECIPES):
        if not folder.is_dir() or folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        for path in sorted(folder.glob("*.yaml")):
            print(f"{path!s:<34} {' '.join(str(read_yaml(path).get('about', '')).split())}")
        for path in sorted(folder.glob("[!_]*.py")):
            first = path.read_text(encoding="utf-8").split('"""')[1].strip().splitlines()[0]
            print(f"{path!s:<34} {first}")


def chat(args: Sequence[str]) -> None:
    """``trimtab chat MODEL [--prompt TEXT] [--sampling.temperature 0.7]``."""
    from trimtab.cli.chat import ChatConfig, main

    places, flags, switches = parse(args)
    if "help" in switches or not places:
        print(
            show_keys("chat MODEL", ChatConfig, {"model": places[0] if places else None, **flags})
        )
        return
    main(build(ChatConfig, {"model": places[0], **flags}, "trimtab chat"))


def label(args: Sequence[str]) -> None:
    """``trimtab label ANSWERS.jsonl | LABEL.yaml [--key value ...]``; ``--export`` writes files."""
    from trimtab.label import serve
    from trimtab.label.label_config import LabelConfig

    places, flags, switches = parse(args, frozenset({"export"}))
    if places and Path(places[0]).suffix in (".yaml", ".yml"):
        values = _given(places, flags)
    else:
        if len(places) > 1:
            raise ConfigError(f"unexpected argument {places[1]!r}; flags are written --key value")
        values = {**({"data": places[0]} if places else {}), **flags}
    if "help" in switches:
        print(show_keys("label ANSWERS.jsonl", LabelConfig, values))
        print(f"  --{'export':<34} {'':<22} write the labels of --out as files and stop")
        return
    if "export" in switches:
        out = values.get("out", LabelConfig.model_fields["out"].default)
        serve.export_folder(Path(str(out)))
        return
    config = build(LabelConfig, values, places[0] if places else "trimtab label")
    if "dry-run" in switches:
        print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        return
    serve.main(config, _sampled)


def _sampled(*given: Any) -> Any:
    # Imported in the thread that samples: the first page need not wait for it.
    from trimtab.datagen.answers import sampled

    return sampled(*given)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; a user's error is one line on standard error and exit status 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return
    if args[0] == "--version":
        print(trimtab.__version__)
        return
    name, rest = args[0], args[1:]
    others = {
        "run": run, "label": label, "chat": chat, "report": report, "doctor": doctor,
        "recipes": recipes,
    }  # fmt: skip
    try:
        with print_logs():
            if name == "side_by_side":
                log.warning(
                    "side_by_side is now called compare; the old name goes with the next release"
                )
                name = "compare"
            if name in COMMANDS:
                stage(name, rest)
            elif name in others:
                others[name](rest)
            else:
                raise ConfigError(
                    f"{name!r} is not a command; there are {', '.join([*OTHERS, *COMMANDS])}"
                )
    except UserError as error:
        print(f"trimtab: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(
            "\ntrimtab: interrupted; the same command goes on from the last checkpoint",
            file=sys.stderr,
        )
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(0) from None
