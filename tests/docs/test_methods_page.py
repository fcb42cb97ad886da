"""``docs/methods.md`` agrees with the code: every type, its defaults, its cost, its example."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import trimtab
from trimtab.objectives.kto import KTO
from trimtab.objectives.methods import METHODS
from trimtab.objectives.pairs import Direct
from trimtab.objectives.policy import PolicyMethod
from trimtab.objectives.preference import DIRECT

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
ROWS = {
    cells[0].strip("`"): cells
    for line in PAGE.splitlines()
    if line.startswith("| `")
    for cells in [[c.strip() for c in line.strip("|").split(" | ")]]
}


def test_every_type_has_a_row() -> None:
    assert sorted(ROWS) == sorted([*METHODS, *DIRECT])
    assert all(len(cells) == 7 for cells in ROWS.values())


@pytest.mark.parametrize("name", [*METHODS, *DIRECT])
def test_defaults(name: str) -> None:
    method: Any = {**METHODS, **DIRECT}[name]()
    stated = re.findall(r"`([\w.]+) ([^`]+)`", ROWS[name][3])
    assert stated
    for key, value in stated:
        default: Any = method
        for part in key.split("."):
            default = getattr(default, part)
        assert str(default) == value or float(default) == float(value), (key, default)


def online_cost(m: PolicyMethod) -> tuple[str, str]:
    """Models in memory and forward passes, by the rules of ``RLStage``."""
    models = ["policy"] + ["critic"] * m.needs_critic + ["reference"] * m.needs_reference
    old_logp_pass = m.updates.steps > 1 or m.needs_critic or m.kl.in_reward
    passes_without_gradient = old_logp_pass * (1 + m.needs_critic) + m.needs_reference
    return ", ".join(
        models
    ), f"{passes_without_gradient} + {m.updates.epochs * (1 + m.needs_critic)}"


def direct_cost(m: Direct) -> tuple[str, str]:
    return "policy", f"{(1 if m.referenced else 0) + 2 * isinstance(m, KTO)} + 1"


@pytest.mark.parametrize("name", [*METHODS, *DIRECT])
def test_cost(name: str) -> None:
    cost = online_cost(METHODS[name]()) if name in METHODS else direct_cost(DIRECT[name]())
    assert tuple(ROWS[name][5:7]) == cost


def test_recipes_named_are_there() -> None:
    for name in re.findall(r"[Rr]ecipes? ((?:`[\w-]+`(?:, )?)+)", PAGE):
        for one in re.findall(r"`([\w-]+)`", name):
            assert (Path(trimtab.__file__).parent / "recipes" / f"{one}.yaml").is_file(), one


@pytest.mark.slow
def test_the_example_is_the_file(tmp_path: Path) -> None:
    """The code on the page gives the same results as the recipe's file."""
    import torch

    from trimtab.config import import_function

    block = next(b for b in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "APOZero" in b)
    (tmp_path / "page.py").write_text(block)
    for name in ("APOZero", "median"):
        a = import_function(f"{tmp_path / 'page.py'}:{name}")
        b = import_function(
            f"{Path(trimtab.__file__).parent / 'recipes' / 'custom_method.py'}:{name}"
        )
        if name == "median":
            r, g = torch.tensor([1.0, 0.0, 5.0, 2.0]), torch.tensor([0, 0, 0, 1])
            arguments = (torch.zeros(4, 3), torch.ones(4, 3, dtype=torch.bool), r, g)
            assert torch.equal(a(*arguments), b(*arguments))
            assert a(*arguments)[:, 0].tolist() == [0.0, -1.0, 4.0, 0.0]
        else:
            from trimtab.objectives.pairs import Pairs

            x = torch.tensor([1.0, -2.0])
            p = Pairs(x, -x, x, x - 1, x * 0 + 3, x * 0 + 4)
            assert torch.equal(a().loss(p), b().loss(p))
            want = [1 - torch.sigmoid(torch.tensor(0.1)) + 0.5]
            assert a().loss(p)[0] == pytest.approx(float(want[0]))
