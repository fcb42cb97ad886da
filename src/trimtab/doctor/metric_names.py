"""Names of metrics in the runs of other libraries: TRL, OpenRLHF, verl."""

from __future__ import annotations

NAMES: dict[str, tuple[str, ...]] = {
    "reward/mean": (
        "reward",
        "rewards/mean",
        "objective/scores",
        "env_reward_mean",
        "critic/rewards/mean",
        "critic/score/mean",
    ),
    "reward/std": ("reward_std", "rewards/std"),
    "objective/kl": ("kl", "objective/kl", "mean_kl", "actor/ppo_kl", "kl_div"),
    "objective/entropy": ("entropy", "policy/entropy_avg", "actor/entropy", "actor/entropy_loss"),
    "completion/length": (
        "completions/mean_length",
        "completion_length",
        "response_length",
        "response_length/mean",
    ),
    "completion/truncated": ("completions/clipped_ratio", "response_length/clip_ratio"),
    "group/uniform": ("frac_reward_zero_std",),
    "policy/clip_fraction": (
        "clip_ratio/region_mean",
        "clip_ratio",
        "policy/clipfrac_avg",
        "actor/pg_clipfrac",
    ),
    "value/explained_variance": ("critic/vf_explained_var", "val/explained_variance"),
    "rewards/margins": ("rewards/margins",),
    "rewards/accuracies": ("rewards/accuracies",),
    "logps/chosen": ("logps/chosen",),
    "logps/rejected": ("logps/rejected",),
    "accuracy": ("accuracy",),
    "margin": ("margin",),
    "score/mean": ("mean_reward",),
    "nll": ("loss", "train/loss"),
    "grad_norm/policy": ("grad_norm", "train/grad_norm", "actor/grad_norm"),
    "lr/policy": ("learning_rate", "train/learning_rate", "actor/lr"),
}
"""Names in other libraries of the metrics that alarms read."""
