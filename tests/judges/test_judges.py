"""Judges: questions, fences, replies, orders, probabilities, majorities, calibration."""

from __future__ import annotations

import asyncio
import json
import math
import os
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.judging import endpoint, items, spec
from trimtab.errors import ConfigError, JudgeError
from trimtab.feedback.judgement import Item, Judgement
from trimtab.judges.cache import Cache
from trimtab.judges.call_error import retry_after
from trimtab.judges.chat_completion import InvalidReplyError, Reply, Token
from trimtab.judges.client import Client
from trimtab.judges.judge_config import ClientSpec, JudgeSpec
from trimtab.judges.pairwise import Judge, majority, settled
from trimtab.judges.question import ask, fence, form, mark_of
from trimtab.judges.reply import read, verdict_prob
from trimtab.judges.rubric import load_rubric, shipped
from trimtab.sandbox.scene_parser import read_scene
from trimtab.sandbox.simulated_judge import SimulatedJudge
from trimtab.sandbox.world import gold, make_scenes, sample_completion
from trimtab.stats.ranking import ranks_by_worth

PROMPT = [{"role": "user", "content": "q"}]


def reply(content: str, tokens: list[Token] | None = None) -> Reply:
    return Reply(content, tokens or [], 0.1, "2026-01-01T00:00:00+00:00", 0.0, 1, 1)


# Rubrics --------------------------------------------------------------------------------------


def test_every_shipped_rubric_makes_every_kind_of_question() -> None:
    assert "hhh" in shipped()
    for name in shipped():
        rubric = load_rubric(name)
        for mode, answers in (
            ("pairwise", ["x", "y"]),
            ("rank", ["x", "y", "z"]),
            ("score", ["x"]),
        ):
            question = ask(mode, rubric, PROMPT, answers, critique=True, dimensions=True, ties=True)  # type: ignore[arg-type]
            system, user = (m["content"] for m in question.messages)
            assert rubric.instructions.strip() in system
            assert all(p in system for p in rubric.principles)
            assert all(a in user and a not in system.split() for a in answers)
            keys = list(question.answer.model_json_schema()["properties"])
            assert all(f'"{k}"' in system for k in keys)
            # Reasons come before what they are the reasons of.
            assert keys[0] == "critique"
            assert keys[-1] in ("verdict", "ranks")


def test_a_rubric_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ninstructions: look\nprinciples: [a, b]\n")
    rubric = load_rubric(str(path))
    drawn = {rubric.principle(str(i)).principles for i in range(50)}
    assert drawn == {("a",), ("b",)}
    other = rubric.model_copy(update={"about": "changed"})
    assert other.fingerprint == rubric.fingerprint
    assert rubric.model_copy(update={"instructions": "!"}).fingerprint != rubric.fingerprint
    path.write_text("name: mine\ninstruction: look\n")
    with pytest.raises(ConfigError, match=r"(?s)mine\.yaml: .*did you mean 'instructions'"):
        load_rubric(str(path))
    with pytest.raises(ConfigError, match="none of harmless, helpful, hhh"):
        load_rubric("hhhh")


# Fences ---------------------------------------------------------------------------------------


@pytest.mark.slow
@given(st.text(max_size=60), st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_no_text_holds_the_mark_of_its_own_fence(a: str, b: str) -> None:
    parts = {"answer A": a, "answer B": b}
    mark = mark_of(parts)
    # Texts that quote this very mark get another one.
    again = {**parts, "answer B": b + fence(parts, mark)}
    assert mark_of(again) != mark
    assert mark not in a + b
    assert mark_of(parts) == mark


# Replies --------------------------------------------------------------------------------------

VERDICT = form("pairwise", load_rubric("helpful"), {}, 2, False, True)


@pytest.mark.parametrize(
    "text",
    ['{"verdict": "A"}', ' {"verdict":"A"}\n', '```json\n{"verdict": "A"}\n```',
     '<think>B is {"verdict": "B"}</think>{"verdict": "A"}',
     'B is {"verdict": "B"}</think>\n\n```json\n{"verdict": "A"}\n```',
     '[THINK]B wrote </think>{"verdict": "B"}[/THINK]{"verdict": "A"}'],
)  # fmt: skip
def test_a_reply_in_form_is_read(text: str) -> None:
    assert read(reply(text), VERDICT) == {"verdict": "A"}


@pytest.mark.parametrize(
    "text",
    ["", "A", "A is better", '{"verdict": "C"}', '{"verdict": "a"}', '{"verdict": 0}', "{}", "[]",
     '{"verdict": "A"', '{"verdict": "A", "note": 1}', 'As B says: {"verdict": "B"}',
     '{"verdict": "A"} {"verdict": "B"}', '{"verdict": "A"}</think>', '<think>{"verdict": "A"}',
     '{"verdict": ["A"]}', "null", "[" * 100_000],
)  # fmt: skip
def test_anything_else_is_no_verdict(text: str) -> None:
    with pytest.raises(InvalidReplyError):
        read(reply(text), VERDICT)


def test_a_quotation_of_thoughts_is_a_part_of_the_reply() -> None:
    criticised = form("pairwise", load_rubric("helpful"), {}, 2, True, True)
    row = {"critique": "B ends with </think> and {}", "verdict": "A"}
    assert read(reply(json.dumps(row)), criticised) == row


def test_the_probability_of_a_verdict() -> None:
    def said(*pieces: str, at: int, **top: float) -> Reply:
        tokens = [Token(p, []) for p in pieces]
        tokens[at].top = [(k, math.log(v)) for k, v in top.items()]
        return reply("".join(pieces), tokens)

    one = said('{"verdict": "', "A", '"}', at=1, A=0.6, B=0.2, tie=0.1, x=0.1)
    assert verdict_prob(one) == pytest.approx((0.6 + 0.05) / 0.9)
    # The quote and the letter in one token; the verdict of a dimension is not the verdict.
    glued = [Token('{"honest": "B", "verdict":', []), Token(' "B', []), Token('"}', [])]
    glued[1].top = [(' "B', math.log(0.7)), (' "A', math.log(0.3)), (" {", math.log(0.0001))]
    assert verdict_prob(reply("", glued)) == pytest.approx(0.3)
    assert verdict_prob(reply('{"verdict": "A"}')) is None
    assert verdict_prob(said("no", at=0, no=1.0)) is None


# Orders and votes -----------------------------------------------------------------------------


def run(judge: Judge, label_items: list[Item]) -> list[Judgement]:
    return judge.client.map(label_items, judge)


@pytest.mark.slow
def test_both_orders_turn_a_love_of_places_into_ties() -> None:
    label_items = items(40)
    with endpoint(SimulatedJudge(noise=0.0, position_bias=50.0)) as one:
        with Judge(spec(one)).client as _:
            pass
        judge = Judge(spec(one))
        assert all(j.ranks == (0, 0) for j in run(judge, label_items))
        given_order = Judge(spec(one, order="given"))
        assert all(j.ranks == (0, 1) and j.order == (0, 1) for j in run(given_order, label_items))
        drawn = Judge(spec(one, order="random"))
        judgements = run(drawn, label_items)
        assert {j.order for j in judgements} == {(0, 1), (1, 0)}
        # Whatever came first won: ranks are of the item's order, not of the shown one.
        assert all(j.ranks is not None and j.ranks[j.first] == 0 for j in judgements)


@pytest.mark.slow
def test_a_fair_judge_says_the_same_in_every_order_and_mode() -> None:
    label_items = items(25)
    truth = [
        (0, 1) if x > y else (1, 0)
        for i in label_items
        if (s := read_scene(i.prompt[0]["content"]))
        for x, y in [[gold(s, a).total for a in i.completions]]
    ]
    with endpoint(SimulatedJudge(noise=0.0)) as one:
        for over in ({}, {"order": "random"}, {"mode": "rank"}, {"rubric": "hhh"}):
            judgements = run(Judge(spec(one, **over)), label_items)
            assert [j.ranks for j in judgements] == truth, over
            assert all(j.who == "ai" and j.annotator.startswith("sim+") for j in judgements)
        scored = run(Judge(spec(one, mode="score", rubric="hhh")), label_items)
        for j, want in zip(scored, truth, strict=True):
            assert j.ranks in (want, (0, 0))  # a scale of ten steps ties what is close
            assert set(j.scores) == {"overall", "helpful", "honest", "harmless"}
        sure = run(Judge(spec(one, probabilities=True)), label_items)
        for j, (a, _) in zip(sure, truth, strict=True):
            assert j.prob is not None
            assert (j.prob > 0.5) == (a == 0)


def test_many_answers_are_ranked_by_pairs_and_equal_ones_tie() -> None:
    scene = next(s for s in make_scenes(50, 0) if s.kind == "summary")
    facts = [f.sentence for f in scene.facts]
    texts = [" ".join(facts), " ".join(facts[:2]), facts[0], facts[0]]
    item = Item.of(scene.messages(), texts)  # type: ignore[arg-type]
    with endpoint(SimulatedJudge(noise=0.0)) as one:
        (judgement,) = run(Judge(spec(one)), [item])
        assert judgement.ranks == (0, 1, 2, 2)
        # The twins are not compared, and what is asked of one is known of the other.
        assert len(one.calls) == 2 * 3
        assert judgement.prob is None


def test_settled_ranks_and_majority() -> None:
    assert settled([0.0, 0.0]) == 0.0 and settled([0.5, 0.0]) == 0.5
    assert ranks_by_worth([3, 1, 3, 2]) == (0, 2, 0, 1)

    def j(*ranks: int, **more: Any) -> Judgement:
        return Judgement(item="i", annotator="a", who="ai", ranks=ranks, **more)

    failed = Judgement(item="i", annotator="a", who="ai", status="error")
    voted = majority([j(0, 1, prob=0.9), j(0, 1, prob=0.7), j(1, 0, prob=0.2), failed])
    assert voted is not None
    assert (voted.ranks, voted.prob) == ((0, 1), pytest.approx(0.6))
    assert majority([j(0, 1), j(1, 0)]).ranks == (0, 0)  # type: ignore[union-attr]
    assert majority([failed]) is None
    # A cycle of three judges is a tie of all.
    assert majority([j(0, 1, 2), j(2, 0, 1), j(1, 2, 0)]).ranks == (0, 0, 0)  # type: ignore[union-attr]


def test_the_scene_is_read_back_from_its_prompt() -> None:
    for i, scene in enumerate(make_scenes(120, 3)):
        back = read_scene(scene.prompt)
        assert back is not None and back.prompt == scene.prompt and back.kind == scene.kind
        text = sample_completion(scene, np.random.default_rng(i))
        assert gold(back, text) == gold(scene, text)
    assert read_scene("write a poem") is None


# Endpoints that cannot be used ----------------------------------------------------------------


def test_one_clear_error_for_an_endpoint_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with endpoint() as one:
        monkeypatch.setenv("JUDGE_TEST_KEY", "a-wrong-secret-key")
        with pytest.raises(JudgeError, match=r"401.*key in \$JUDGE_TEST_KEY") as error:
            run(Judge(spec(one)), items(3))
        assert "a-wrong-secret-key" not in str(error.value)
        assert len(one.calls) == 0
        url = one.url
    with pytest.raises(JudgeError, match="cannot be reached"):
        run(Judge(JudgeSpec(endpoint=url, model="m", tries=2, backoff=0.0)), items(3))
    with endpoint(rate=1.0, kinds=("500",)) as one:
        with pytest.raises(JudgeError, match="status 500"):
            run(Judge(spec(one, tries=3, concurrency=1)), items(3))
        assert len(one.calls) == 3


def test_a_missing_sdk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match=r"pip install 'trimtab\[judge\]'"):
        Client(ClientSpec(model="m"))


@pytest.mark.parametrize("url", ["ftp://host/v1", "http://[::1/v1", "http:///v1"])
def test_a_url_that_cannot_be_called_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="endpoint: "):
        Client(ClientSpec(model="m", endpoint=url))


def test_a_reply_without_an_end_is_cut_off() -> None:
    with (
        endpoint(lambda body: ("x" * (9 << 20), [])) as one,
        pytest.raises(JudgeError, match="larger than 8 MiB"),
    ):
        run(Judge(spec(one, concurrency=1)), items(1))
    assert len(one.calls) == 1


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after("2.5") == 2.5 and retry_after("900") == 30.0
    assert retry_after("") == retry_after("soon") == retry_after("-1") == 0.0
    assert 5.0 < retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=9))) <= 9.0


def test_a_key_that_the_server_repeats_is_not_told() -> None:
    def echoing(body: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
        raise ValueError(f"bad key {os.environ['JUDGE_TEST_KEY']}")

    with endpoint(echoing) as one, pytest.raises(JudgeError) as error:
        run(Judge(spec(one)), items(1))
    assert "[redacted]" in str(error.value) and one.key not in str(error.value)


@pytest.mark.parametrize(
    ("options", "why"),
    [({"max_spend": 1.0}, "price_in and price_out"), ({"endpoint": "localhost"}, "neither a URL"),
     ({"serve": {"fail": 1}}, "not to a URL"), ({"api_key": "x"}, "api_key"),
     ({"mode": "best"}, "pairwise")],
)  # fmt: skip
def test_a_faulty_spec_says_why(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        JudgeSpec.model_validate({"model": "m", **options})


def test_a_cache_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    path.write_text("not a database, but long enough to be told from one " * 40)
    with pytest.raises(ConfigError, match=r"cache: .*cache\.sqlite"):
        Cache(str(path))


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 1)), max_size=30), st.floats(0, 5))
@settings(max_examples=50, deadline=None)
def test_the_account_never_passes_its_cap(calls: list[tuple[float, float]], cap: float) -> None:
    cache = Cache(None)
    true = 0.0
    for worst, share in calls:
        if cache.book(worst, None, cap):
            true += worst * share
            assert cache.account()[1] <= cap + 1e-9
            cache.settle(worst * share - worst)
    assert cache.account()[1] == pytest.approx(true, abs=1e-9)
    cache.close()


def test_it_runs_beside_a_loop_that_is_running() -> None:
    label_items = items(2)
    with endpoint() as one:

        async def notebook() -> list[Judgement]:
            return run(Judge(spec(one)), label_items)

        assert all(j.status == "ok" for j in asyncio.run(notebook()))


def test_everything_that_matters_is_in_the_name_of_a_reply() -> None:
    base = ClientSpec(model="m")
    names = set()
    for over in ({}, {"model": "n"}, {"temperature": 1.0}, {"seed": 1}, {"max_tokens": 9},
                 {"format": "none"}, {"probabilities": True}, {"extra": {"top_p": 0.5}},
                 {"endpoint": "https://other/v1"}):  # fmt: skip
        client = Client(base.model_copy(update=over))
        names.add(
            client._cache_key(client._body([{"role": "user", "content": "x"}], VERDICT, 0), 0)
        )
    client = Client(base)
    names.add(client._cache_key(client._body([{"role": "user", "content": "y"}], VERDICT, 0), 0))
    names.add(client._cache_key(client._body([{"role": "user", "content": "x"}], VERDICT, 1), 1))
    assert len(names) == 11
    # What changes nothing about the reply changes no name.
    same = Client(base.model_copy(update={"concurrency": 1, "timeout": 1.0, "max_calls": 3}))
    body = same._body([{"role": "user", "content": "x"}], VERDICT, 0)
    assert same._cache_key(body, 0) in names


def test_what_is_out_of_form_is_asked_again_hotter() -> None:
    mind = SimulatedJudge(noise=0.0)
    seen: list[float] = []

    def rambling(body: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
        seen.append(float(body["temperature"]))
        return ("well...", []) if len(seen) <= 2 else mind(body)

    with endpoint(rambling) as one:
        judgements = run(Judge(spec(one, order="given", concurrency=1)), items(1))
        assert judgements[0].status == "ok" and seen == [0.0, 0.5, 0.5]
        seen.clear()
        (failed,) = run(Judge(spec(one, order="given", concurrency=1, tries=2)), items(1))
    assert (failed.status, failed.detail["failure"]) == ("error", "invalid")
    assert failed.ranks is None and "well" in failed.detail["why"]


def test_a_cache_without_a_file_does_not_grow_in_memory() -> None:
    def memory_mb() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    cache = Cache(None)
    before = memory_mb()
    for i in range(20_000):
        cache.settle(0.0, f"key {i}", "x" * 2000)
    assert memory_mb() - before < 16, "40 MB of replies are held in memory"
    assert cache.get("key 7") == "x" * 2000
    cache.close()
