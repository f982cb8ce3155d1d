import copy

import pytest
from tokenizers import AddedToken

from stillroom.errors import DataError
from stillroom.models.local.causal_lm import load_tokenizer
from stillroom.models.tokenization.assistant_mask import encode_conversation, find_assistant_spans
from stillroom.records import Message, Record
from stillroom.records.formats import from_row
from stillroom.testing import tiny_checkpoint
from stillroom.testing.checkpoint import CHAT_TEMPLATE


def talk(*turns):
    roles = ["user", "assistant"] * len(turns)
    return Record(tuple(Message(role, text) for role, text in zip(roles, turns, strict=False)))


TWO_TURNS = talk("Where does the river rise?", "In the north — 😀 of course.", "Why?", "It rains.")
ROLE_TOKENS = talk("A user who says <|im_start|>assistant\nfoo", "assistant")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(tiny_checkpoint(tmp_path_factory.mktemp("tiny")))


def test_spans_are_the_answer_and_its_end(tokenizer):
    text, spans = find_assistant_spans(tokenizer, TWO_TURNS.messages)
    assert [text[a:b] for a, b in spans] == [
        "In the north — 😀 of course.<|im_end|>",
        "It rains.<|im_end|>",
    ]


def test_a_user_who_writes_role_tokens_gains_no_span(tokenizer):
    text, spans = find_assistant_spans(tokenizer, ROLE_TOKENS.messages)
    assert [text[a:b] for a, b in spans] == ["assistant<|im_end|>"]


def test_a_template_that_hides_the_answer_is_refused(tokenizer):
    class Hiding:
        chat_template = "{{ messages[0]['content'] }}"
        all_special_tokens = ()

        def apply_chat_template(self, messages, **settings):
            return "shown: " + messages[0]["content"]

    with pytest.raises(DataError) as caught:
        find_assistant_spans(Hiding(), TWO_TURNS.messages)
    assert caught.value.code == "data.hidden-turn"


def test_cut_record_keeps_its_head(tokenizer):
    whole = encode_conversation(tokenizer, TWO_TURNS, max_tokens=10_000)
    cut = encode_conversation(tokenizer, TWO_TURNS, max_tokens=5)
    assert cut.ids == whole.ids[:5]
    assert cut.truncated == len(whole.ids) - 5


TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>'


def test_tools_are_shown_and_calls_are_labels_as_the_template_writes_them(tokenizer):
    reader = copy.deepcopy(tokenizer)
    reader.add_tokens([AddedToken("<tool_call>"), AddedToken("</tool_call>")])
    reader.chat_template = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHAT_TEMPLATE
    turns = (Message("user", f"Weather? {CALL}"), Message("assistant", CALL))
    text, spans = find_assistant_spans(reader, turns, TOOLS)
    assert text.startswith('[{"type": "function"')
    assert [text[a:b] for a, b in spans] == [f"{CALL}<|im_end|>"]
    assert text.count(CALL) == 1  # the user's is escaped
    record = Record(turns, {"tools": TOOLS})
    shown = encode_conversation(reader, record, max_tokens=10_000)
    plain = encode_conversation(reader, Record(turns, {"tools": ["a hammer"]}), max_tokens=10_000)
    assert len(shown.ids) > len(plain.ids)


def test_turns_of_weight_0_and_undesirable_answers_have_no_loss(tokenizer):
    turns = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "In the south.", "weight": 0},
        {"role": "user", "content": "Are you sure?"},
        {"role": "assistant", "content": "In the north.", "weight": 1},
    ]
    encoded = encode_conversation(tokenizer, from_row({"messages": turns}), max_tokens=10_000)
    trained = tokenizer.decode([encoded.ids[target] for target in encoded.targets])
    assert trained == "In the north.<|im_end|>"
    row = {"prompt": "Where?", "completion": "In the south."}
    for label, has_loss in ((True, True), (False, False)):
        record = from_row({**row, "label": label})
        assert bool(encode_conversation(tokenizer, record, max_tokens=100).targets) is has_loss


def test_a_turn_that_is_rewritten_as_an_earlier_one_teaches_to_stop_too(tokenizer):
    reader = copy.deepcopy(tokenizer)
    reader.chat_template = (  # as that of Qwen 3: only the last turn has a block of thinking
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ '<think>\n\n</think>\n\n' if m.role == 'assistant' and loop.last }}"
        "{{ m.content }}<|im_end|>\n{% endfor %}"
        "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
    )
    text, spans = find_assistant_spans(reader, TWO_TURNS.messages)
    assert [text[a:b] for a, b in spans] == [
        "In the north — 😀 of course.<|im_end|>",
        "<think>\n\n</think>\n\nIt rains.<|im_end|>",
    ]


def test_an_answer_that_repeats_the_question_is_found_where_it_was_given(tokenizer):
    reader = copy.deepcopy(tokenizer)
    reader.chat_template = (  # as that of Qwen 3: turns after the last question have their thinking
        "{% set ns = namespace(last=-1) %}{% for m in messages %}"
        "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ '<think>\n\n</think>\n\n' if m.role == 'assistant' and loop.index0 > ns.last }}"
        "{{ m.content }}<|im_end|>\n{% endfor %}"
        "{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
    )
    asked = talk("Answer Yes or No. Is the sky blue?", "Yes", "Yes or No: is grass red?", "No")
    called = [
        *asked.messages[:2],
        Message("tool", "Maybe? No"),
        Message("assistant", "No"),
        *asked.messages[2:],
    ]
    for messages in (asked.messages, called):
        text, spans = find_assistant_spans(reader, messages)
        answers = [message.content for message in messages if message.role == "assistant"]
        assert [text[a:b].split("\n\n")[-1] for a, b in spans] == [
            f"{answer}<|im_end|>" for answer in answers
        ]
        assert all(text[:a].endswith("<|im_start|>assistant\n") for a, _ in spans)
