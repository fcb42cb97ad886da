"""``trimtab question``: the questions of RLHF, answered by experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trimtab.cli.flags import Arguments, parse
from trimtab.errors import ConfigError
from trimtab.questions import claim as registry
from trimtab.questions import earlier, experiment, index, page, page_files
from trimtab.questions.verdict import LOOKS
from trimtab.runs import read_object, to_json, write_atomic

USAGE = """trimtab question list | N ... | all [flags]

  Runs the experiment of a question and writes result.json, answer.html and answer.md. Run the same command
  again to resume.

  --full       five seeds, each the whole chain; without it one seed, and verdicts are provisional
  --second     with --full: five more seeds, for claims that the first five leave undecided
  --seeds LIST these seeds, as 0,1,2
  --from DIR   takes seeds from the results in DIR, as docs/questions/results, and runs only the others
  --predict    asks for your guess on each claim first, and shows both
  --on RUN     puts the question to a run of your own
  --pretrained RUN
               puts the claims of questions 6, 7 and 8 to SmolLM2-135M: RUN is of trimtab run smollm2-questions
  --lang       en or zh: language of the page, the terminal and the guesses
  --size       factor of all sizes, to try an experiment: 0.1
  --workers    processes at once (default: 2, of one thread each)
  --out        folder for results (default: runs/questions)
  --tune       chooses each arm's learning rate on the tuning seeds, which are never reported
  --page       writes the pages again from result.json
  --docs DIR   also writes the pages of every language below DIR, for a documentation
  --dry-run    prints what would run, and stops"""
_SWITCHES = frozenset({"full", "second", "predict", "tune", "page"})
_VALUES = ("seeds", "on", "pretrained", "lang", "size", "workers", "out", "docs", "from")


@dataclass(frozen=True, slots=True)
class _Options:
    """The flags."""

    switches: set[str]
    seeds: tuple[int, ...]
    on: str | None
    pretrained: str | None
    lang: str
    size: float
    workers: int
    out: Path
    docs: Path | None
    results: Path | None
    """Of ``--from``."""

    @classmethod
    def of(cls, arguments: Arguments) -> _Options:
        """Check the flags.

        Raises:
            ConfigError: one is unknown or has a wrong value.
        """
        values = arguments.values
        for name in values:
            if name not in _VALUES:
                raise ConfigError(f"--{name}: unknown flag; see trimtab question --help")
        language = str(values.get("lang", "en"))
        if language not in registry.LANGUAGES:
            raise ConfigError(f"--lang: {language!r} is none of {', '.join(registry.LANGUAGES)}")
        try:
            raw = values.get("seeds", "")
            listed: Any = raw if isinstance(raw, list) else str(raw).replace(",", " ").split()
            seeds = tuple(int(s) for s in listed)
            size, workers = float(values.get("size", 1.0)), int(values.get("workers", 2))
        except (TypeError, ValueError):
            raise ConfigError(
                "--seeds is a list as 0,1,2; --size and --workers are numbers"
            ) from None
        if workers < 1:
            raise ConfigError(f"--workers: {workers} is too few; use 1 or more")
        if "second" in arguments.switches and "full" not in arguments.switches:
            raise ConfigError("--second goes with --full")
        if seeds and "full" in arguments.switches:
            raise ConfigError("--full and --seeds both name seeds; give one of them")
        out = Path(str(values.get("out", "runs/questions")))
        on = None if values.get("on") is None else str(values["on"])
        run = None if values.get("pretrained") is None else str(values["pretrained"])
        docs = None if values.get("docs") is None else Path(str(values["docs"]))
        results = None if values.get("from") is None else Path(str(values["from"]))
        if results is not None and not results.is_dir():
            raise ConfigError(f"--from: {results} is no folder of results")
        if results is not None and (others := arguments.switches & {"tune", "page"}):
            raise ConfigError(f"--from goes with a run, not with --{min(others)}")
        return cls(arguments.switches, seeds, on, run, language, size, workers, out, docs, results)

    def seeds_of(self, number: int) -> tuple[int, ...]:
        """The seeds to run."""
        registered = registry.load_settings()[number].seeds
        if self.seeds:
            return self.seeds
        if "full" not in self.switches:
            return registered[:1]
        return registered[: LOOKS["second" in self.switches]]


def main(words: Sequence[str]) -> None:
    """Run, list or ask.

    Raises:
        ConfigError: there is no such question, or a flag is wrong.
    """
    arguments = parse(words, _SWITCHES)
    if "help" in arguments.switches:
        print(USAGE)
        return
    options = _Options.of(arguments)
    names = arguments.positionals
    if not names:
        raise ConfigError("name a question; trimtab question list shows them")
    if names == ["list"]:
        _list(options.lang)
        return
    numbers = experiment.available() if names == ["all"] else [_number(n) for n in names]
    if options.on is not None:
        from trimtab.questions import on_run

        if "dry-run" in arguments.switches:
            alarms = {n: on_run.ALARMS.get(n, ()) for n in numbers}
            print(f"# alarms by question, on {options.on}: {alarms}")
            return
        print("\n\n".join(on_run.ask(n, Path(options.on)) for n in numbers))
        return
    if options.pretrained is not None:
        if "dry-run" in arguments.switches:
            claims = registry.load_claims(key="pretrained")
            keys = {n: [c.key for c in claims[n]] for n in numbers}
            print(f"# claims by question, on {options.pretrained}: {keys}")
            return
        _pretrained(numbers, options, Path(options.pretrained))
        return
    for number in numbers:
        experiment.load(number)
    if "dry-run" in arguments.switches:
        for number in numbers:
            _plan(number, options)
        return
    if "tune" in options.switches:
        for number in numbers:
            best = experiment.tune(
                number, options.out, seeds=options.seeds, size=options.size, workers=options.workers
            )
            print(f"# question {number}: lr of each arm, for q{number:02}.yaml")
            print(yaml.safe_dump(best, sort_keys=False))
        return
    if "page" not in options.switches:
        for number in numbers:
            if "predict" in options.switches:
                _predict(number, options)
            experiment.run(
                number, options.out, seeds=options.seeds_of(number), size=options.size,
                workers=options.workers, results=options.results,
            )  # fmt: skip
    folders = [options.out / str(n) for n in numbers]
    judged = experiment.judge([experiment.read_result(f) for f in folders])
    for folder, result in zip(folders, judged, strict=True):
        experiment.write_result(folder, result)
        _show(folder, result, options)
    print(f"index: {index.write(options.out, options.lang)}")
    if options.docs is not None:
        files = index.write_docs(options.out, options.docs)
        print(f"docs: {len(files)} pages below {options.docs}")


def _pretrained(numbers: Sequence[int], options: _Options, run: Path) -> None:
    """Judge the claims that are put to a pretrained model, and print the verdicts."""
    from trimtab.questions import pretrained

    files = pretrained.write(options.out, numbers, run)
    words = page.read_text(options.lang)
    for number, file in zip(numbers, files, strict=True):
        judged = read_object(file)["claims"]
        for name, values in judged.items():
            print(f"{name:<6} {words['questions'][str(number)]['pretrained'][name]}")
            outcome = words["common"]["outcomes"][values["outcome"]]
            print(
                f"       {outcome}: {values['effect']:+.3f} [{values['low']:+.3f}, {values['high']:+.3f}]"
            )
        print(f"{file}: shown by trimtab question {number} --page")


def _number(word: str) -> int:
    if not word.isdigit():
        raise ConfigError(f"{word!r} is no question; use list, all, or a number")
    return int(word)


def _list(language: str) -> None:
    questions = page.read_text(language)["questions"]
    claims = registry.load_claims()
    for number in experiment.available():
        text = questions[str(number)]
        print(page.fill(text["title"], {"number": str(number)}, "title"))
        print(f"    {' '.join(text['question'].split())} ({len(claims[number])})")


def _plan(number: int, options: _Options) -> None:
    """What a run would do."""
    settings = registry.load_settings()[number]
    claims = registry.load_claims()[number]
    registry.check_arms(claims, settings)
    seeds = options.seeds_of(number)
    scaled = settings.scaled(options.size)
    if options.results is not None:
        source = options.results / str(number)
        previous = earlier.read(source, claims, seeds, options.size)
        in_source = previous["seeds"] if previous else []
        print(
            f"# question {number}: seeds from {source}: {', '.join(map(str, in_source)) or 'none'}"
        )
        seeds = tuple(s for s in seeds if s not in in_source)
    listed = ", ".join(map(str, seeds)) or "none"
    print(f"# question {number} -> {options.out / str(number)}, seeds {listed}")
    minutes = settings.minutes * len(seeds) * options.size
    print(f"# about {minutes:.1f} min of one thread; hash {registry.digest(claims, scaled)}")
    print(yaml.safe_dump({"sizes": scaled.sizes, "arms": scaled.arms}, sort_keys=False))
    for c in claims:
        print(f"{c.key:<40} {c.metric}: {' against '.join(map(str, (c.arm, c.versus)))}")


_KEYS = {"h": "holds", "d": "fails", "x": "depends", "": ""}


def _predict(number: int, options: _Options) -> None:
    """Ask for a guess on each claim that has none yet."""
    file = options.out / str(number) / page.PREDICTIONS
    guesses: dict[str, Any] = read_object(file)
    text = page.read_text(options.lang)
    words: Mapping[str, str] = text["common"]["terminal"]
    for name, texts in text["questions"][str(number)]["claims"].items():
        if name in guesses:
            continue
        print(f"{name}  {texts['claim']}")
        while (key := input(words["predict"]).strip().lower()) not in _KEYS:
            print(words["not_understood"])
        guesses[name] = _KEYS[key]
        write_atomic(file, (to_json(guesses, indent=1) + "\n").encode())


def _show(folder: Path, result: experiment.Result, options: _Options) -> None:
    """Print the verdicts and write the pages."""
    html = page_files.write(folder, options.lang)
    shown_page = page.make(folder, options.lang)
    common = page.read_text(options.lang)["common"]
    print(f"\n{shown_page.title}\n")
    print(
        " ".join(shown_page.answer) if options.lang != "zh" else "".join(shown_page.answer),
        end="\n\n",
    )
    for row in shown_page.rows:
        guess = f" [{shown_page.words['guess']}: {row.guess}]" if row.guess else ""
        print(f"{row.id:<6} {row.claim}{guess}")
        print("       " + "\n       ".join(row.verdict))
        print("       " + "\n       ".join(row.measured))
    count = sum(v["outcome"] == "undecided" for v in result["claims"].values())
    seeds = len(result["seeds"])
    if count and seeds == LOOKS[0] and not options.seeds:
        values = {"count": str(count), "looks": str(seeds), "number": str(result["question"])}
        print(page.fill(common["terminal"]["undecided_left"], values, "terminal"))
    print(page.fill(common["terminal"]["page"], {"path": str(html)}, "terminal"))
