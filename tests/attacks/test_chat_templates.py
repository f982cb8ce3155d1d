"""Chat templates of strangers: what they may cost, and that those of public models cost little."""

import json
import resource
from contextlib import closing

import pytest

from stillroom.errors import BackendError
from stillroom.models import open_text_model
from stillroom.models.backends.llamacpp import _check_json
from stillroom.models.local.causal_lm import load_tokenizer
from stillroom.models.tokenization import template_process
from stillroom.models.tokenization.assistant_mask import find_assistant_spans
from stillroom.models.tokenization.chat_template import render_chat
from stillroom.records import Message, Prompt, Sampling
from stillroom.testing import tiny_checkpoint

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}x"
DOUBLE = (
    "{% set ns = namespace(x={start}) %}{% for i in range(50) %}{% set ns.x = {sum} %}{% endfor %}"
)
TOO_LARGE = {
    "text times a number": "{{ ('a' * 10000000000)|length }}",
    "text doubled": DOUBLE.replace("{start}", "'ab'").replace("{sum}", "ns.x ~ ns.x"),
    "list doubled": DOUBLE.replace("{start}", "[1]").replace("{sum}", "ns.x + ns.x"),
    "padding": "{{ 'a'|center(10000000000)|length }}",
    "a method's padding": "{{ 'a'.ljust(10000000000)|length }}",
    "a format's width": "{{ '%10000000000d' % 1 }}",
    "nested in itself": DOUBLE.replace("{start}", "[1]").replace("{sum}", "[ns.x, ns.x]")
    + "{{ ns.x|tojson }}",
}
TOO_LONG = {
    "loops": LOOPS,
    "a macro that calls itself": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "a filter over a range": "{% for i in range(99999) %}"
    "{{ range(99999)|map('string')|list|length }}{% endfor %}",
    "one number": "{{ (9 ** 99999999) % 7 }}",
    "lists compared": DOUBLE.replace("{start}", "[1]").replace("{sum}", "[ns.x, ns.x]")
    + DOUBLE.replace("ns", "ms").replace("{start}", "[1]").replace("{sum}", "[ms.x, ms.x]")
    + "{{ ns.x == ms.x }}",
    "the compiler": "{% if a %}x{% endif %}" * 200_000,
}
TOOLS = """{{- bos_token }}{%- set ns = namespace(system='', last=-1) %}
{%- if messages[0].role == 'system' %}{% set ns.system = messages[0].content|trim %}
{%- set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}
{%- macro describe(tool) %}{{ tool|tojson(indent=2) }}{% endmacro %}
{%- if tools %}{% for tool in tools %}{{ describe(tool) }}{% endfor %}{% endif %}
{%- for message in loop_messages[::-1] %}{% set index = loop_messages|length - 1 - loop.index0 %}
{%- if ns.last < 0 and message.role == 'user' %}{% set ns.last = index %}{% endif %}{% endfor %}
{{- '<|system|>' + ns.system + '<|end|>' if ns.system }}
{%- for message in loop_messages %}
{%- if message.role not in ['user', 'assistant'] %}{{ raise_exception('roles') }}{% endif %}
{%- set content = message.content|trim %}
{%- if '</think>' in content and loop.index0 <= ns.last %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}
{{- '<|' + message['role'] + '|>' + content + '<|end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
"""What the templates of Llama 3, Qwen 3 and Mistral do: macros, namespaces, two passes."""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tiny_checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def one_second(monkeypatch):
    template_process._PROCESS.close()
    monkeypatch.setattr(template_process, "_CPU_S", 1)
    yield
    template_process._PROCESS.close()


def refuse(tokenizer, template):
    tokenizer.chat_template = template
    with pytest.raises(BackendError) as caught:
        render_chat(tokenizer, [Message("user", "hi")])
    [problem] = caught.value.problems
    assert problem.where.startswith(("chat template '{", 'chat template "{'))
    assert "chat_template.jinja" in problem.next
    return problem.code, problem.what


def test_a_template_that_never_ends_is_stopped_and_the_next_one_rendered(tokenizer, one_second):
    code, what = refuse(tokenizer, LOOPS)
    assert code == "backend.template-limit"
    assert "more than 1 s of processor time for 1 messages" in what
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert render_chat(tokenizer, [Message("user", "hi")]) == "hi"


@pytest.mark.slow  # each uses up its second of processor time
@pytest.mark.parametrize("name", TOO_LONG)
def test_work_without_end_is_stopped(name, tokenizer, one_second):
    assert refuse(tokenizer, TOO_LONG[name])[0] == "backend.template-limit"


@pytest.mark.slow  # each fills a gibibyte, in a process of its own
@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_text_without_end_is_stopped(name, tokenizer):
    code, what = refuse(tokenizer, TOO_LARGE[name])
    assert code == "backend.template-limit"
    assert "more than 1024 MiB" in what or "more than 10 s" in what  # what comes first


def test_a_gibibyte_is_not_filled_where_it_is_asked_for_at_once(tokenizer):
    assert "1024 MiB" in refuse(tokenizer, TOO_LARGE["text times a number"])[1]


@pytest.mark.parametrize(
    "template",
    ["{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "{{ undefined.x }}", "{% for %}"],
)
def test_a_broken_template_is_refused_as_one(template, tokenizer):
    tokenizer.chat_template = template
    with pytest.raises(BackendError) as caught:
        render_chat(tokenizer, [Message("user", "hi")])
    assert caught.value.code == "backend.template"


def test_a_conversation_without_messages_is_refused_as_by_transformers(tokenizer):
    tokenizer.chat_template = "{% if add_generation_prompt %}<assistant>{% endif %}"
    with pytest.raises(ValueError, match="empty conversation"):
        tokenizer.apply_chat_template([], tokenize=False)
    with pytest.raises(BackendError) as caught:
        render_chat(tokenizer, [])
    assert caught.value.code == "backend.template"


def test_a_template_as_public_models_have_it_renders_two_thousand_messages(tokenizer):
    tokenizer.chat_template = TOOLS
    messages = [Message("system", "Be kind.")] + [
        Message(("user", "assistant")[i % 2], f"<think>why</think>\nturn {i} " * 40)
        for i in range(2000)
    ]
    turns = [message.to_json() for message in messages]
    expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert render_chat(tokenizer, messages) == expected


def test_every_turn_of_a_long_conversation_is_found(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    messages = [Message(("user", "assistant")[i % 2], f"turn {i}") for i in range(60)]
    text, spans = find_assistant_spans(tokenizer, messages)
    assert [text[start:end] for start, end in spans] == [
        f"<assistant>turn {i}" for i in range(1, 60, 2)
    ]


def test_the_limit_holds_for_each_text_not_for_all(tokenizer, one_second):
    loop = "{% for i in range(60000) %}{% if i == 3 %}{% endif %}{% endfor %}"
    tokenizer.chat_template = loop * 10 + "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    messages = [Message(("user", "assistant")[i % 2], f"turn {i}") for i in range(90)]
    _, spans = find_assistant_spans(tokenizer, messages)
    template_process._PROCESS.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert len(spans) == 45
    assert after.ru_utime - before.ru_utime > 1


ENGINE_TEMPLATES = {
    "begin token": "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
    "as public models have it": TOOLS,
    "no system message": "{% if messages[0].role == 'system' %}{{ raise_exception('System role not "
    "supported') }}{% endif %}{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
    "none": "",
}


@pytest.fixture
def gguf(tokenizer, tmp_path):
    pytest.importorskip("xllamacpp")
    from stillroom.models.gguf.export import export_gguf

    def write(template):
        folder = tiny_checkpoint(tmp_path / "tiny")
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config.pop("chat_template", None)
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        if template:
            (folder / "chat_template.jinja").write_text(template)
        return export_gguf(folder, tmp_path / "tiny.gguf").path

    return write


@pytest.mark.parametrize("name", ENGINE_TEMPLATES)
def test_a_file_of_llamacpp_is_rendered_as_its_engine_does(name, gguf):
    messages = [Message("system", "Be kind."), Message("user", "hi"), Message("assistant", "yes")]
    path = gguf(ENGINE_TEMPLATES[name])
    with closing(open_text_model(str(path), backend="llamacpp", num_threads=1)) as model:
        messages.append(Message("user", "why?"))
        assert model.render(messages) == model.render_by_engine(messages)


@pytest.mark.slow  # as above, and each uses up its second of processor time
def test_a_template_in_a_file_of_llamacpp_is_stopped(gguf, one_second):
    path = gguf(LOOPS)
    with closing(open_text_model(str(path), backend="llamacpp", num_threads=1)) as model:
        with pytest.raises(BackendError) as caught:
            model.render([Message("user", "hi")])
        assert caught.value.code == "backend.template-limit"


SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}


def test_a_grammar_that_the_engine_dropped_is_told_of_an_answer_cut_off_too(gguf):
    asked = (Message("user", "hi"),)
    with closing(open_text_model(str(gguf("")), backend="llamacpp", num_threads=1)) as model:
        [cut] = model.generate([Prompt(asked, schema=SCHEMA)], Sampling(max_new_tokens=12))
        assert cut.finish_reason == "length"
        assert cut.text.startswith('{"a": "')
        with pytest.raises(BackendError) as caught:
            list(
                model.generate([Prompt(asked, schema={"not": SCHEMA})], Sampling(max_new_tokens=12))
            )
        assert caught.value.code == "backend.schema"


JSON = r'{"a": [1, -2.5e3, "x\u00e9\ud83dy \\u1 \"q", true, null, {"b": ""}], "c": "\n"}'


@pytest.mark.parametrize("text", [JSON, " -12.5", "true", r'"ab\u12', "[" * 3000])
def test_every_beginning_of_json_may_be_cut_off(text):
    for end in range(0, len(text) + 1, 1 if len(text) < 100 else 500):
        _check_json(text[:end], {}, is_cut=True)


@pytest.mark.parametrize("text", ["The", 'Sure! {"a"', '{"a": b', '{"a" "b"', "nope", "{'a'"])
def test_the_beginning_of_prose_is_no_json(text):
    with pytest.raises(BackendError):
        _check_json(text, {}, is_cut=True)
