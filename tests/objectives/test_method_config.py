"""The groups of keys of an online method: defaults, overrides, refusals, names of the last release."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

import trimtab
from trimtab.cli.flags import parse
from trimtab.config import build
from trimtab.objectives.advantage import AdvantageSpec
from trimtab.objectives.kl import AdaptiveKL
from trimtab.objectives.methods import METHODS, Method
from trimtab.objectives.methods.grpo import GRPO
from trimtab.objectives.methods.gspo import GSPO
from trimtab.objectives.policy import PolicyMethod
from trimtab.objectives.ratio import ClipSpec
from trimtab.train.rl import RLConfig

ROOT = Path(trimtab.__file__).parent


def read(**method: Any) -> PolicyMethod:
    return TypeAdapter(Method).validate_python(method)


def rl(**more: Any) -> dict[str, Any]:
    rewards = [{"name": "r", "function": "m:f"}]
    return {"model": {"path": "m"}, "data": {"path": "d"}, "rewards": rewards, **more}


def test_a_part_of_a_group_keeps_the_methods_other_defaults() -> None:
    gspo = read(type="gspo", clip={"low": 1e-3})
    assert (gspo.clip.low, gspo.clip.high) == (1e-3, 4e-4)
    assert GSPO(clip=ClipSpec(low=1e-3)).clip == gspo.clip
    grpo = read(type="grpo", advantage={"gamma": 0.9}, updates={"minibatches": 2})
    assert (grpo.advantage.baseline, grpo.advantage.scale) == ("group", "group")
    assert GRPO(advantage=AdvantageSpec(gamma=0.9)).advantage == grpo.advantage
    assert read(type="ppo", updates={"minibatches": 2}).updates.steps == 8


def test_another_kl_controller_keeps_place_estimator_and_beta() -> None:
    for kl in (
        read(type="grpo", kl={"type": "adaptive", "target": 3.0}).kl,
        GRPO(kl=AdaptiveKL(target=3.0)).kl,
        read(type="grpo", kl={"kind": "adaptive", "target": 3.0}).kl,
    ):
        assert isinstance(kl, AdaptiveKL)
        assert (kl.place, kl.estimator, kl.beta, kl.target) == ("loss", "k3", 0.04, 3.0)


def test_flags_of_the_command_line_merge_too() -> None:
    values = parse(["--method.type", "gspo", "--method.clip.low", "1e-3"]).values
    method = build(RLConfig, rl(**values)).method
    assert (method.clip.low, method.clip.high) == (1e-3, 4e-4)


@pytest.mark.parametrize("name", list(METHODS))
def test_a_resolved_method_is_read_back(name: str) -> None:
    method = METHODS[name]()
    assert read(**method.model_dump(mode="json")) == method


@pytest.mark.parametrize("old", list(PolicyMethod.renamed))
def test_every_key_of_the_last_release_is_read(
    old: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trimtab.config._WARNED", set[tuple[str, str]]())
    values: dict[str, Any] = {
        "advantage": "gae", "values": "critic", "baseline": "batch", "scale": "batch",
        "kl_place": "reward", "kl_estimator": "k3", "mismatch": "mask", "anchor": "sampler",
        "filter_on": "right", "dynamic_sampling": False, "mask_truncated": True,
        "whiten_advantages": True, "whiten_rewards": True, "epochs": 3, "minibatches": 2,
        "max_tries": 3, "dual_clip": 3.0, "mismatch_high": 4.0,
    }  # fmt: skip
    value = values.get(old, 0.3)
    method = read(type="reinforce_pp", **{old: value})
    read_back: Any = method
    for part in PolicyMethod.renamed[old].split("."):
        read_back = getattr(read_back, part)
    assert read_back == value
    assert f"{old!r} is now {PolicyMethod.renamed[old]!r}" in caplog.text


def test_old_and_new_names_together() -> None:
    method = read(type="grpo", advantage="process", gamma=0.5, clip_low=0.1, clip={"high": 0.3})
    assert (method.advantage.estimator, method.advantage.gamma) == ("process", 0.5)
    assert (method.clip.low, method.clip.high) == (0.1, 0.3)
    with pytest.raises(ValidationError, match="both are set"):
        read(type="grpo", clip_low=0.1, clip={"low": 0.3})
    with pytest.raises(TypeError, match=r"Old.baseline: the field is now advantage.baseline"):

        class Old(PolicyMethod):  # pyright: ignore[reportUnusedClass]
            baseline: str = "group"


def test_a_comparison_within_a_group_needs_two_completions() -> None:
    with pytest.raises(ValidationError, match="group_size: 1 is too small"):
        read(type="grpo", group_size=1)
    with pytest.raises(ValidationError, match="group_size: 1 is too small"):
        read(type="reinforce", advantage={"baseline": "group"})


@pytest.mark.parametrize("name", list(METHODS))
def test_the_resolved_configuration_states_the_group_size(name: str) -> None:
    method = {"type": name}
    resolved = build(RLConfig, rl(method=method)).model_dump(mode="json")
    size = resolved["method"]["group_size"]
    assert size == (8 if METHODS[name]().needs_groups or name == "vineppo" else 1)
    # The keys of the release before.
    config = build(RLConfig, rl(method=method, prompts=16, group=3))
    assert config.method.group_size == 3 and config.batch_size == 16
    assert build(RLConfig, rl(method=method, group=None)).method.group_size == size


@pytest.mark.slow
def test_a_new_file_is_a_new_method(tmp_path: Path) -> None:
    """Adding a method touches one file: the package's own modules are searched."""
    file = tmp_path / "mine.py"
    text = (ROOT / "objectives" / "methods" / "rloo.py").read_text()
    file.write_text(text.replace('"rloo"', '"mine"').replace("class RLOO", "class Mine"))
    code = (
        "import trimtab.objectives, pkgutil, importlib.util, sys\n"
        "spec = importlib.util.find_spec('trimtab.objectives.methods')\n"
        f"spec.submodule_search_locations.append({str(tmp_path)!r})\n"
        "package = importlib.util.module_from_spec(spec)\n"
        "sys.modules[spec.name] = package\n"
        "spec.loader.exec_module(package)\n"
        "print(package.METHODS['mine'].__name__, len(package.METHODS))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert out.stdout.split() == ["Mine", str(len(METHODS) + 1)], out.stderr
