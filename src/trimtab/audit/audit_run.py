"""``trimtab audit RUN``: get gold scores for a share of a finished run's rollouts, and test them."""

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field, ValidationError

from trimtab.audit.audit_page import headline, write_page
from trimtab.audit.gold_audit import (
    ALPHA,
    AuditedRollout,
    GoldSpec,
    append_audit,
    read_audit,
    summarise,
    with_ids,
)
from trimtab.audit.run_settings import RunSettings
from trimtab.config import Config
from trimtab.data import formats, sources
from trimtab.data.formats import Example
from trimtab.data.load_tokenizer import load_tokenizer
from trimtab.data.render import Renderer, readable
from trimtab.errors import ConfigError, DataError
from trimtab.feedback.judgement import Item, Judgement
from trimtab.rewards.weighted_sum import Rewards
from trimtab.runs import json_lines, read_metrics, read_samples, to_json, write_atomic
from trimtab.sandbox import BASE
from trimtab.types import Row

log = logging.getLogger(__name__)

ITEMS = "audit-items.jsonl"


class AuditConfig(Config):
    """Configuration of ``trimtab audit RUN``; without gold, items and judgements it only tests."""

    renamed: ClassVar[dict[str, str]] = {"block": "block_size"}

    run: str
    """The folder of an online run that logged samples (loop.sample_steps)."""
    gold: GoldSpec | None = None
    """Scores the selected rollouts."""
    output_files: ClassVar[frozenset[str]] = frozenset({"items"})

    items: str | None = None
    """Writes them as items for a label page instead: a .jsonl file."""
    judgements: str | None = None
    """Reads people's judgements of those items: a .jsonl file."""
    rubric: str = "gold"
    """The absolute score in those judgements; without one, "bad" counts as 0 and the rest as 1."""
    share: float = Field(default=0.01, gt=0.0, le=1.0)
    """Share of all rollouts of the run to audit, limited to the logged ones."""
    low: float = 0.0
    """Lowest possible gold score ..."""
    high: float = 1.0
    """... and the highest; ``gold`` has bounds of its own."""
    block_size: int = Field(default=32, ge=4)
    """Audited rollouts per block; policies are compared by the mean gold of a block."""
    alpha: float = Field(default=ALPHA, gt=0.0, lt=1.0)
    """Probability of a false alarm over the whole run."""
    seed: int = 0
    device: str = "auto"


def count_rollouts(settings: RunSettings, logged: Sequence[Row]) -> int:
    """The number of rollouts that the run generates; at least those logged.

    Where an older configuration does not state the group size, it is the largest number of logged
    completions of one prompt in one iteration.
    """
    size = settings.group_size
    if size is None:
        counts = Counter((r.get("step"), r.get("id")) for r in logged)
        size = max(counts.values(), default=1)
    return max(len(logged), settings.steps * settings.batch_size * size)


def draw(run: Path, share: float, seed: int) -> list[Row]:
    """Rows of ``samples/`` to audit that were not audited before.

    A fifth of them comes from the first step, because every later step is compared with it; the rest
    is spread evenly over the logged steps.

    Raises:
        DataError: the run logged no scored samples.
    """
    rows = [r for r in with_ids(read_samples(run)) if isinstance(r.get("reward"), (int, float))]
    if not rows:
        raise DataError(
            f"{run}/samples: no scored rollouts; train with loop.sample_steps, or with the key audit"
        )
    done = {r.key for r in read_audit(run)}
    count = max(1, math.ceil(share * count_rollouts(RunSettings.read(run), rows))) - len(done)
    by_step: dict[int, list[Row]] = {}
    for r in rows:
        if (int(r["step"]), r["id"], r["index"]) not in done:
            by_step.setdefault(int(r["step"]), []).append(r)
    rng = np.random.default_rng((seed, 41))
    queues = [[part[int(i)] for i in rng.permutation(len(part))] for part in by_step.values()]
    selected: list[Row] = []
    if queues and not done:
        first = max(0, count // 5)
        selected, queues[0] = queues[0][:first], queues[0][first:]
    while len(selected) < count and any(queues):
        for queue in queues:
            if queue and len(selected) < count:
                selected.append(queue.pop())
    return sorted(selected, key=lambda r: int(r["step"]))


def _prompts(run: Path) -> dict[str, Example]:
    """The prompts of the run's dataset, by the text that a person reads."""
    path = RunSettings.read(run).data
    if path is None or not Path(path).exists():
        return {}
    examples = formats.prompts(sources.read(path, strict=False))
    return {readable(e.prompt): e for e in examples}


def as_examples(samples: Sequence[Row], run: Path) -> list[Example]:
    """Logged rollouts as prompts with one completion each, with the columns of the run's dataset."""
    prompts = _prompts(run)
    examples: list[Example] = []
    for i, r in enumerate(samples):
        text = str(r["prompt"])
        row = prompts.get(text)
        conversation = row.prompt if row is not None and isinstance(row.prompt, list) else None
        examples.append(
            Example(
                str(i),
                conversation or [{"role": "user", "content": text}],
                [[{"role": "assistant", "content": str(r["completion"])}]],
                extra=dict(row.extra) if row is not None else {},
            )
        )
    return examples


def _audited(
    sample: Row, gold: float, kl_by_step: Mapping[int, float], source: str
) -> AuditedRollout:
    fields = {key: sample[key] for key in ("step", "id", "index")}
    fields |= {"proxy": sample["reward"], "kl": sample.get("kl")}
    kl_mean = kl_by_step.get(int(sample["step"]))
    return AuditedRollout.model_validate(
        {**fields, "gold": gold, "kl_mean": kl_mean, "source": source}
    )


def recorded_kl(run: Path) -> dict[int, float]:
    """Mean KL by step as the run recorded it, nats per completion."""
    return {
        int(r["step"]): float(r["objective/kl"])
        for r in read_metrics(run)
        if isinstance(r.get("objective/kl"), (int, float))
    }


def score(samples: Sequence[Row], run: Path, config: AuditConfig) -> list[AuditedRollout]:
    """The selected rollouts with their gold; those that could not be scored are dropped.

    Raises:
        DataError: none could be scored.
    """
    gold = config.gold
    assert gold is not None
    tokenizer = load_tokenizer(gold.model or str(BASE))
    renderer = Renderer(tokenizer)
    examples = as_examples(samples, run)
    groups = [g for g in map(renderer.scoring, examples) if g is not None]
    Rewards([gold.reward()], tokenizer, 8192, config.device)(groups)
    kl_by_step = recorded_kl(run)
    scores = [g.completions[0].scores["gold"] for g in groups]
    audited = [
        _audited(r, s.value, kl_by_step, gold.source)
        for r, s in zip(samples, scores, strict=True)
        if s.value is not None
    ]
    if samples and not audited:
        raise DataError(f"gold scored no rollout; the first failure was {scores[0].detail}")
    return audited


def export(samples: Sequence[Row], run: Path, path: Path, seed: int) -> int:
    """Write the selected rollouts as items in random order, and which rollouts they are into the run.

    Annotators see prompt and completion; step and reward stay in the run folder.
    """
    origins: list[Row] = []
    items: dict[str, Item] = {}
    for r in samples:
        item = Item.of([{"role": "user", "content": str(r["prompt"])}], [str(r["completion"])])
        items[item.id] = item
        columns = ("step", "reward", "kl", "id", "index", "prompt")
        origins.append({"item": item.id, **{k: r.get(k) for k in columns}})
    order = np.random.default_rng((seed, 43)).permutation(len(items))
    shuffled = [list(items.values())[int(i)] for i in order]
    write_atomic(path, "".join(i.model_dump_json() + "\n" for i in shuffled).encode())
    lines = "".join(to_json(o) + "\n" for o in origins)
    write_atomic(run / ITEMS, lines.encode("utf-8", "replace"))
    return len(items)


def read_judgements(path: Path, run: Path, rubric: str) -> list[AuditedRollout]:
    """Gold of the exported rollouts from people's judgements: the mean over annotators.

    Raises:
        DataError: nothing was exported, a line is no judgement, or none is of these items.
    """
    if not (run / ITEMS).is_file():
        raise DataError(
            f"{run / ITEMS}: no such file; export items first: trimtab audit {run} --items FILE"
        )
    if not path.is_file():
        raise DataError(f"{path}: no such file of judgements")
    values: dict[str, dict[str, float]] = {}
    for number, line in json_lines(path.read_bytes()):
        try:
            j = Judgement.model_validate_json(line)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise DataError(f"{path}, line {number}: not a judgement: {reason}") from None
        if j.status == "ok":
            scores = j.scores.get(rubric)
            # A later judgement of the same person replaces the earlier one.
            values.setdefault(j.item, {})[j.annotator] = scores[0] if scores else float(not j.bad)
    kl_by_step = recorded_kl(run)
    audited: list[AuditedRollout] = []
    for _, line in json_lines((run / ITEMS).read_bytes()):
        sample = json.loads(line)
        by_annotator = values.get(sample["item"])
        if by_annotator:
            gold = float(np.mean(list(by_annotator.values())))
            audited.append(_audited(sample, gold, kl_by_step, "+".join(sorted(by_annotator))))
    if not audited:
        raise DataError(f"{path}: no judgement is of an item in {run / ITEMS}")
    return audited


def main(config: AuditConfig) -> dict[str, object]:
    """Score or export rollouts, then test. Writes audit.jsonl, audit.json and audit.html into the run.

    Raises:
        DataError: nothing was audited, or a file cannot be used.
    """
    c, run = config, Path(config.run)
    if not run.is_dir():
        raise ConfigError(f"{run}: no such run folder")
    if sum(x is not None for x in (c.gold, c.items, c.judgements)) > 1:
        raise ConfigError("gold, items and judgements exclude each other: give one of them")
    if c.items is not None:
        n = export(draw(run, c.share, c.seed), run, Path(c.items), c.seed)
        log.info(
            "audit: %d rollouts to judge -> %s; then run: trimtab audit %s --judgements FILE",
            n,
            c.items,
            run,
        )
        return {"items": n}
    if c.gold is not None:
        append_audit(run, score(draw(run, c.share, c.seed), run, c))
    elif c.judgements is not None:
        done = {r.key for r in read_audit(run)}
        human_rollouts = read_judgements(Path(c.judgements), run, c.rubric)
        append_audit(run, [r for r in human_rollouts if r.key not in done])
    audited = read_audit(run)
    if not audited:
        raise DataError(
            f"{run}/audit.jsonl: no rollout was audited; give gold (a scorer) or items (for people)"
        )
    low, high = (c.low, c.high) if c.gold is None else (c.gold.low, c.gold.high)
    summary = summarise(audited, low, high, c.alpha, c.block_size)
    plain = summary.to_json()
    write_atomic(run / "audit.json", to_json(plain, indent=1).encode())
    page = write_page(run, audited, summary, c.alpha, c.block_size)
    head, text, _ = headline(summary, c.alpha)
    log.info("audit: %s. %s -> %s", head, text, page)
    return plain
