"""Alarms on data, reward models, judges, ends and templates: 6, 9, 10, 15, 18."""

from __future__ import annotations

from typing import Any, cast

from scipy.stats import binomtest, ttest_1samp

from trimtab.doctor.alarm import Found
from trimtab.doctor.evidence import Evidence, Unchecked, edge
from trimtab.doctor.finding import Example
from trimtab.stats.change import onset


def weak(e: Evidence) -> Found | None:
    """A reward model no better than a ruler or a coin."""
    own = e.summary.get("eval") if e.stage == "reward" else None
    sources: list[tuple[str, Any]] = [("this reward model", own)] if own else []
    sources += [(path, s.get("eval")) for path, s in e.rewards.items()]
    probed = e.probe("reward", "accuracy")
    if not any(isinstance(s, dict) and "accuracy" in s for _, s in sources) and not probed:
        raise Unchecked(
            "no held-out accuracy of a reward model: give eval_data or holdout, or run 'trimtab probe'"
        )
    for name, found in sources:
        if not isinstance(found, dict) or "accuracy" not in found:
            continue
        f = cast("dict[str, float]", found)
        ruler = max(0.5, float(f.get("length_only", 0.5)))
        low, mean = float(f["accuracy_low"]), float(f["accuracy"])
        if low <= ruler:
            return _weak(name, mean, low, ruler, int(f.get("pairs", 0)))
    for p in probed:
        ruler = max(0.5, p.baseline or 0.5)
        if p.value is not None and p.low is not None and p.low <= ruler:
            return _weak(p.name or "the reward model", p.value, p.low, ruler, p.n)
    for p in e.probe("reward", "disagreement"):
        if p.value is not None and p.value >= 2 and (p.low is None or p.low > 1):
            return Found(
                f"Members of the ensemble disagree {p.value:.1f} times as much on {p.n} rollouts as on held-out answers.",
                p.value, 2.0, "T1", "the policy writes what the reward models were not trained on",
                "Label some of the rollouts and refresh the reward model; take the worst member until then.",
                others=("labels are too few",),
            )  # fmt: skip
    return None


def _weak(name: str, mean: float, low: float, ruler: float, pairs: int) -> Found:
    return Found(
        f"{name}: {mean:.1%} of {pairs} held-out comparisons right, and the interval reaches down to {low:.1%}, "
        f"where length or a coin gets {ruler:.1%}.",
        low, ruler, "T1", "labels are too noisy or too few",
        "Label more (2,000 pairs and up), check agreement between annotators, and do no RL on it before.",
        "holdout: 300\nepochs: 2", None, ("the model is too small", "pairs are nearly ties"),
    )  # fmt: skip


def endless(e: Evidence) -> Found | None:
    """Answers that do not end: labels without an end, a wrong stop token, or learnt."""
    missing = e.fact("without_end")
    cut = e.fact("answers") or 0
    if missing is not None and cut and missing > 0.5:
        return Found(
            f"{missing:.0%} of the answers trained on have no end token that counts.", missing, 0.5, "T0",
            "labels without EOS: the pad token is the EOS and masked out, or the template has no end",
            "Mend the template or the pad token; here masks come from lengths, so look at the data's own masks.",
            "data: {max_completion: 1024}",
            others=("every answer is longer than data.max_completion",),
        )  # fmt: skip
    x, truncated = e.series("completion/truncated")
    if len(x) < 4:
        if missing is None:
            raise Unchecked("completion/truncated was not recorded, and no labels were counted")
        return None
    ends = 1 - truncated
    start, late = edge(ends, False, 0.1), edge(ends, True)
    if start >= 0.5 and late >= 0.5 * start:
        return None
    shown = [r for r in reversed(e.rollouts) if r.finish == "length"]
    if start < 0.5:
        return Found(
            f"From the first step on only {start:.0%} of answers end by themselves.", start, 0.5, "T0",
            "the stop token is wrong, or the model never learnt to stop (labels without EOS)",
            "Compare the tokenizer's EOS and the template's end of turn with generation_config.json; train SFT with the end token.",
            "", None, ("max_new_tokens is too small",), shown,
        )  # fmt: skip
    limit = int(e.key("sampling.max_new_tokens", 0))
    return Found(
        f"Only {late:.0%} of answers end by themselves at the end, {start:.0%} at the start (limit {limit} tokens).",
        late, 0.5 * start, "T0", "the end token is not rewarded, or the reward pays for going on",
        "Charge for answers without an end, and look at alarm 4.", "method: {length: {missing_eos_penalty: 1.0}}",
        onset(x, ends < 0.5 * start), ("max_new_tokens is too small for what is asked",), shown,
    )  # fmt: skip


def template(e: Evidence) -> Found | None:
    """Prompts written otherwise than the model was taught."""
    doubled = e.fact("double_bos")
    gap = e.fact("nll_gap")
    if doubled is None and gap is None:
        raise Unchecked("facts.json is not there: it is written when a stage of trimtab starts")
    if doubled:
        return Found(
            f"{doubled:.0%} of prompts begin with two BOS tokens.", doubled, 0.0, "T0",
            "the template writes a BOS and the tokenizer adds another", "Take the BOS out of one of them.",
        )  # fmt: skip
    if gap is None or gap <= 0.5:
        return None
    listed = cast("list[dict[str, str]]", e.facts.get("template_examples") or [])
    shown = tuple(
        Example(
            prompt=x["prompt"][:2000],
            answer=x["answer"][:2000],
            note="as written; then as the model knows it",
        )
        for x in listed[:5]
    )
    return Found(
        f"The model's own answers lose {gap:.2f} nats a token when prompts are written with the template in use "
        f"instead of the model's own; {e.fact('prompts_changed') or 0:.0%} of prompts differ in tokens.",
        gap, 0.5, "T0", "another chat template than the model was trained with",
        "Use the template that is saved with the model, or fine-tune with the new one first.",
        "model: {chat_template: null}", None, ("a wrong tokenizer",), examples=shown,
    )  # fmt: skip


def partial(e: Evidence) -> Found | None:
    """A judge that looks at the place, the length, or at nothing."""
    judges = [
        str(r["name"])
        for r in e.config.get("rewards") or ()
        if isinstance(r, dict) and r.get("judge")
    ]
    seen = False
    for name in judges:
        x, first = e.series(f"reward/{name}/first")
        if len(x) < 4:
            continue
        seen = True
        share = float(first.mean())
        p = float(cast("Any", ttest_1samp(first, 0.5)).pvalue)
        off = abs(share - 0.5)
        if off > 0.1 and p < 0.01:
            return Found(
                f"The answer shown first wins {share:.0%} of the verdicts of judge {name!r} over {len(x)} steps, and "
                f"the order is a coin toss (p {p:.1g}): swapped, at least {2 * off:.0%} of verdicts would turn.",
                share, 0.6 if share > 0.5 else 0.4, "T1", "the judge prefers a place",
                "Ask in both orders and average; leave out pairs on which it disagrees with itself.",
                "", None,
                ("the judge does not read the answers",), e.rollouts[::-1],
            )  # fmt: skip
    for p in (p for p in e.probes if p.of == "judge" and p.value is not None):
        seen = True
        value = p.value or 0.0
        if p.probe.startswith("swap") and value < 0.8:
            said = f"Swapping the two answers changes {1 - value:.0%} of {p.n} verdicts."
            return _judge(said, value, 0.8, p.shown())
        if p.probe == "canary" and value > 0:
            return _judge(
                f"{value:.1%} of {p.n} answers without content win.", value, 0.0, p.shown()
            )
        if p.verdict == "bad" and p.probe not in ("accuracy", "ece"):
            limit = p.baseline or 0.0
            said = f"Probe {p.probe!r}: {value:.0%} of {p.n}, where {limit:.0%} is to be expected."
            return _judge(said, value, limit, p.shown())
    if not seen:
        raise Unchecked(
            "no judge in this run, and no probe of one"
            if not judges
            else "the judge's places were not recorded"
        )
    return None


def _judge(message: str, number: float, limit: float, examples: tuple[Any, ...]) -> Found:
    return Found(
        message, number, limit, "T1", "the judge can be had without content",
        "Ask in both orders, fence the answers in its prompt, and hold it against people on a sample.",
        examples=examples[:5],
    )  # fmt: skip


def bad_pairs(e: Evidence) -> Found | None:
    """Comparisons that contradict each other, leak, or follow order or length."""
    facts = e.facts.get("comparisons")
    if not isinstance(facts, dict):
        raise Unchecked("no comparisons were counted in facts.json")
    f = cast("dict[str, float]", facts)
    odd = cast("list[dict[str, str]]", e.facts.get("odd") or [])
    shown = tuple(
        Example(prompt=x["prompt"][:2000], answer=x["answer"][:2000], note="chosen both ways")
        for x in odd[:5]
    )
    n = int(f["pairs"])
    if f["contradicted"] > 0.05:
        # Of what was asked twice, how often the second answer is the first: two fair coins get half.
        twice = max(f["repeated"], 1e-9)
        return _data(
            e, f"{f['contradicted']:.1%} of {n} pairs are contradicted by another pair, of {twice:.1%} that were judged more than once.",
            f["contradicted"], 0.05, "annotators disagree, or rows were swapped", ("columns chosen and rejected are mixed up in some source",), shown,
        )  # fmt: skip
    leak = e.fact("leaked") or 0.0
    if leak > 0.05:
        return _data(e, f"{leak:.1%} of held-out rows are also trained on.", leak, 0.05,
                     "the split was made after rows were repeated", ("near-duplicates in the source",), ())  # fmt: skip
    if f["same"] > 0.05:
        return _data(
            e,
            f"{f['same']:.1%} of {n} pairs compare a text with itself.",
            f["same"],
            0.05,
            "duplicates in the source",
            (),
            (),
        )
    for key, count, words in (
        ("chosen_first", "placed", "shown first"),
        ("chosen_longer", "sized", "longer"),
    ):
        if key in f and f[count] >= 50:
            k = round(f[key] * f[count])
            p = binomtest(k, int(f[count]), 0.5).pvalue
            limit = 0.65 if key == "chosen_first" else 0.85
            if max(f[key], 1 - f[key]) > limit and p < 1e-3:
                return _data(e, f"The answer {words} is chosen in {f[key]:.0%} of {f[count]:.0f} pairs (p {p:.1g}).",
                             f[key], limit, f"labels follow {'the order shown' if key == 'chosen_first' else 'length'}", (), ())  # fmt: skip
    return None


def _data(
    e: Evidence, message: str, number: float, limit: float, cause: str, others: tuple[str, ...], shown: tuple[Example, ...]
) -> Found:  # fmt: skip
    change = (
        "objective: {type: cdpo, smoothing: 0.1}"
        if e.stage == "dpo"
        else "objective: {smoothing: 0.1}"
    )
    return Found(
        message, number, limit, "T0", cause,
        "Look at the rows, have the disputed ones labelled again, drop duplicates before the split.",
        change, None, others, examples=shown,
    )  # fmt: skip
