"""``trimtab audit RUN``: have a share of a finished run's rollouts scored, and read what it says."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from trimtab.audit.audit_page import verdict, write_page
from trimtab.audit.gold_audit import (
    ALPHA,
    GoldSpec,
    Row,
    append_rows,
    numbered,
    read_audit,
    reading,
    told,
)
from trimtab.config import Config, read_yaml
from trimtab.data import formats, sources
from trimtab.data.formats import Example
from trimtab.data.render import Renderer, load_tokenizer, readable
from trimtab.errors import ConfigError, DataError
from trimtab.feedback.judgement import Item, Judgement
from trimtab.rewards.score import Rewards
from trimtab.runs import read_metrics, read_samples, to_json, write_atomic
from trimtab.runs.console import console
from trimtab.sandbox import BASE

ITEMS = "audit-items.jsonl"


class AuditConfig(Config):
    """Configuration of ``trimtab audit RUN``. Without gold, items or judgements it reads alone."""

    run: str
    """The folder of an online run that logged samples (loop.sample_every)."""
    gold: GoldSpec | None = None
    """Scores the drawn rollouts at once."""
    items: str | None = None
    """Writes them as items for a label page instead: a .jsonl file."""
    judgements: str | None = None
    """Reads what people said of them: a .jsonl file of judgements."""
    rubric: str = "gold"
    """The absolute score in those judgements; where there is none, "bad" is 0 and else is 1."""
    share: float = Field(default=0.01, gt=0.0, le=1.0)
    """Of all rollouts of the run, as far as they were logged."""
    low: float = 0.0
    """Lowest gold score there can be ..."""
    high: float = 1.0
    """... and the highest; those of ``gold`` where it is given."""
    block: int = Field(default=32, ge=4)
    alpha: float = Field(default=ALPHA, gt=0.0, lt=1.0)
    seed: int = 0
    device: str = "auto"


def rollouts(config: dict[str, Any], logged: int) -> int:
    """Number of rollouts of a run with this resolved configuration; at least the ``logged`` ones."""
    try:
        per_iteration = config["batch_size"] * config["method"]["group_size"]
    except (KeyError, TypeError):  # a run of another tool, or of an earlier release
        return logged
    return max(logged, int(config.get("steps", 0)) * per_iteration)


def draw(run: Path, share: float, seed: int) -> list[dict[str, Any]]:
    """Rows of samples to audit, none that was audited before: a fifth of them from the first step, since
    all that comes is compared with it, the rest evenly over the logged steps.

    Raises:
        DataError: the run logged no scored samples.
    """
    rows = [r for r in numbered(read_samples(run)) if isinstance(r.get("reward"), (int, float))]
    if not rows:
        raise DataError(
            f"{run}/samples: no scored rollouts; train with loop.sample_every, or with the key audit"
        )
    done = {(r.step, r.prompt_id, r.index) for r in read_audit(run)}
    held = read_yaml(run / "config.yaml") if (run / "config.yaml").is_file() else {}
    want = max(1, math.ceil(share * rollouts(held, len(rows)))) - len(done)
    steps: dict[int, list[dict[str, Any]]] = {}
    for r in rows:
        if (int(r["step"]), r["id"], r["index"]) not in done:
            steps.setdefault(int(r["step"]), []).append(r)
    rng = np.random.default_rng((seed, 41))
    queues = [[part[int(i)] for i in rng.permutation(len(part))] for part in steps.values()]
    start = queues[0][: 0 if done else max(0, want // 5)] if queues else []
    picked: list[dict[str, Any]] = start
    if queues:
        queues[0] = queues[0][len(start) :]
    while len(picked) < want and any(queues):
        for queue in queues:
            if queue and len(picked) < want:
                picked.append(queue.pop())
    return sorted(picked, key=lambda r: int(r["step"]))


def columns(run: Path) -> dict[str, dict[str, Any]]:
    """Other columns of the run's prompts, by the prompt as a person reads it."""
    config = run / "config.yaml"
    data = (read_yaml(config).get("data") or {}) if config.is_file() else {}
    if not data.get("path") or not Path(data["path"]).exists():
        return {}
    examples = formats.prompts(sources.read(data["path"], strict=False))
    return {readable(e.prompt): e.extra for e in examples}


def _row(sample: dict[str, Any], gold: float, mean: float | None, source: str) -> Row:
    return Row(
        step=int(sample["step"]), prompt_id=sample["id"], index=sample["index"], proxy=float(sample["reward"]),
        gold=gold, kl=sample.get("kl"), kl_mean=mean, source=source,
    )  # fmt: skip


def distances(run: Path) -> dict[int, float]:
    """KL of each step as the run recorded it."""
    return {
        int(r["step"]): float(r["objective/kl"])
        for r in read_metrics(run)
        if isinstance(r.get("objective/kl"), (int, float))
    }


def score(picked: Sequence[dict[str, Any]], run: Path, config: AuditConfig) -> list[Row]:
    """Gold of the drawn rollouts; those that could not be scored are left out.

    Raises:
        DataError: none could be scored.
    """
    gold = config.gold
    assert gold is not None
    tokenizer = load_tokenizer(gold.model or str(BASE))
    renderer = Renderer(tokenizer, max_prompt=1 << 20, max_tokens=1 << 20)
    known = columns(run)
    groups = [
        renderer.comparison(
            Example(
                str(i), [{"role": "user", "content": str(r["prompt"])}],
                [[{"role": "assistant", "content": str(r["completion"])}]],
                extra=dict(known.get(str(r["prompt"]), {})),
            )
        )
        for i, r in enumerate(picked)
    ]  # fmt: skip
    made = [g for g in groups if g is not None]
    Rewards([gold.reward()], tokenizer, 8192, config.device)(made)
    kl = distances(run)
    rows: list[Row] = []
    for r, g in zip(picked, made, strict=True):
        value = g.completions[0].scores["gold"].value
        if value is not None:
            rows.append(_row(r, value, kl.get(int(r["step"])), gold.source))
    if picked and not rows:
        first = made[0].completions[0].scores["gold"]
        raise DataError(f"gold scored no rollout; the first failure was {first.detail}")
    return rows


def export(picked: Sequence[dict[str, Any]], run: Path, path: Path, seed: int) -> int:
    """Write the drawn rollouts as items in any order, and beside the run what they are.

    Annotators see prompt and answer; step and reward stay in the run folder.
    """
    kept: list[dict[str, Any]] = []
    items: dict[str, Item] = {}
    for r in picked:
        item = Item.of(
            [{"role": "user", "content": str(r["prompt"])}], [str(r["completion"])],
        )  # fmt: skip
        items[item.id] = item
        kept.append(
            {
                "item": item.id,
                **{k: r.get(k) for k in ("step", "reward", "kl", "id", "index", "prompt")},
            }
        )
    order = np.random.default_rng((seed, 43)).permutation(len(items))
    shuffled = [list(items.values())[int(i)] for i in order]
    write_atomic(path, "".join(i.model_dump_json() + "\n" for i in shuffled).encode())
    write_atomic(run / ITEMS, "".join(to_json(k) + "\n" for k in kept).encode("utf-8", "replace"))
    return len(items)


def judged(path: Path, run: Path, rubric: str) -> list[Row]:
    """Gold of the exported rollouts from what people said: the mean over those who said something.

    Raises:
        DataError: nothing was exported, a line is no judgement, or none is of these items.
    """
    if not (run / ITEMS).is_file():
        raise DataError(f"{run / ITEMS}: not there; export first: trimtab audit {run} --items FILE")
    if not path.is_file():
        raise DataError(f"{path}: no such file of judgements")
    values: dict[str, dict[str, float]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            j = Judgement.model_validate_json(line)
        except ValidationError as error:
            what = error.errors()[0]["msg"]
            raise DataError(f"{path}, line {number}: not a judgement: {what}") from None
        if j.status == "ok":
            given = j.scores.get(rubric)
            # A later judgement of the same person takes the place of the earlier one.
            values.setdefault(j.item, {})[j.annotator] = given[0] if given else float(not j.bad)
    kl = distances(run)
    rows: list[Row] = []
    for line in (run / ITEMS).read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        said = values.get(sample["item"])
        if said:
            people = "+".join(sorted(said))
            gold = float(np.mean(list(said.values())))
            rows.append(_row(sample, gold, kl.get(int(sample["step"])), people))
    if not rows:
        raise DataError(f"{path}: no judgement is of an item in {run / ITEMS}")
    return rows


def main(config: AuditConfig) -> dict[str, Any]:
    """Draw, score or export, and read. Writes audit.jsonl, audit.json and audit.html into the run.

    Raises:
        DataError: nothing was audited, or a file cannot be used.
    """
    c, run = config, Path(config.run)
    if not run.is_dir():
        raise ConfigError(f"{run}: no such run folder")
    if sum(x is not None for x in (c.gold, c.items, c.judgements)) > 1:
        raise ConfigError("give one of gold, items and judgements")
    if c.items is not None:
        n = export(draw(run, c.share, c.seed), run, Path(c.items), c.seed)
        console.print(
            f"[bold]audit[/bold]: {n} rollouts to be judged -> {c.items}; then: "
            f"trimtab audit {run} --judgements FILE"
        )
        return {"items": n}
    if c.gold is not None:
        append_rows(run, score(draw(run, c.share, c.seed), run, c))
    elif c.judgements is not None:
        old = {(r.step, r.prompt_id, r.index) for r in read_audit(run)}
        new = judged(Path(c.judgements), run, c.rubric)
        append_rows(run, [r for r in new if (r.step, r.prompt_id, r.index) not in old])
    rows = read_audit(run)
    if not rows:
        raise DataError(
            f"{run}/audit.jsonl: nothing was audited; give gold (who scores) or items (for people)"
        )
    low, high = (c.low, c.high) if c.gold is None else (c.gold.low, c.gold.high)
    found = reading(rows, low, high, c.alpha, c.block)
    figures = told(found)
    write_atomic(run / "audit.json", to_json(figures, indent=1).encode())
    page = write_page(run, rows, found, c.alpha, c.block)
    head, text, _ = verdict(found, c.alpha)
    console.print(f"[bold]audit[/bold]: {head}. {text} -> {page}")
    return figures
