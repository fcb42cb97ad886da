"""Chat templates from strangers: no code, no endless loop, no full memory; and the same text as transformers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jinja2
import psutil
import pytest

from tests.support import folders
from trimtab.data import template_process
from trimtab.data.chat_template import ChatTemplate
from trimtab.data.conversation import BadRowError, template_columns
from trimtab.data.load_tokenizer import PLAIN
from trimtab.data.template_cost import is_cheap, linear_size
from trimtab.errors import ModelError

MESSAGES = [{"role": "user", "content": "a ?"}, {"role": "assistant", "content": "the sun ."}]

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ().__class__.__base__.__subclasses__()[0] }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['__builtins__']['eval'](MARK) }}",
    "{{ raise_exception['__globals__'] }}",
    "{{ strftime_now.__globals__.sys.modules.os.mkdir(MARK) }}",
    "{{ (strftime_now|attr('__globals__')).sys.modules.os.mkdir(MARK) }}",
    "{{ cycler.__init__.__globals__.os.mkdir(MARK) }}",
    "{{ joiner.__init__.__globals__.os.mkdir(MARK) }}",
    "{{ namespace.__init__.__globals__.os.mkdir(MARK) }}",
    "{{ lipsum.__globals__.os.mkdir(MARK) }}",
    "{{ lipsum['__globals__']['os'].mkdir(MARK) }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment.from_string('') }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(lipsum) }}",
    "{{ '{x.__globals__}'.format_map({'x': lipsum}) }}",
    "{% set f = '{0.__class__}'.format %}{{ f(messages) }}",
    "{{ ''|attr('format')|attr('__self__')|attr('__class__') }}",
    "{% set s = ['{0.__globals__}']|map('format', lipsum)|list %}{{ s }}",
    "{{ [lipsum]|map(attribute='__globals__')|list|first }}",
    "{{ [lipsum]|map(attribute='__globals__.os')|first }}",
    "{{ [lipsum]|groupby('__globals__')|list }}",
    "{{ [lipsum]|selectattr('__globals__.os')|list }}",
    "{% for x in [lipsum]|sort(attribute='__globals__') %}{% endfor %}"
    "{{ (lipsum|attr('__globals__'))['os'] }}",
    "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
    "{{ messages[0].update({'content': 'x'}) }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{% extends '/etc/passwd' %}",
    "{{ strftime_now.__func__ }}",
    "{{ (messages|attr('__iter__'))().gi_frame.f_globals }}",
    "{{ range.__self__ }}{{ namespace.__class__.__mro__[-1].__subclasses__() }}",
    "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "{{ m._func.__globals__ }}{{ raise_exception.func_globals.os.mkdir(MARK) }}",
    "{{ dict.__base__.__subclasses__() }}",
    "{{ bos_token.__class__.__base__.__subclasses__()[140]('id') }}",
]
"""Each either reaches the interpreter, changes the conversation, or reads a file, outside a sandbox."""

SLOW_OR_LARGE = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "loop over a long range": "{% for a in range(10**9) %}x{% endfor %}",
    "long text": "{{ 'a' * 10**11 }}",
    "long list": "{{ ([1] * 10**11)|length }}",
    "power": "{{ 10**(10**9) }}",
    "doubled variable": "{% set ns = namespace(s='aaaaaaaaaaaaaaaa') %}"
    "{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "doubled by hand": "{% set a = 'a' * 1000 %}" + "{% set a = a ~ a %}" * 40 + "{{ a }}",
    "printed often": "{% set a = 'a' * 10000000 %}" + "{{ a }}" * 2000,
    "join": "{% set a = 'a' * 1000000 %}{{ ([a] * 1000000)|join }}",
    "replace": "{{ ('a' * 1000000).replace('a', 'a' * 1000000) }}",
    "center": "{{ 'a'|center(10**11) }}",
    "ljust": "{{ 'a'.ljust(10**11) }}",
    "format": "{{ '%0100000000000d' % 1 }}",
    "str.format": "{{ '{:>100000000000}'.format(1) }}",
    "indent": "{{ 'a\\nb'|indent(10**11) }}",
    "recursive macro": "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "recursive loop": "{% for m in [messages] recursive %}{{ loop(messages) }}{{ loop([m]) }}{% endfor %}",
    "lipsum": "{{ lipsum(n=10**9) }}",
    "batch": "{{ [1]|batch(10**10, 'x')|list|length }}",
    "tojson": "{{ [[[1]]]|tojson(indent=10**10) }}",
    "escapes of escapes": "{{ messages" + "|tojson" * 60 + " }}",
    "escapes by hand": "{% set a = messages %}" + "{% set a = a|tojson %}" * 60 + "{{ a }}",
    "quotes of quotes": "{% set a = [messages] %}" + "{% set a = [a|string] %}" * 60 + "{{ a }}",
    "loop over characters": "{% for a in messages[0].content %}" * 3 + "x" + "{% endfor %}" * 3,
}


def template(text: str) -> ChatTemplate:
    tokenizer = folders.tokenizer()
    tokenizer.chat_template = text
    return ChatTemplate(tokenizer)


@pytest.fixture
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A process with small limits, for this test alone."""
    monkeypatch.setattr(template_process, "_PROCESS", [])
    monkeypatch.setattr(template_process, "MEMORY_GB", 0.75)
    yield
    for child in template_process._PROCESS:
        child.close()


def test_escapes_do_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    for text in ESCAPES:
        messages = [dict(m) for m in MESSAGES]
        try:
            rendered = template(text.replace("MARK", repr(str(mark))))(messages, {})
        except BadRowError:
            rendered = ""
        assert not mark.exists(), text
        assert messages == MESSAGES, text
        for leak in ("<class", "<module", "root:", "builtins", "<built-in", "gi_frame"):
            assert leak not in rendered, (text, rendered[:200])


def test_escapes_work_without_a_sandbox(tmp_path: Path) -> None:
    """The control: Jinja's ordinary environment runs code that a template names."""
    mark = tmp_path / "executed"
    attacks = [text for text in ESCAPES if "lipsum" in text and "MARK" in text]
    assert attacks
    for text in attacks:
        jinja2.Environment().from_string(text.replace("MARK", repr(str(mark)))).render()
        assert mark.is_dir()
        mark.rmdir()
    assert "<class" in jinja2.Environment().from_string(ESCAPES[0]).render()


@pytest.mark.parametrize("name", SLOW_OR_LARGE)
def test_no_costly_template_is_rendered_in_this_process(name: str) -> None:
    assert linear_size(SLOW_OR_LARGE[name]) is None


@pytest.mark.slow
def test_costly_templates_are_stopped(fresh_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but those that Jinja refuses by itself are ended, by time or memory, with this process unharmed."""
    template(SLOW_OR_LARGE["lipsum"].replace("10**9", "1"))(MESSAGES, {})  # starts the process
    monkeypatch.setattr(template_process, "TIMEOUT_S", 3.0)
    before = psutil.Process().memory_info().rss
    long = [{"role": "user", "content": "a ? " * 1000}, *MESSAGES]
    outcomes: dict[str, str] = {}
    for name, text in SLOW_OR_LARGE.items():
        started = time.monotonic()
        try:
            outcomes[name] = f"rendered {template(text)(long, {})[:50]}"
        except ModelError as error:
            outcomes[name] = "stopped" if "model.chat_template" in str(error) else str(error)
        except BadRowError:
            outcomes[name] = "refused"
        assert time.monotonic() - started < 60, name
    assert set(outcomes.values()) <= {"stopped", "refused"}, outcomes
    stopped = list(outcomes.values()).count("stopped")
    assert stopped >= 15
    assert psutil.Process().memory_info().rss - before < 200e6
    # And the next template is rendered again.
    assert "sun" in template("{{ messages[1].content|replace('a', 'b') }}")(MESSAGES, {})


def test_a_small_loop_is_not_stopped(fresh_process: None) -> None:
    """The control: the limits leave an ordinary use of the same expressions alone."""
    text = "{% set ns = namespace(s='') %}{% for m in messages %}{% set ns.s = ns.s ~ m.content %}{% endfor %}"
    assert template(text + "{{ ns.s * 2 }}|{{ '%05d' % 3 }}")(MESSAGES, {}) == (
        "a ?the sun .a ?the sun .|00003"
    )
    assert linear_size(text) is None


@pytest.mark.parametrize("text", [PLAIN, folders.TEMPLATE])
def test_plain_templates_need_no_process(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "_PROCESS", [])
    assert "the sun" in template(text)(MESSAGES, {})
    assert not template_process._PROCESS
    long = [{"role": "user", "content": "a" * 10_000_000}] * 10
    assert is_cheap(text, MESSAGES, {}) and not is_cheap(text, long, {})


def test_the_operator_may_trust_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process, "_PROCESS", [])
    monkeypatch.setenv(template_process.TRUST_KEY, "1")
    assert template("{{ messages[1].content * 2 }}")(MESSAGES, {}) == "the sun .the sun ."
    assert not template_process._PROCESS
    with pytest.raises(BadRowError):  # the sandbox stays
        template(ESCAPES[0])(MESSAGES, {})


@pytest.mark.parametrize("end", ["closed", "generate", "prefill"])
def test_the_process_renders_what_transformers_renders(end: Any, fresh_process: None) -> None:
    from tests.support import templates

    tools = [
        {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    ]
    texts = [t for t in vars(templates).values() if isinstance(t, str) and "{%" in t]
    texts.append(
        "{% set ns = namespace(n=0) %}" + folders.TEMPLATE + "{{ tools|tojson }}{{ ns.n * 2 }}"
    )
    messages = MESSAGES if end != "generate" else [*MESSAGES, MESSAGES[0]]
    if end == "prefill":  # this one cuts its content
        texts.remove(templates.PREFILLS)
    for text in texts:
        one = template(text)
        expected = one.tokenizer.apply_chat_template(
            [one._fit(m) for m in messages],
            tools=tools,
            tokenize=False,
            add_generation_prompt=end == "generate",
            continue_final_message=end == "prefill",
        )
        assert one(messages, {"tools": tools}, end) == expected


@pytest.mark.parametrize("key", ["chat_template", "tokenize", "conversation", "tokenizer_kwargs"])
def test_data_does_not_choose_the_template(key: str) -> None:
    with pytest.raises(BadRowError, match=key):
        template_columns({"chat_template_kwargs": {key: "{{ 1 }}"}})
    assert template_columns({"chat_template_kwargs": {"enable_thinking": False}})
