"""The findings of ``trimtab agreement`` in words, each with advice."""

from trimtab.evaluate.agreement_result import AgreementResult, AuditPlan
from trimtab.evaluate.table_text import span
from trimtab.report.sections import Verdict

BIAS_TARGETS = {
    "position": "the answer shown first",
    "length": "longer answers",
    "flattery": "flattery",
    "format": "markup and stock phrases",
    "self": "its own model's answers",
}
BIAS_ADVICE = {
    "position": "Show both orders and count contradictions as ties.",
    "length": "Use length-controlled win rates, and say in the guidelines that short is good.",
    "flattery": "Say in the guidelines that agreeing is no merit; audit pairs that differ in it.",
    "format": "Say in the guidelines that looks are no merit; audit pairs that differ in it.",
    "self": "Let another model judge.",
}


def verdicts(result: AgreementResult) -> list[Verdict]:
    """The findings, the most useful first."""
    return [
        *_agreement(result),
        *_judges(result),
        *_biases(result),
        *_annotators(result),
        *_contradictions(result),
    ]


def _agreement(result: AgreementResult) -> list[Verdict]:
    group, who = result.agreement["people"], "People"
    if not group.units:
        group, who = result.agreement["all"], "Annotators"
    if not group.units:
        text = (
            "Without overlap agreement cannot be measured. Let two or more annotators judge some of "
            "the same items."
        )
        return [Verdict("No pair was judged twice", text, "bad")]
    if group.alpha is None or group.percent is None:
        text = "Agreement beyond chance is undefined when every label is the same."
        return [Verdict("Everyone always said the same", text)]
    if group.alpha.value >= 0.667:
        tone, title = "good", f"{who} agree well"
        advice = "Such labels can be used as they are."
    elif group.alpha.value >= 0.3:
        tone, title = "fair", f"{who} agree in part"
        advice = (
            "This is usual for preferences. Collect several labels per item and keep the share of "
            "votes, so that a reward model learns how sure to be."
        )
    else:
        tone, title = "bad", f"{who} hardly agree"
        advice = "Look at pairs they differ on and sharpen the guidelines before labelling more."
    text = (
        f"Krippendorff's alpha {span(group.alpha)} on {group.units} pairs; "
        f"{group.percent.value:.0%} of labels of one pair are the same. {advice}"
    )
    return [Verdict(title, text, tone)]


def _judges(result: AgreementResult) -> list[Verdict]:
    findings: list[Verdict] = []
    means = result.kappa.means
    across, within = means.get("judge-person"), means.get("person-person")
    if across and within:
        as_good = across.high is not None and across.high >= within.value
        title = (
            "The judge agrees with people as well as people agree with each other"
            if as_good
            else "The judge agrees with people less than people with each other"
        )
        text = f"Cohen's kappa: judge and person {span(across)}, person and person {span(within)}."
        findings.append(Verdict(title, text, "good" if as_good else "bad"))
    for name, judge in result.judges.items():
        plan, fit = judge.audit, judge.calibration
        if plan.checked:
            text = (
                f"People checked {plan.checked} of {plan.labels} and differed on {plan.wrong}. The "
                "bound holds at 95 % if the checked ones were drawn at random. "
                + _checks_left(plan)
            )
            title = f"{name}: at most {plan.bound:.1%} of its labels are wrong"
            findings.append(Verdict(title, text, "good" if plan.bound <= plan.target else "fair"))
        if fit is not None:
            advice = (
                "--calibrated FILE writes its labels with better probabilities."
                if fit.log_loss_after < fit.log_loss_before
                else "That is no better: use them as they are."
            )
            text = (
                f"After calibration ({fit.method}, on {fit.pairs} pairs that people judged too) by "
                f"{fit.ece_after:.1%} on items not used for it. {advice}"
            )
            title = f"{name}: its probabilities are off by {fit.ece_before:.1%}"
            findings.append(Verdict(title, text, "good" if fit.ece_before <= 0.05 else "fair"))
    for name, annotator in result.annotators.items():
        orders = annotator.orders
        if orders and orders.consistency < 0.8:
            text = (
                f"Of {orders.n:.0f} pairs shown in both orders it chose the same answer in "
                f"{orders.consistency:.0%}. The others count as ties here, and should in training."
            )
            findings.append(Verdict(f"{name} changes its mind with the order", text, "bad"))
    return findings


def _checks_left(plan: AuditPlan) -> str:
    need = plan.checks_to_target
    if need is None:
        return f"At this rate no number of checks lowers it to {plan.target:.0%}."
    if need <= plan.checked:
        return f"The target, {plan.target:.0%}, is reached."
    more = need - plan.checked
    return f"At this rate {more} more checks lower the bound to {plan.target:.0%}."


def _biases(result: AgreementResult) -> list[Verdict]:
    findings: list[Verdict] = []
    for name, annotator in result.annotators.items():
        for kind, bias in annotator.bias.items():
            if not bias.significant:
                continue
            verb = "likes" if bias.coef > 0 else "dislikes"
            unit = f" per {bias.words:.0f} words more" if bias.words is not None else ""
            control = (
                "at equal gold score"
                if bias.control == "gold"
                else "against the other annotators on the same pairs"
            )
            text = f"{span(bias.figure)} nats of log-odds{unit}, {control}. {BIAS_ADVICE.get(kind, '')}"
            title = f"{name} {verb} {BIAS_TARGETS.get(kind, kind)}"
            findings.append(Verdict(title, text.strip(), "bad"))
    return findings


def _annotators(result: AgreementResult) -> list[Verdict]:
    findings: list[Verdict] = []
    for name, annotator in result.annotators.items():
        correct = annotator.gold or annotator.with_people
        if correct and correct.n >= 20 and correct.high < 0.6:
            source = "the gold answer" if annotator.gold else "the majority of the other people"
            text = (
                f"Agrees with {source} in {span(correct, True)} of {correct.n:.0f} pairs. Talk to "
                "them, or drop their labels."
            )
            findings.append(Verdict(f"{name} is little better than a coin", text, "bad"))
        drift = annotator.drift
        if drift and drift.significant:
            less = drift.value < 0
            text = (
                f"Later half minus earlier half: {span(drift)}. Of a hundred steady panels, "
                "ninety-nine show no such change in anyone."
            )
            title = f"{name} agrees {'less' if less else 'more'} with the others than at first"
            findings.append(Verdict(title, text, "bad" if less else "fair"))
        steady = annotator.steady
        if steady and steady.n >= 10 and steady.high < 0.8:
            text = f"The same choice in {span(steady, True)} of {steady.n:.0f} repeats."
            findings.append(Verdict(f"{name} answers otherwise when asked again", text, "bad"))
    return findings


def _contradictions(result: AgreementResult) -> list[Verdict]:
    majority = result.contradictions.all
    if majority is None or not majority.triples:
        return []
    by_name = [a.cycles for a in result.annotators.values() if a.cycles and a.cycles.triples]
    cycles, triples = sum(c.cycles for c in by_name), sum(c.triples for c in by_name)
    if not triples:
        return []
    few = cycles / triples < 0.1
    text = (
        f"{cycles:.0f} of {triples:.0f} triples with three choices of one annotator are circles (a "
        f"over b, b over c, c over a), {cycles / triples:.0%}; random choices give 25 %. The majority "
        f"of all has {majority.cycles:.0f} in {majority.triples:.0f}. The items in most of them are "
        "listed below."
    )
    title = "Few contradict themselves" if few else "Many choices go in circles"
    return [Verdict(title, text, "good" if few else "fair")]
