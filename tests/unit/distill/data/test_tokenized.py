import numpy as np
import pytest
import torch

from stillroom.distill.cross_tokenizer.data import TokenizerView, encode_aligned
from stillroom.distill.data.tokenized import make_batch, tokenize_records
from stillroom.models.tokenization.token_bytes import read_token_bytes
from stillroom.records import Message, Record
from stillroom.records.formats import from_row


def talk(*turns):
    roles = ("user", "assistant")
    return Record(tuple(Message(roles[n % 2], text) for n, text in enumerate(turns)))


def encode(tokenizer, records, *, max_tokens=200, include_prompt=False):
    return tokenize_records(
        tokenizer, records, max_tokens=max_tokens, include_prompt=include_prompt
    )


def test_only_the_assistant_bears_loss_and_the_end_of_turn_is_learned(loaded):
    _, tokenizer = loaded
    lessons, counts = encode(tokenizer, [talk("Who?", "A still.", "Where?", "Here.")])
    labels = tokenizer.decode(lessons[0].labels)
    assert labels == "A still.<|im_end|>Here.<|im_end|>"
    assert (counts["records"], counts["positions"]) == (1, len(lessons[0].positions))


def test_the_end_of_turn_is_learned_even_where_padding_is_the_same_token(loaded):
    _, tokenizer = loaded
    before = tokenizer.pad_token
    tokenizer.pad_token = tokenizer.eos_token = "<|im_end|>"  # no password
    try:
        lessons, _ = encode(tokenizer, [talk("Who?", "A still.")])
    finally:
        tokenizer.pad_token = before
    assert lessons[0].labels[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_plain_text_is_learned_whole(loaded):
    _, tokenizer = loaded
    lessons, _ = encode(tokenizer, [Record((Message("assistant", "Water boils."),))])
    assert len(lessons[0].positions) == len(lessons[0].ids) - 1


def test_include_prompt_learns_every_token(loaded):
    _, tokenizer = loaded
    lessons, _ = encode(tokenizer, [talk("Who?", "A still.")], include_prompt=True)
    assert lessons[0].positions.tolist() == list(range(len(lessons[0].ids) - 1))


def rated():
    turns = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "A bad one.", "weight": 0},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "Here."},
    ]
    undesirable = from_row({"prompt": "Who?", "completion": "A bad one.", "label": False})
    return [from_row({"messages": turns}), undesirable]


def test_include_prompt_learns_no_turn_without_loss(loaded):
    _, tokenizer = loaded
    (lesson,), counts = encode(tokenizer, rated(), include_prompt=True)
    assert counts["records_left_out"] == 1
    learned = tokenizer.decode(lesson.labels)
    assert "Who?" in learned
    assert learned.endswith("Where?<|im_end|>\n<|im_start|>assistant\nHere.<|im_end|>\n")
    assert "bad" not in learned
    reader = TokenizerView(tokenizer, read_token_bytes(tokenizer), 512)
    (aligned,), _ = encode_aligned(reader, reader, rated(), include_prompt=True)
    assert aligned.positions.tolist() == lesson.positions.tolist()


def test_cuts_and_leaves_out_and_counts_both(loaded):
    _, tokenizer = loaded
    records = [talk("Who?", "A still. " * 40), talk("Who are you? " * 40, "Me."), talk("a", "b")]
    lessons, counts = encode(tokenizer, records, max_tokens=40)
    assert [len(lesson.ids) <= 40 for lesson in lessons] == [True, True]
    assert (counts["records"], counts["records_cut"], counts["records_left_out"]) == (2, 2, 1)
    assert counts["tokens_cut"] > 0


def test_a_record_that_says_nothing_is_left_out(loaded):
    _, tokenizer = loaded
    lessons, counts = encode(tokenizer, [Record((Message("user", "Hello?"),))])
    assert (lessons, counts["records_left_out"]) == ([], 1)


def test_a_batch_gathers_its_positions_in_order(lessons):
    batch = make_batch(lessons[:3], None)
    flat = batch.input_ids.reshape(-1)
    wanted = np.concatenate([lesson.labels for lesson in lessons[:3]])
    assert batch.labels.tolist() == wanted.tolist()
    assert flat[batch.flat + 1].tolist() == wanted.tolist()
    assert batch.valid == len(wanted)
    assert batch.tokens == sum(len(lesson.ids) for lesson in lessons[:3])


@pytest.mark.parametrize("beside", [0, 2])
def test_padding_does_not_change_what_a_model_sees(loaded, lessons, beside):
    model, _ = loaded
    from stillroom.distill.losses.lm_head import compute_teacher_hidden

    alone = make_batch(lessons[1:2], None)
    both = make_batch([lessons[1], lessons[beside]], None)
    count = alone.valid
    wanted = compute_teacher_hidden(model, alone.input_ids, alone.flat)
    found = compute_teacher_hidden(model, both.input_ids, both.flat)[:count]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_key_follows_tokens_and_positions(loaded):
    _, tokenizer = loaded
    record = talk("Who?", "A still.")
    (one,), _ = encode(tokenizer, [record])
    (same,), _ = encode(tokenizer, [record])
    (other,), _ = encode(tokenizer, [record], include_prompt=True)
    assert one.key == same.key != other.key
