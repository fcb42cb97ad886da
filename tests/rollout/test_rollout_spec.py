"""The section ``rollout`` refuses what cannot work, before anything is started."""

from __future__ import annotations

from typing import Any

import pytest

from trimtab.config import build
from trimtab.errors import ConfigError
from trimtab.rollout.rollout_spec import RolloutSpec
from trimtab.train.rl_config import RLConfig

VLLM = {"engine": "vllm", "urls": ["http://a:1"]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"urls": ["http://a:1"]}, "set rollout.engine: vllm"),
        ({"servers": 2}, "set rollout.engine: vllm"),
        ({"sync": "folder"}, "the native engine samples the model that is trained"),
        ({"engine": "vllm"}, "needs urls of running servers, or servers: N"),
        ({**VLLM, "servers": 1}, "not both"),
        ({"engine": "vllm", "urls": ["a:1"]}, "write http://HOST:PORT"),
        ({"engine": "vllm", "urls": ["http://a:1", "http://a:1"]}, "occurs twice"),
        ({**VLLM, "sync": "adapter"}, "rollout.sync: adapter needs an adapter; set model.lora"),
    ],
)
def test_bad_sections_are_refused(values: dict[str, Any], message: str) -> None:
    config = {
        "model": {"path": "m"}, "data": "d.jsonl", "rewards": [{"name": "r", "model": "r"}],
        "rollout": values,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        build(RLConfig, config)


def test_the_transport_follows_from_what_is_trained() -> None:
    spec = RolloutSpec(engine="vllm", urls=("http://a:1/v1/",))
    assert spec.urls == ("http://a:1",)
    assert spec.transport(trains_adapter=True, cuda=True) == "adapter"
    assert spec.transport(trains_adapter=False, cuda=True) == "nccl"
    assert spec.transport(trains_adapter=False, cuda=False) == "folder"
