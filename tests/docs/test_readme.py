"""The README is a test: its commands and its Python example run as written, on tiny models."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import folders
from tests.support.judging import endpoint, items, write_items
from tests.support.labelling import Server

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
COMMANDS = [
    shlex.split(line, comments=True)
    for line in PAGE.partition("## Commands\n\n```\n")[2].partition("```")[0].splitlines()
]
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def run(work: Path, words: list[str], **env: str) -> str:
    """The output of a ``trimtab`` command in the folder ``work``; it must succeed.

    The doctor's exit status is 1 where it has findings, as for a model that was trained on nothing.
    """
    assert words[0] == "trimtab"
    command = [sys.executable, "-m", *words]
    result = subprocess.run(command, cwd=work, env={**ENV, **env}, capture_output=True, text=True)
    assert result.returncode in ((0, 1) if words[1] == "doctor" else (0,)), (
        f"{shlex.join(words)}\n{result.stdout}{result.stderr}"
    )
    return result.stdout


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the files and models that the README names."""
    folder = tmp_path_factory.mktemp("readme")
    folders.model_folder(folder / "MODEL")
    folders.model_folder(folder / "runs" / "demo" / "sft" / "model")
    folders.demonstrations(folder / "rows.jsonl")
    folders.comparisons(folder / "pairs.jsonl", 260)
    folders.prompts(folder / "prompts.jsonl")
    (folder / "runs" / "demo" / "world").mkdir()
    shutil.copy(folder / "prompts.jsonl", folder / "runs" / "demo" / "world" / "prompts.jsonl")
    (folder / "length.py").write_text(
        "def score(completions, **columns):\n    return [float(len(c)) for c in completions]\n",
        encoding="utf-8",
    )
    (folder / "rl.yaml").write_text(
        "model: {path: MODEL}\ndata: {path: prompts.jsonl}\nsampling: {max_new_tokens: 8}\n"
        "rewards: [{function: 'length.py:score'}]\nbatch_size: 2\nout: runs/rl\n",
        encoding="utf-8",
    )
    return folder


def test_readme_is_short_and_its_links_exist() -> None:
    assert len(PAGE.splitlines()) < 150
    targets = re.findall(r"\]\((?!http)([^)#]+)", PAGE)
    assert targets and [t for t in targets if not (ROOT / t).exists()] == []


def test_every_recipe_is_in_the_table() -> None:
    table = PAGE.partition("## Recipes")[2].partition("\n## ")[0]
    rows = set(re.findall(r"^\| `([a-z0-9-]+)` \|", table, re.MULTILINE))
    assert rows == {p.stem for p in (ROOT / "src/trimtab/recipes").glob("*.yaml")}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_commands_and_example_run(work: Path) -> None:
    """In the order of the page; each command finds what the ones before it have written."""
    names = set[str]()
    for words in COMMANDS:
        names.add(words[1])
        if words[1] == "label":
            label(work, words)
        elif words[1] == "judge":
            judge(work, words)
        else:
            text = run(work, words)
            assert text or words[1] in ("sft", "reward", "dpo", "grpo"), words
    assert (work / "runs/sft/model/config.json").exists()
    assert (work / "runs/dpo/model/config.json").exists()
    assert names >= {"sft", "reward", "dpo", "grpo", "label", "judge", "agreement", "doctor"}

    shutil.copytree(work / "runs" / "rm" / "model", work / "runs" / "demo" / "reward" / "model")
    (work / "example.py").write_text(EXAMPLE, encoding="utf-8")
    python = [sys.executable, "example.py"]
    result = subprocess.run(python, cwd=work, env=ENV, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.split()) >= 6  # five rewards and a verdict


def label(work: Path, words: list[str]) -> None:
    """Starts the page with the README's flags; each annotator judges 20 comparisons."""
    assert words[:3] == ["trimtab", "label", "prompts.jsonl"]
    flags = [str(work / w) if w == "MODEL" else w for w in words[3:]]
    server = Server(work / words[2], work / "runs" / "label", *flags)
    try:
        for name in ("ann", "bob"):
            annotator, judged, deadline = server.join(name), 0, time.monotonic() + 120
            while judged < 20:
                assert time.monotonic() < deadline, server.said()
                judged += annotator.judge("0")[0] == 200 if annotator.question() else 0
    finally:
        assert server.stop() == 0, server.said()


def judge(work: Path, words: list[str]) -> None:
    (work / "runs" / "sample").mkdir()
    write_items(work / "runs" / "sample" / "items.jsonl", items(4))
    with endpoint() as server:
        run(work, [{"URL": server.url}.get(w, w) for w in words], OPENAI_API_KEY=server.key)
