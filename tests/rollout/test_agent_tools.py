"""The recipe agent-tools: its questions, demonstrations and masks, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from tests.support.scripted_engine import ScriptedEngine, last_tool_result
from trimtab.config import build
from trimtab.data import formats
from trimtab.data.dataset import DataSpec, load_groups
from trimtab.data.load_tokenizer import load_tokenizer
from trimtab.data.render import Renderer
from trimtab.recipes.agent_tools import call_text, prepare, right, same_tokens
from trimtab.rollout.environment import Environments, EnvironmentSpec
from trimtab.sample.sampler import SamplingConfig
from trimtab.types import Row


def solves(prompt: str) -> str:
    """A policy that calls the right tool and repeats its result."""
    result = last_tool_result(prompt)
    if result is not None:
        return result
    words = prompt.split("<user>")[1].split("<assistant>")[0].split()
    if "of" in words:
        return call_text("lookup", who=words[5], what=words[3])
    return call_text("calculate", a=int(words[2]), op=words[3], b=int(words[4]))


def test_every_question_has_an_answer_by_a_tool_and_every_mask_is_right(tmp_path: Path) -> None:
    prepare(tmp_path, demonstrations=60, prompts=10, held_out=40, good=0.4, hidden=32, layers=1)
    renderer = Renderer(load_tokenizer(str(tmp_path / "tokenizer")))
    prompts = load_groups(
        build(DataSpec, {"path": str(tmp_path / "heldout.jsonl")}), formats.prompts, renderer.prompt
    )
    spec = EnvironmentSpec(factory="trimtab.recipes.agent_tools:Desk")
    environments = Environments(spec, (), renderer, 256)
    engine = ScriptedEngine(renderer, solves)
    groups = environments(engine, prompts, SamplingConfig(), n=2, key=(0,))
    played = [(g, c) for g in groups for c in g.completions]
    messages = [cast("list[Row]", c.messages) for _, c in played]
    assert right(messages, [g.extra["answer"] for g, _ in played]) == [1.0] * 80
    assert all(all(same_tokens(renderer, g, c)) for g, c in played)
    # One position off is noticed.
    group, completion = played[0]
    completion.mask = ~completion.mask
    assert not any(same_tokens(renderer, group, completion)[len(group.prompt) :])
    demonstrations = load_groups(
        build(DataSpec, {"path": str(tmp_path / "demonstrations.jsonl")}),
        formats.demonstrations,
        renderer.demonstration,
    )
    unknown = renderer.tokenizer.unk_token_id
    for g in demonstrations:
        (c,) = g.completions
        assert unknown not in c.ids and unknown not in g.prompt
        assert g.prompt[: len(group.prompt)].tolist()[:3] == group.prompt[:3].tolist()
    turns = {len(c.ids[c.mask]) < len(c.ids) for g in demonstrations for c in g.completions}
    assert turns == {True, False}
