"""Models that trimtab trained, and docs/neighbours.md where ``make neighbours`` asks for it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

import trimtab as tt
from tests.support.chatml import chatml_model, demonstrations, pairs
from tests.support.neighbours import ENVIRONMENTS, ROWS, write_page


def pytest_sessionfinish() -> None:
    path = os.environ.get("TRIMTAB_NEIGHBOURS_PAGE")
    if path and ROWS:
        write_page(Path(path))


@dataclass(frozen=True, slots=True)
class Exported:
    """Folders that trimtab exported, and comparisons that the reward model was not trained on."""

    policy: Path
    reward: Path
    pairs: Path
    held_out: Path


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    if not ENVIRONMENTS.is_dir():
        pytest.skip(f"no programs in {ENVIRONMENTS}: make neighbours-env")
    folder = tmp_path_factory.mktemp("exported")
    config, tokenizer = chatml_model(folder)
    optim = {"lr": 3e-3}
    base = {"path": str(config), "tokenizer": str(tokenizer), "device": "cpu"}
    data = demonstrations(folder / "demonstrations.jsonl", 128)
    tt.sft(model=base, data=data, optim=optim, epochs=4, out=folder / "sft")
    policy = folder / "sft" / "model"
    train = pairs(folder / "pairs.jsonl", 160, seed=0)
    held_out = pairs(folder / "held-out.jsonl", 64, seed=1)
    model = {"path": str(policy), "device": "cpu"}
    tt.reward_model(model=model, data=train, optim=optim, epochs=2, out=folder / "reward")
    return Exported(policy, folder / "reward" / "model", train, held_out)
