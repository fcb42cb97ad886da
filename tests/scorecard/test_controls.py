"""Controls of the scorecard: the product is broken in one place, and the check of a row must notice.

Controls of rows whose checks need a run of their own lie beside those checks.
"""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.data import test_data
from tests.hostile import test_pickles
from tests.judges import test_judge_faults
from tests.label import test_label_app
from tests.rollout import test_recorder
from tests.sample import test_sampler
from tests.support import labelling
from tests.support.scorecard import scorecard_only
from trimtab.data import formats, load_tokenizer
from trimtab.data.sources import Rows
from trimtab.errors import UserError
from trimtab.rollout import recorder
from trimtab.sample import sampling_state

pytestmark = pytest.mark.slow


def notices(check: Callable[..., object], *arguments: Any) -> bool:
    """Whether a test fails: by an assertion, by an error it does not expect, or for want of one it does."""
    try:
        check(*arguments)
    except (AssertionError, UserError, LookupError, ValueError, pytest.fail.Exception):
        return True
    return False


@scorecard_only
def test_14_a_judge_that_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without more tries a fifth of the labels is lost, or the run ends."""
    config = test_judge_faults.config
    monkeypatch.setattr(
        test_judge_faults, "config", lambda *a, **over: config(*a, **{"tries": 1, **over})
    )
    assert notices(
        test_judge_faults.test_one_call_in_five_fails_and_hardly_a_label_is_lost, tmp_path
    )


ROW, WHY = test_data.BAD_PAIRS[2]


def test_16_bad_rows_that_are_dropped_in_strict_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    test_data.test_a_bad_row_is_named(ROW, WHY)
    start = Rows.__init__

    def lenient(self: Rows, *arguments: Any, **named: Any) -> None:
        start(self, *arguments, **{**named, "strict": False})

    monkeypatch.setattr(Rows, "__init__", lenient)
    assert notices(test_data.test_a_bad_row_is_named, ROW, WHY)


def test_16_bad_rows_that_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "comparisons", lambda rows: iter(()))
    assert notices(test_data.test_a_bad_row_is_named, ROW, WHY)


def test_17_padding_that_is_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_data.test_tokenizers(True, "<eos>", tmp_path / "a")
    monkeypatch.setattr(load_tokenizer, "_pad", lambda tokenizer, _: tokenizer.eos_token)
    assert notices(test_data.test_tokenizers, True, "<eos>", tmp_path / "b")


def test_18_another_log_prob(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = sampling_state.draw

    def sharper(logits: torch.Tensor, u: torch.Tensor, config: Any) -> Any:
        return draw(logits * 1.001, u, config)

    monkeypatch.setattr(sampling_state, "draw", sharper)
    assert notices(test_sampler.test_logp_equals_full_forward, "llama")


policy = test_recorder.policy


@pytest.fixture
def open_server() -> Iterator[Any]:
    """Answers every request of everybody with 200."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    port = server.server_address[1]
    one = SimpleNamespace(port=port, join=lambda name: labelling.Client(one))  # type: ignore[arg-type]
    yield one
    server.shutdown()
    server.server_close()


def test_23_a_server_without_access_control(open_server: Any) -> None:
    assert notices(test_label_app.test_every_route_refuses_the_anonymous, open_server)
    assert notices(test_label_app.test_the_wrong_user_is_refused, open_server)


def test_27_a_token_that_can_be_guessed(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder.secrets, "token_urlsafe", lambda _: "guess")
    assert notices(test_recorder.test_requests_that_are_refused, policy)


def test_20_a_call_that_trusts_remote_code(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(json.dumps("x") + "\nload(p, trust_remote_code = True)\n")
    assert test_pickles.trusting(tmp_path) == ["a.py: 2"]
