"""Every number that an alarm compares with: its value, its unit and the reason for it.

They were tuned on seeds 0 to 9 of the benchmark (``docs/doctor.md``) and then frozen. After a change
the next report needs new seeds.
"""

from __future__ import annotations


class Threshold(float):
    """A number with a unit and a reason, used like any other float.

    >>> Threshold(3, "× target", "far above the target") * 6
    18.0
    """

    unit: str
    reason: str

    def __new__(cls, value: float, unit: str, reason: str) -> Threshold:
        """A float with two attributes."""
        self = super().__new__(cls, value)
        self.unit, self.reason = unit, reason
        return self


T = Threshold
NOISE = T(1e-9, "reward", "below this two rewards are equal up to rounding")

# Whether audited gold rose: several alarms are silent if it did.
GOLD_ROSE_MIN = T(12, "rollouts", "fewer give thirds of less than four")
GOLD_ROSE_T = T(1.5, "t", "last third above the first: one-sided p of about 0.07 excuses a run")
GOLD_NOT_ROSE_T = T(0.5, "t", "below it gold did not rise; in between nothing can be said")
COMMON_PAIR_SHARE = T(0.1, "of prompts", "a word pair of so many prompts is a set phrase")

# 1 over-optimised
AUDIT_MIN = T(16, "rollouts", "the permutation test needs two sides of eight")
GOLD_FELL_P = T(0.02, "p", "already corrected for any number of looks until the planned end")
GOLD_STILL_DOWN_T = T(1.645, "t", "one-sided 95 %: the last rollouts are still below the best")
GOLD_FALL_MIN = T(0.1, "× std of gold", "a smaller fall is not worth an alarm")
PROXY_ROSE_T = T(2, "t", "one-sided 98 %: the proxy rose since then, so the reward was hacked")
WATCHED_MIN = T(8, "points", "fewer have no slope, at the start or after the best stretch")
WATCHED_FELL = T(1.5, "× noise of one step", "the fall of a watched reward from its best stretch")

# 2 kl-runaway
KL_TARGET = T(6, "nats per completion", "the target where the run states none (1909.08593)")
KL_FACTOR = T(3, "× target", "far above what a controller overshoots")
RUNAWAY_LOST = T(0.5, "std of reward", "reward lost since its best: the policy is wrecked")
RUNAWAY_START = T(0.3, "of the steps before", "mean reward at the start")
RUNAWAY_RATE = T(0.5, "× reward per nat before", "a nat that buys half as much is wasted")
RUNAWAY_RATE_MIN = T(0.02, "std of reward per nat", "less is nothing")

# 3 frozen
FROZEN_KL = T(0.3, "nats per completion", "moved less than sampling noise")
FROZEN_KL_PER_TOKEN = T(0.01, "nats per token", "a longer completion moves as far by noise alone")
FROZEN_END = T(0.34, "of the steps", "the last third, where it should have moved")
FROZEN_CONFIDENCE = T(0.99, "confidence", "the interval of the reward's slope contains 0")
FROZEN_NIL = T(0.005, "nats", "moves no mean by over s/10: |gain| <= s sqrt(2 KL)")
FROZEN_STEPS = T(50, "steps", "a shorter run is taken as the start of one of this length")
FROZEN_GAIN = T(0.25, "std of reward", "a smaller best gain, spread / beta, is held back")
FROZEN_VARIES = T(1e-6, "reward", "equal rewards are alarms 13 and 14")
FROZEN_SOLVED = T(0.9, "of late rollouts", "near the best reward: nothing is left to learn")
NEAR_BEST = T(0.05, "× range of reward", "rewards this close to the best count as the best")
BEST_MIN = T(32, "rollouts", "fewer do not show what the best reward is")
BEST_QUANTILE = T(0.98, "quantile", "the best reward, without outliers; the lowest likewise")

# 4 length-hacking
LENGTH_Z = T(3, "z", "completions grew for certain")
LENGTH_GROWTH = T(0.2, "× length at the start", "less growth is no fault")
LENGTH_EXPLAINS = T(0.6, "of the gain", "70 to 90 % in published runs (2310.03716)")
LENGTH_NEW = T(0.45, "of the added words", "with more of its own word pairs it says more")

LENGTH_VISIBLE = T(0.5, "× length at the start", "clean only if such a growth would be seen")

# 5 sycophancy
BELIEF_RISE = T(0.1, "of cases", "follows the belief more than the reference does")
BELIEF_P = T(0.01, "p", "binomial, against the reference's rate")
BELIEF_PROMPTS = T(32, "prompts", "without probes: prompts that state a belief")
BELIEF_GROUP = T(8, "prompts", "without probes: at the start and at the end")
REPEAT_RISE = T(0.2, "of word pairs", "of the belief, taken over by completions")
REPEAT_EXPLAINS = T(0.3, "of the gain", "the reward pays for the belief's words themselves")
BELIEF_Z = T(2.6, "z", "without probes: two rates, one-sided p of about 0.005")

# 6 weak-reward-model
COIN = T(0.5, "accuracy", "a coin")
DISAGREEMENT = T(2, "× held-out", "members that disagree twice as much score unfamiliar text")

# 7 entropy-exhausted
ENTROPY_LEFT = T(0.1, "× entropy at the start", "73 % goes in the first 1/12 of a run (2505.22617)")
ENTROPY_EDGE = T(0.1, "of the steps", "start and end of the entropy curve")
ENTROPY_HORIZON = T(0.1, "of all steps", "a projection matters only if so much is left")
ENTROPY_ONSET = T(1.2, "× entropy at the end", "where a falling curve came near its end")
SOLVED = T(0.75, "of late rollouts", "near the best reward: exploration is no longer needed")

# 8 mode-collapse
DISTINCT_PROMPTS = T(16, "prompts", "fewer differ by chance")
DISTINCT_LEFT = T(0.5, "× distinct at the start", "half of the different completions are gone")
OPENING_SHARE = T(0.7, "of completions", "one opening has taken over ...")
OPENING_RISE = T(0.4, "of completions", "... and did not at the start")
PAID_OPENING_SHARE = T(0.55, "of completions", "right for half of the prompts is no template ...")
PAID_OPENING_RISE = T(0.2, "of completions", "... unless it rose ...")
PAID_ANYWHERE = T(0.8, "of prompts", "... and is paid whatever the prompt is")
PAID_PROMPTS = T(12, "prompts", "with and without the opening in one step; fewer say nothing")
OPENING_ONSET = T(0.3, "of completions", "above the start: where it began")

# 9 endless
UNENDED_LABELS = T(0.5, "of completions", "labels without an end token: a bug, not a few long rows")
CUT_LABELS = T(0.1, "of completions", "truncated to the length limit, so they teach no end")
ENDS = T(0.5, "of completions", "end by themselves; at the end: of those that did at the start")
AFTER_END = T(0.05, "of completions", "tokens after an end token: the sampler missed it")
ENDS_EDGE = T(0.1, "of the steps", "the start, before training changes it")
ENDS_MIN = T(4, "points", "fewer have no start and end")

# 10 template
TEMPLATE_NLL = T(0.5, "nats per token", "a changed system prompt costs less")
MARKERS = T(0.5, "of prompts", "without any special token that the model's own template writes")
MARKERS_NLL = T(0.1, "nats per token", "where these tokens are missing, less is enough")

# 11 value-collapse
CRITIC_MIN = T(12, "steps", "a critic that has just begun looks like one that does not learn")
CRITIC_SAMPLES = T(300, "completions", "fewer teach a critic little more than the mean return")
EXPLAINED = T(
    0.02, "of the variance", "nothing is explained; also the rise that counts as learning"
)
CRITIC_END = T(0.34, "of the steps", "the last third")
RETURNS_VARY = T(1e-3, "std of returns", "constant returns leave nothing to learn")
VALUES_FLAT = T(0.05, "× std of returns", "values that do not differ")
VALUES_LOW = T(0.2, "× std of returns", "values that may only begin to differ")
VALUES_RISE = T(0.01, "× std of returns", "their rise that counts as learning")
CRITIC_LR_RATIO = T(0.1, "× policy lr", "a critic this slow explains itself")

# 12 off-policy
ESS = T(0.5, "of the batch", "half of the samples are wasted")
SAMPLER_KL = T(0.05, "nats per token", "another distribution, not rounding")
CLIPPED = T(0.3, "of tokens", "the policy leaves the batch it learns from")
DRIFT_MIN = T(3, "points", "fewer have no median")
DRIFT_AT_ONCE = T(
    0.3, "× late KL", "a difference that was there at the first step is a setting, not lag"
)

# 13 dead-gradient
SKIPPED = T(0.1, "of steps", "a rare overflow is no fault")
EQUAL_GROUPS = T(0.5, "of groups", "most of the batch has no gradient")
TOO_EASY = T(0.25, "× best reward", "so near the best from the start that prompts are too easy")

# 14 reward-pipe
UNSCORED = T(0.01, "of completions", "more is no rare timeout")
FALLBACK_ROWS = T(8, "rollouts per step", "fewer give no share")
FALLBACK_STEPS = T(4, "steps", "before and after need two each")
FALLBACK_VALUES = T(8, "values", "the most common rewards that are tried as a fallback")
FALLBACK_BEFORE = T(0.02, "of completions", "had the value before: it is new")
FALLBACK_EVERY = T(0.04, "of completions", "have it in every step after")
FALLBACK_AFTER = T(0.08, "of completions", "have it after, on average")
FALLBACK_Z = T(3, "z", "the change of the share is no chance")
FALLBACK_REST = T(0.5, "std of reward", "where all rewards fell, completions got worse")
BLIND_MIN = T(8, "completions", "with and without the value; fewer cannot be compared")
BLIND_LIKE = T(0.9, "× likeness of the others", "a failure hits completions like any others")
BLIND_T = T(3, "t", "completions that differ from the others for certain are bad ones")

# 15 judge-bias
FIRST_MIN = T(4, "steps", "fewer have no t test")
FIRST_OFF = T(0.1, "from one half", "wins of the position shown first")
FIRST_P = T(0.01, "p", "over steps; orders are drawn by a coin")
SWAP_CONSISTENT = T(0.8, "of pairs", "the same winner in both orders; GPT-4 has 0.65 (2306.05685)")

# 16 degenerate
REPEATS = T(
    0.3, "of three-word sequences", "a completion that repeats itself; lists and code repeat less"
)
REPEATS_SHARE = T(0.15, "of completions", "too many repeat themselves ...")
REPEATS_RISE = T(0.1, "of completions", "... and did not at the start")
REPEATS_T = T(3, "t", "the rise of repetition is no chance")
LETTERS = T(0.5, "of characters", "are letters or spaces in any language; less is digits or signs")
ODD_SHARE = T(0.5, "of completions", "outliers under the reference ...")
ODD_RISE = T(0.3, "of completions", "... that were none at the start")
ONE_WORD = T(0.25, "of words", "one word fills a quarter")
ODD_QUANTILE = T(0.99, "quantile", "of the early NLL: beyond 1.5 times it is an outlier")
ODD_FACTOR = T(1.5, "× quantile", "and at least 1 nat per token")
ODD_MIN = T(16, "completions", "with an NLL at the start and at the end")
REPEATS_VISIBLE = T(0.3, "of completions", "clean only if such a rise would be seen")
FILLING_GROWTH = T(1.2, "× length at the start", "padding repeats itself too: alarm 4")

# 17 displacement
DISPLACED = T(-15, "nats", "chosen log-prob compared with the start; with -8 healthy runs rang")
DISPLACED_MIN = T(6, "points", "fewer have no start and end")

# 18 bad-pairs
BAD_PAIRS = T(0.05, "of pairs", "contradictions, leaks or equal texts: more than rare mistakes")
SKEW_MIN = T(50, "pairs", "fewer can be one-sided by chance")
SKEW_P = T(1e-3, "p", "binomial against a coin")
FIRST_SKEW = T(0.65, "of pairs", "the completion shown first is chosen")
LENGTH_SKEW = T(0.85, "of pairs", "the longer one is chosen; people prefer longer ones too")

# 19 shrinking
SHORT_LEFT = T(
    0.6, "× length at the start", "a shorter completion than this has lost its content ..."
)
SHORT_CONTENT = T(
    0.6, "× own word pairs at the start", "... if it says as much less; else it is concise"
)

# 20 fluency
FLUENCY_RISE = T(0.5, "nats per token", "useful RL stays below 0.3, naive rewards begin at 0.6")
FLUENCY_T = T(3, "t", "the rise is no chance")

# 21 off-topic
TOPIC_PROMPTS = T(8, "prompts", "per step or in all, fewer cannot be shuffled")
TOPIC_ROLLOUTS = T(300, "rollouts", "at the start and end; more only cost time")
TOPIC_MIN = T(
    0.02, "similarity", "of completions of one prompt above that of different prompts, at the start"
)
TOPIC_P = T(0.01, "p", "by shuffling the prompts: completions depend on them at the start")
TOPIC_LEFT = T(
    0.25, "× dependence at the start", "most of what completions say of their prompt is gone"
)
TOPIC_SHUFFLES = T(200, "shuffles", "resolve p = 0.01")

# 22 exploited-rule
EXPLOIT_COVER = T(0.8, "of the best completions", "are one of a few strings ...")
EXPLOIT_STRINGS = T(0.1, "strings per prompt", "... fewer than this, on different prompts")
EXPLOIT_BEST = T(0.3, "of late rollouts", "earn the best reward")
EXPLOIT_RISE = T(0.4, "of rollouts", "the strings took over: they are not the task's own answers")
EXPLOIT_WORDS = T(
    0.15, "of all words", "rise of five words together; in healthy runs it was at most 0.07"
)
EXPLOIT_WORDS_T = T(4, "t", "the rise is no chance, although the words were picked for it")
EXPLOIT_WORDS_EXPLAIN = T(0.3, "of the gain", "the reward pays for the words themselves")

# 24 copying
COPY_RISE = T(
    0.15, "of word pairs", "completions take over the request; a restated subject is less"
)
COPY_T = T(3, "t", "the rise is no chance")
COPY_EXPLAINS = T(0.5, "of the gain", "the reward pays for the copied words themselves")
COPY_VISIBLE = T(0.25, "of word pairs", "clean only if such a rise would be seen")

# The outcome without a finding
REAL_T = T(1.645, "t", "one-sided 95 %: audited gold of the last third is above that of the first")


def table() -> dict[str, Threshold]:
    """The thresholds by name."""
    return {k: v for k, v in globals().items() if isinstance(v, Threshold)}
