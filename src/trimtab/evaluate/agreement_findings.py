"""What the figures of ``trimtab agreement`` mean, in plain words, and what to do about it."""

from __future__ import annotations

from typing import Any

from trimtab.report.sections import Verdict

Found = dict[str, Any]

SWAYS = {
    "position": "the answer shown first",
    "length": "longer answers",
    "flattery": "flattery",
    "format": "markup and stock phrases",
    "self": "its own model's answers",
}
MENDS = {
    "position": "Show both orders and count what changes as a tie.",
    "length": "Use length-controlled win rates, and say in the guidelines that short is good.",
    "flattery": "Say in the guidelines that agreeing is no merit; audit pairs that differ in it.",
    "format": "Say in the guidelines that looks are no merit; audit pairs that differ in it.",
    "self": "Let another model judge.",
}


def span(found: Found | None, percent: bool = False, digits: int = 2) -> str:
    """Value and interval as text.

    >>> span({"value": 0.5, "low": 0.4, "high": 0.6})
    '0.50 [0.40, 0.60]'
    >>> span({"value": 0.5, "low": 0.4, "high": 0.6}, percent=True)
    '50% [40, 60]'
    """
    if found is None:
        return ""
    size, form, unit = (100, "{:.0f}", "%") if percent else (1, f"{{:.{digits}f}}", "")
    value, low, high = found["value"], found.get("low"), found.get("high")
    text = form.format(size * value) + unit
    if low is None or high is None:
        return text
    return f"{text} [{form.format(size * low)}, {form.format(size * high)}]"


def verdicts(found: Found) -> list[Verdict]:
    """The findings, the most useful first."""
    return [
        *_agreement(found), *_judges(found), *_biases(found), *_annotators(found),
        *_contradictions(found),
    ]  # fmt: skip


def _agreement(found: Found) -> list[Verdict]:
    group = found["agreement"]["people"]
    who = "People"
    if not group.get("units"):
        group, who = found["agreement"]["all"], "Annotators"
    if not group.get("units"):
        return [
            Verdict(
                "No pair was judged twice",
                "Without overlap nothing can be said of agreement. Let two or more annotators judge "
                "some of the same items.",
                "bad",
            )
        ]
    alpha = group["alpha"]
    if alpha is None:
        return [
            Verdict("Everyone always said the same", "Agreement beyond chance has no meaning then.")
        ]
    value = alpha["value"]
    if value >= 0.667:
        tone, head = "good", f"{who} agree well"
        text = "Labels as alike as this can be used as they are."
    elif value >= 0.3:
        tone, head = "fair", f"{who} agree in part"
        text = (
            "This is usual for preferences. Take several labels an item and keep the share of votes, "
            "so that a reward model learns how sure to be."
        )
    else:
        tone, head = "bad", f"{who} hardly agree"
        text = "Look at pairs they differ on and sharpen the guidelines before labelling more."
    return [
        Verdict(
            head,
            f"Krippendorff's alpha {span(alpha)} on {group['units']} pairs; "
            f"{group['percent']['value']:.0%} of labels of one pair are the same. {text}",
            tone,
        )
    ]


def _judges(found: Found) -> list[Verdict]:
    out: list[Verdict] = []
    means = found["kappa"]["means"]
    across, within = means.get("judge-person"), means.get("person-person")
    if across and within:
        as_good = across["high"] is not None and across["high"] >= within["value"]
        out.append(
            Verdict(
                "The judge agrees with people as people agree with each other"
                if as_good
                else "The judge agrees with people less than people with each other",
                f"Cohen's kappa: judge and person {span(across)}, person and person {span(within)}.",
                "good" if as_good else "bad",
            )
        )
    for name, told in found["judges"].items():
        plan = told["audit"]
        if plan["checked"]:
            need = plan["checks_to_target"]
            more = (
                f"The target, {plan['target']:.0%}, is reached."
                if need is not None and need <= plan["checked"]
                else f"At this rate {need - plan['checked']} more checks bring the bound to {plan['target']:.0%}."
                if need is not None
                else f"At this rate no number of checks brings it to {plan['target']:.0%}."
            )
            out.append(
                Verdict(
                    f"{name}: at most {plan['bound']:.1%} of its labels are wrong",
                    f"People checked {plan['checked']} of {plan['labels']} and differed on "
                    f"{plan['wrong']}. The bound holds at 95 % if the checked ones were drawn at "
                    f"random. {more}",
                    "good" if plan["bound"] <= plan["target"] else "fair",
                )
            )
        fit = told["calibration"]
        if fit is not None:
            out.append(
                Verdict(
                    f"{name}: its probabilities are off by {fit['ece_before']:.1%}",
                    f"After calibration ({fit['method']}, on {fit['pairs']} pairs that people judged "
                    f"too) by {fit['ece_after']:.1%} on items not used for it. "
                    + (
                        "--calibrated FILE writes its labels with better probabilities."
                        if fit["log_loss_after"] < fit["log_loss_before"]
                        else "That is no better: use them as they are."
                    ),
                    "good" if fit["ece_before"] <= 0.05 else "fair",
                )
            )
    for name, mine in found["annotators"].items():
        orders = mine["orders"]
        if orders and orders["consistency"] < 0.8:
            out.append(
                Verdict(
                    f"{name} changes its mind with the order",
                    f"Of {orders['n']:.0f} pairs shown in both orders it chose the same answer in "
                    f"{orders['consistency']:.0%}. These count as ties here, and should in training.",
                    "bad",
                )
            )
    return out


def _biases(found: Found) -> list[Verdict]:
    out: list[Verdict] = []
    for name, mine in found["annotators"].items():
        for kind, bias in mine["bias"].items():
            if not bias["found"]:
                continue
            like = "likes" if bias["coef"] > 0 else "dislikes"
            unit = f" for {bias['words']:.0f} words more" if kind == "length" else ""
            held = (
                "at equal gold score"
                if bias["control"] == "gold"
                else "against the other annotators on the same pairs"
            )
            out.append(
                Verdict(
                    f"{name} {like} {SWAYS.get(kind, kind)}",
                    f"{span({**bias, 'value': bias['coef']})} nats of log-odds{unit}, {held}. "
                    f"{MENDS.get(kind, '')}".strip(),
                    "bad",
                )
            )
    return out


def _annotators(found: Found) -> list[Verdict]:
    out: list[Verdict] = []
    for name, mine in found["annotators"].items():
        right = mine["gold"] or mine["with_people"]
        if right and right["n"] >= 20 and right["high"] < 0.6:
            source = "the known answer" if mine["gold"] else "the majority of the other people"
            out.append(
                Verdict(
                    f"{name} is little better than a coin",
                    f"With {source} in {span(right, True)} of {right['n']:.0f} pairs. Talk to them, or "
                    "leave their labels out.",
                    "bad",
                )
            )
        drift = mine["drift"]
        if drift and drift["found"]:
            way = "less" if drift["value"] < 0 else "more"
            out.append(
                Verdict(
                    f"{name} agrees {way} with the others than at first",
                    f"Later half minus earlier half: {span(drift)}. Ninety-nine of a hundred steady "
                    "panels show no such change in anyone.",
                    "bad" if drift["value"] < 0 else "fair",
                )
            )
        steady = mine["steady"]
        if steady and steady["n"] >= 10 and steady["high"] < 0.8:
            out.append(
                Verdict(
                    f"{name} answers otherwise when asked again",
                    f"The same in {span(steady, True)} of {steady['n']:.0f} repeats.",
                    "bad",
                )
            )
    return out


def _contradictions(found: Found) -> list[Verdict]:
    told = found["contradictions"]["all"]
    if not told or not told["triples"]:
        return []
    own = [
        m["cycles"] for m in found["annotators"].values() if m["cycles"] and m["cycles"]["triples"]
    ]
    cycles, triples = sum(c["cycles"] for c in own), sum(c["triples"] for c in own)
    if not triples:
        return []
    rate = cycles / triples
    return [
        Verdict(
            "Few contradict themselves" if rate < 0.1 else "Many choices go in circles",
            f"{cycles:.0f} of {triples:.0f} triples that one annotator decided whole are circles (a "
            f"over b, b over c, c over a), {rate:.0%}; coins would make 25 %. Taken together, the "
            f"majority makes {told['cycles']:.0f} in {told['triples']:.0f}. The items in most of them "
            "are listed below.",
            "good" if rate < 0.1 else "fair",
        )
    ]
