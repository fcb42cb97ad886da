"""Alarm 9: completions do not end, from labels without an end token, a wrong stop token, or learned."""

from __future__ import annotations

from trimtab.doctor.alarm import PAIR_STAGES, RL_STAGES, Alarm, Symptom, use
from trimtab.doctor.alarms import thresholds as limits
from trimtab.doctor.evidence import Evidence, Unchecked, end_mean, start_mean
from trimtab.stats.change import onset


def check(e: Evidence) -> Symptom | None:
    """Labels were truncated or lack an end token, or too few rollouts end by themselves."""
    unended, cut_labels = e.fact("without_end"), e.fact("cut")
    if cut_labels is not None and cut_labels > limits.CUT_LABELS:
        return Symptom(
            message=f"{cut_labels:.0%} of the training completions are truncated to the length limit.",
            number=cut_labels,
            limit=limits.CUT_LABELS,
            tier="T0",
            severity="critical" if cut_labels > limits.UNENDED_LABELS else "warning",
            cause="they are longer than data.max_completion_length, so the model learns no end for them",
            remedies=(use("longer-completions"),),
        )
    if unended is not None and e.fact("answers") and unended > limits.UNENDED_LABELS:
        return Symptom(
            message=f"{unended:.0%} of the training completions have no trained end token.",
            number=unended,
            limit=limits.UNENDED_LABELS,
            cause=(
                "labels without EOS: the pad token is the EOS and is masked, or the chat template has no "
                "end of turn"
            ),
            remedies=(use("end-tokens"),),
        )
    _, after_end = e.series("completion/after_end")
    if len(after_end) and float(after_end.max()) > limits.AFTER_END:
        return Symptom(
            message=(
                f"In {float(after_end.max()):.0%} of the completions of a step, the model ends its turn and "
                "the sampler goes on."
            ),
            number=float(after_end.max()),
            limit=limits.AFTER_END,
            tier="T0",
            cause="the stop token is wrong: the sampler does not know the token that the model ends with",
            remedies=(use("stop-token"),),
        )
    x, truncated = e.series("completion/truncated")
    if len(x) < limits.ENDS_MIN:
        if unended is None:
            raise Unchecked("completion/truncated was not recorded, and no labels were counted")
        return None
    ends = 1 - truncated
    start, late = start_mean(ends, limits.ENDS_EDGE), end_mean(ends)
    cut = [r for r in reversed(e.rollouts) if r.finish == "length"]
    if start < limits.ENDS and late < limits.ENDS:
        return Symptom(
            message=(
                f"From the first step on only {start:.0%} of completions end by themselves, and "
                f"{late:.0%} at the end."
            ),
            number=start,
            limit=limits.ENDS,
            cause="the stop token is wrong, or the model never learned to stop (labels without EOS)",
            other_causes=("max_new_tokens is too small",),
            remedies=(use("stop-token"),),
            rollouts=cut,
        )
    if late >= limits.ENDS * start:
        return None
    return Symptom(
        message=(
            f"Only {late:.0%} of completions end by themselves at the end, compared with {start:.0%} at the "
            f"start (limit {e.settings.max_new_tokens or 0} tokens)."
        ),
        number=late,
        limit=limits.ENDS * start,
        cause="the end token is not rewarded, or the reward pays for longer completions",
        other_causes=("max_new_tokens is too small for these prompts",),
        remedies=(use("missing-eos-penalty"),),
        step=onset(x, ends < limits.ENDS * start),
        rollouts=cut,
    )


ALARM = Alarm(
    number=9,
    name="endless",
    nature="mechanical",
    title="Completions do not end",
    figure="share of completions that end by themselves, or of labels without an end",
    stages=(*RL_STAGES, "sft", *PAIR_STAGES),
    remedies=(
        "missing-end",
        "mask-truncated",
        "missing-eos-penalty",
        "length-penalty",
        "end-tokens",
        "longer-completions",
        "stop-token",
    ),
    precedence=140,
    check=check,
)
