"""Chat templates: the same text as transformers renders, and no way for a hostile one to escape, hang or swell."""

# ruff: noqa: E501 - a template on a line is easier to read than one cut to pieces

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from treadle.errors import InvalidFile, InvalidRequest, TreadleError
from treadle.formats.chat_template import ChatTemplate
from treadle.formats.gguf import GGUFFile
from treadle.formats.tokenizer import Tokenizer

CHAT = [
    {"role": "system", "content": "Be brief & <kind>."},
    {"role": "user", "content": "  Hi,\n'there' \"日本\" {{ 1 }} {% x %} "},
    {"role": "assistant", "content": "<think>hm</think>\n\nHello."},
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "é": [1, 2.5, None, True]}}}]

TEMPLATES = {
    "chatml": "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + (m.content if m.content is string else 'x')"
    " + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "whitespace": """
    {%- for m in messages -%}
        {% if loop.first %}
    first
        {% endif %}
    [{{ m.role }}]
        {#- a comment -#}
    {%- endfor %}
    """,
    "loop variables": "{% for m in messages %}{{ loop.index0 }}/{{ loop.length }}/{{ loop.last }}/{{ loop.revindex }}"
    "{{ loop.previtem.role if loop.previtem is defined }}{{ loop.nextitem.role if not loop.last }};{% endfor %}",
    "namespace": "{% set ns = namespace(n=0, seen='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.seen = ns.seen ~ m.role[0] ~ ns.n %}{% endfor %}{{ ns.n }}{{ ns.seen }}",
    "macro": "{% macro show(m, sep=': ') %}{{ m.role ~ sep }}{% if m.content is string %}{{ m.content | trim }}{% else %}"
    "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}{% endif %}{% endmacro %}"
    "{% for m in messages %}{{ show(m) }}|{{ show(m, sep='-') }}{% endfor %}",
    "tools": "{% if tools is not none %}{{ tools | tojson }}{{ tools[0] | tojson(indent=4) }}"
    "{% for t in tools %}{{ t.function.name }}{% for k, v in t.function.parameters.items() %}{{ k }}={{ v }}{% endfor %}"
    "{% endfor %}{% endif %}",
    "string methods": "{% for m in messages if m.content is string %}{{ m.content.strip() }}{{ m.content.split('</think>')[-1]"
    ".lstrip('\\n') }}{{ m.content.upper() }}{{ m.content.replace('i', 'o') }}{{ m.content.startswith('<') }}"
    "{{ '%s-%d' % (m.role, 3) }}{{ '{}:{:>5}'.format(m.role, 'x') }}{{ '%s' | format(m.role) }}{% endfor %}",
    "filters": "{{ messages | map(attribute='role') | join(', ') }}{{ messages | length }}{{ messages | selectattr('role',"
    " 'equalto', 'user') | list | length }}{{ messages[0].content | upper | lower | title | replace('b', 'c') }}"
    "{{ (messages | first).role }}{{ (messages | last).role }}{{ messages | map(attribute='role') | unique | sort | list }}"
    "{{ none | default('d', true) }}{{ 'a\nb' | indent(4) }}{{ 7 // 2 }}{{ 2 ** 3 }}{{ 7 % 4 }}{{ 'ab' * 3 }}",
    "break and continue": "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{% if loop.index == 4 %}"
    "{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{% set x = m.role %}{{ x }}{% endgeneration %}{{ x }}{% endfor %}",
    "slices and tests": "{% for m in messages[1:] %}{{ m.role }}{% endfor %}{{ messages[-1].role }}{{ 'user' in messages[1].role }}"
    "{{ x is defined }}{{ messages is iterable }}{{ messages[0] is mapping }}{{ 3 is odd }}{{ [1, 2] == [1, 2] }}{{ 1 < 2 < 3 }}"
    "{{ messages[0].role == messages[1].role }}{{ messages[3].content is sequence }}{{ messages[0] is eq messages[0] }}",
    "set block": "{% set text %}{% for m in messages %}{{ m.role }}{% endfor %}{% endset %}[{{ text }}]{{ text | length }}",
    "call block": "{% macro box(n) %}<{{ caller(n) }}>{% endmacro %}{% call(n) box(3) %}{{ n }}{% endcall %}",
    "filter block": "{% filter upper %}{{ messages[0].role }}{% endfilter %}",
    "recursion": "{% for n in [[1, [2, 3]], 4] recursive %}{{ loop(n) if n is sequence else n }};{% endfor %}",
    "range and dict": "{% for i in range(3) %}{{ i }}{% endfor %}{{ dict(a=1).a }}{{ {'a': 2}['a'] }}{{ {'k': 1} | items | list }}",
    "documents": "{{ documents is none }}{{ documents is defined }}{{ tools is none }}",
    "special tokens": "{{ bos_token }}{{ messages[0].role }}{{ eos_token }}{{ missing_token }}{{ flag }}",
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_renders_as_transformers_does(name: str, add_generation_prompt: bool) -> None:
    template, tokens = TEMPLATES[name], {"bos_token": "<s>", "eos_token": "</s>"}
    expected, _ = render_jinja_template(
        [CHAT], tools=TOOLS, chat_template=template, add_generation_prompt=add_generation_prompt, flag=True, **tokens
    )
    ours = ChatTemplate(template, tokens)
    found = ours.render(CHAT, tools=TOOLS, add_generation_prompt=add_generation_prompt, variables={"flag": True})
    assert found == expected[0]


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), st.text()), min_size=1, max_size=5))
def test_any_messages_render_as_in_transformers(turns: list[tuple[str, str]]) -> None:
    chat = [{"role": role, "content": content} for role, content in turns]
    for name in ("chatml", "macro", "string methods", "namespace"):
        expected, _ = render_jinja_template([chat], chat_template=TEMPLATES[name], add_generation_prompt=True)
        assert ChatTemplate(TEMPLATES[name]).render(chat) == expected[0]


def test_smollm2(smollm2: Path) -> None:
    metadata = GGUFFile.open(smollm2).metadata
    template = ChatTemplate.from_gguf(metadata, Tokenizer.from_gguf(metadata))
    assert template is not None
    expected, _ = render_jinja_template([CHAT[:3]], chat_template=template.source, add_generation_prompt=True)
    assert template.render(CHAT[:3]) == expected[0]


HOSTILE = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "nested loops over lists": "{% set l = range(9999) | list %}{% for a in l %}{% for b in l %}{% for c in l %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "filtered loop": "{% set l = range(99999) | list %}{% for a in l %}{% for b in l if b > 99999999 %}{% endfor %}{% endfor %}",
    "repetition": "{{ 'a' * 10 ** 12 }}",
    "list repetition": "{% set a = ['x'] * 100000 %}{% set b = a * 100000 %}{{ b | length }}",
    "doubling by ~": "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubling by +": "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling by join": "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] | join %}{% endfor %}",
    "doubling by format": "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}",
    "shared lists printed": "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
    "shared lists as JSON": "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}"
    "{{ ns.s | tojson }}",
    "shared lists compared": "{% set ns = namespace(s=[1], t=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}"
    "{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.s == ns.t }}",
    "shared lists tested": "{% set ns = namespace(s=[1], t=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}"
    "{% set ns.t = [ns.t, ns.t] %}{% endfor %}{{ ns.s is eq ns.t }}",
    "endless macro": "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "exponential macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "endless loop recursion": "{% for a in [1] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "padding": "{{ 'a'.ljust(10 ** 10) }}",
    "padding by filter": "{{ 'a' | center(10000000000) }}",
    "percent width": "{{ '%10000000000d' % 1 }}",
    "percent width by filter": "{{ '%10000000000d' | format(1) }}",
    "percent width as argument": "{{ '%*d' % (10000000000, 1) }}",
    "brace width": "{{ '{:10000000000}'.format(1) }}",
    "brace width as argument": "{{ '{:{w}}'.format(1, w=10000000000) }}",
    "date width": "{{ strftime_now('%9999999d') }}",
    "indentation": "{{ 'a\n' | indent(10000000000) }}",
    "JSON indentation": "{{ [[1]] | tojson(indent=10000000000) }}",
    "replacement": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "long separator": "{{ range(99999) | map('string') | join('x' * 5000) }}",
    "output": "{% set x = 'a' * 1000000 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
    "captured output": "{% set x = 'a' * 1000000 %}{% set y %}{% for i in range(99999) %}{{ x }}{% endfor %}{% endset %}",
    "powers": "{{ 9 ** 9 ** 9 ** 9 }}",
    "squaring": "{% set ns = namespace(x=3) %}{% for i in range(100) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "class by filter": "{{ ('' | attr('__class__')).__mro__ }}",
    "class by format": "{{ '{0.__class__.__mro__}'.format('') }}",
    "globals": "{{ raise_exception.__globals__['x'] }}",
    "macro internals": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "namespace internals": "{{ namespace.__init__.__globals__ }}",
    "context": "{{ self.__init__.__globals__ }}{{ self._TemplateReference__context.environment }}",
    "change of the messages": "{{ messages.append(1) }}",
    "change of a message": "{{ messages[0].update(role='x') }}",
    "nested parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "nested blocks": "{% if 1 %}" * 300 + "{% endif %}" * 300,
    "nested loops in Python": "{% for a in [1] %}" * 50 + "{% endfor %}" * 50,
    "long sum": "{{ " + "1+" * 20000 + "1 }}",
    "size": "x" * 300_000,
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_template_is_stopped(name: str) -> None:
    start = time.thread_time()
    with pytest.raises(TreadleError):
        print(ChatTemplate(HOSTILE[name]).render(CHAT))
    assert time.thread_time() - start < 1.0


def test_hostile_templates_take_little_memory() -> None:
    import tracemalloc

    for name in (
        "repetition",
        "doubling by ~",
        "doubling by join",
        "captured output",
        "long separator",
        "list repetition",
    ):
        tracemalloc.start()
        with pytest.raises(TreadleError):
            ChatTemplate(HOSTILE[name]).render(CHAT)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 300e6, name


@pytest.mark.parametrize(
    ("template", "error", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", InvalidRequest, "roles must alternate"),
        ("{{ messages[9].role }}", InvalidRequest, "refused by the chat template"),
        ("{{ messages[0].nothing.more }}", InvalidRequest, "nothing"),
        ("{{ 'a' + 1 }}", InvalidRequest, "refused"),
        ("{% if %}", InvalidFile, "does not compile"),
        ("{{ 1 | nonsense }}", InvalidFile, "nonsense"),
        ("{% include 'x' %}", InvalidRequest, "no loader"),
    ],
)
def test_errors_are_typed(template: str, error: type[TreadleError], message: str) -> None:
    with pytest.raises(error, match=message):
        ChatTemplate(template).render(CHAT)


def test_a_long_conversation_is_not_hostile() -> None:
    chat = [{"role": "user", "content": "word " * 2000}, {"role": "assistant", "content": "x</think>" * 500}] * 200
    for name in ("chatml", "string methods", "macro"):
        assert len(ChatTemplate(TEMPLATES[name]).render(chat)) > 1_000_000


def test_one_template_serves_several_threads() -> None:
    template = ChatTemplate(TEMPLATES["namespace"])
    expected = template.render(CHAT)
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.extend(template.render(CHAT) for _ in range(50))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 200


def test_from_directory(tmp_path: Path) -> None:
    assert ChatTemplate.from_directory(tmp_path) is None
    config: dict[str, Any] = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}

    def write(**fields: Any) -> None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, **fields}))

    write(chat_template="{{ bos_token }}a{{ eos_token }}")
    found = ChatTemplate.from_directory(tmp_path)
    assert found is not None
    assert found.render([]) == "<s>a</s>"
    write(chat_template=[{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}])
    found = ChatTemplate.from_directory(tmp_path)
    assert found is not None
    assert found.render([]) == "d"
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}file")
    found = ChatTemplate.from_directory(tmp_path)
    assert found is not None
    assert found.render([]) == "<s>file"
    (tmp_path / "chat_template.jinja").unlink()
    write(chat_template=5)
    with pytest.raises(InvalidFile, match="chat_template"):
        ChatTemplate.from_directory(tmp_path)
