"""The README is a test: its commands and its Python example run as written, on tiny models.

``tests/datagen/test_fetch.py`` runs the one that fetches a model, and looks at the model.
"""

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
from tests.support.processes import PYTHONPATH, Forked
from tests.support.readme import COMMANDS, EXAMPLE, PAGE, ROOT

LIGHT = ("--help", "recipes")
"""Run in a new interpreter; the others, which import torch, in a process that has imported it."""


def run(work: Path, words: list[str], **env: str) -> str:
    """What a ``trimtab`` command prints in the folder ``work``; it must succeed.

    The doctor's exit status is 1 where it has findings, as for a model that was trained on nothing.
    """
    assert words[0] == "trimtab"
    if words[1] in LIGHT:
        command = [sys.executable, "-m", *words]
        variables = {**os.environ, "PYTHONPATH": PYTHONPATH, **env}
        result = subprocess.run(command, cwd=work, env=variables, capture_output=True, text=True)
        status, text, output = result.returncode, result.stdout, result.stdout + result.stderr
    else:
        process = Forked(*words[1:], folder=work, env=env)
        status, text, output = process.wait(), process.stdout(), process.output()
    assert status in ((0, 1) if words[1] == "doctor" else (0,)), f"{shlex.join(words)}\n{output}"
    return text


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
        "model: {path: MODEL}\ndata: {path: prompts.jsonl}\nsampling: {max_new_tokens: 4}\n"
        "rewards: [{function: 'length.py:score'}]\nbatch_size: 1\nout: runs/rl\n",
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
def test_commands_and_example_run(work: Path) -> None:
    """In the order of the page; each command finds what the ones before it have written."""
    names = set[str]()
    for words in COMMANDS:
        names.add(words[1])
        if words[1] == "label":
            label(work, words)
        elif words[1] == "judge":
            judge(work, words)
        elif words[1] == "fetch":
            assert "name: smollm2" in run(work, [*words, "--dry-run"])
        elif words[1] == "question":  # tests/questions runs it, at a tenth of its size
            assert "seed" in run(work, [*words, "--dry-run"])
        else:
            text = run(work, words)
            assert text or words[1] in ("sft", "reward", "dpo", "grpo"), words
    assert (work / "runs/sft/model/config.json").exists()
    assert (work / "runs/dpo/model/config.json").exists()
    assert names >= {"sft", "reward", "dpo", "grpo", "label", "judge", "agreement", "doctor"}

    shutil.copytree(work / "runs" / "rm" / "model", work / "runs" / "demo" / "reward" / "model")
    (work / "example.py").write_text(EXAMPLE, encoding="utf-8")
    example = Forked("example.py", folder=work, script=True)
    example.finish()
    assert len(example.stdout().split()) >= 6  # five rewards and a verdict


def label(work: Path, words: list[str]) -> None:
    """Starts the page with the README's flags; each annotator judges 20 comparisons."""
    assert words[:3] == ["trimtab", "label", "prompts.jsonl"]
    flags = [str(work / w) if w == "MODEL" else w for w in words[3:]]
    server = Server(work / words[2], work / "runs" / "label", *flags, forked=True)
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
