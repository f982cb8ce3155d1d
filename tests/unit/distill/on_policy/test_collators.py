"""Text that a student writes, heard by a teacher of another tokenizer."""

import json

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from tests.unit.distill import zoo
from tests.unit.distill.kinds import build
from tests.unit.distill.teacher_servers import TeacherServer, serving
from transformers import PreTrainedTokenizerFast

from stillroom.checkpoints.random_init import CHAT_TEMPLATE
from stillroom.distill.cross_tokenizer.data import (
    TokenizerView,
    encode_aligned,
    get_row_pairing,
    make_aligned_batch,
)
from stillroom.distill.cross_tokenizer.loss import AlignedBatchLoss
from stillroom.distill.cross_tokenizer.spans import map_tokens
from stillroom.distill.evaluation.teacher_distance import CrossTokenizerFidelity
from stillroom.distill.interfaces import CROSS_TOKENIZER_LOSSES
from stillroom.distill.on_policy.collators import CrossTokenizerCollator
from stillroom.distill.on_policy.rollout import OnPolicyPrompt, Rollout
from stillroom.distill.on_policy.source import RolloutBatchSource
from stillroom.errors import Cancelled
from stillroom.models import load_causal_lm, render_chat
from stillroom.models.tokenization.token_bytes import read_token_bytes
from stillroom.records import Message, Record, read_records
from stillroom.testing import tiny_checkpoint

FAST = {"steps": 8, "batch_size": 4, "threads": 1, "learning_rate": 1e-2, "precision": "float32"}
OWN = {"name": "on_policy", "max_new_tokens": 10, "student_share": 1.0}


@pytest.fixture(scope="module")
def student_folder(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("student") / "s", vocabulary=300, seed=5)


@pytest.fixture
def make_recipe(teacher_folder, records_file, student_folder):
    def make(**changes):
        fields = {
            "teacher": str(teacher_folder),
            "records": str(records_file),
            "student": str(student_folder),
            "cross_tokenizer_loss": {"name": "chunk_likelihood"},
            "rollout_policy": OWN,
            "train": FAST,
            "keep_checkpoints": 0,
            "fidelity": {"baseline": False, "answers": 0, "speed": False},
            "output": {"dtype": "float32"},
        }
        return build({**fields, **changes})

    return make


@pytest.fixture(scope="module")
def readers():
    """Return two sides that cut the same text differently."""
    sides = []
    for name in ("byte_level", "byte_level_digits"):
        made, tokens = zoo.make(name)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=made)
        tokenizer.chat_template = CHAT_TEMPLATE
        sides.append(TokenizerView(tokenizer, tokens, 128))
    return tuple(sides)


def written(readers, said, *, asked="How many drops?", ids=None, tools=()):
    """Return a rollout that says something, with its prompt."""
    tokenizer = readers[1].tokenizer
    messages = (Message("user", asked),)
    opening = render_chat(tokenizer, messages, tools=tools)
    prompt = OnPolicyPrompt(
        Record((*messages, Message("assistant", "unused")), {"tools": list(tools)}),
        "r",
        messages,
        tuple(tokenizer(opening, add_special_tokens=False).input_ids),
    )
    if ids is None:
        ids = tokenizer(said, add_special_tokens=False).input_ids
    count = len(ids)
    zeros = np.zeros(count, np.float32)
    rollout = Rollout(
        "r", np.asarray(ids, np.int64), np.ones(count, np.bool_), zeros, zeros + 1, False, 0.0
    )
    return rollout, prompt


def reading_of(readers, loss="chunk_likelihood", *, is_live=False):
    return CrossTokenizerCollator(readers, CROSS_TOKENIZER_LOSSES.build(loss), is_live=is_live)


def test_both_sides_read_the_bytes_that_were_drawn(readers):
    rollout, prompt = written(readers, "In 1999 there were 345 drops.")
    lesson = reading_of(readers, is_live=True).convert(rollout, prompt, None).record
    assert lesson.student_ids.tolist() == [*prompt.ids, *rollout.ids.tolist()]
    assert lesson.positions.tolist() == list(
        range(len(prompt.ids) - 1, len(prompt.ids) - 1 + len(rollout.ids))
    )
    assert lesson.is_own
    teacher = readers[0].tokenizer.decode(lesson.teacher_ids.tolist())
    assert "In 1999 there were 345 drops." in teacher
    assert (lesson.chunk_of >= 0).mean() > 0.9
    for chunk in range(len(lesson.kinds)):
        ours = lesson.student_ids[lesson.positions[lesson.chunk_of == chunk] + 1]
        theirs = lesson.teacher_ids[lesson.teacher_positions[lesson.teacher_chunk_of == chunk] + 1]
        assert readers[1].tokens.join(ours).tobytes() == readers[0].tokens.join(theirs).tobytes()


def test_both_sides_read_the_tools(readers, monkeypatch):
    for reader in readers:
        shown = "{{ tools[0].name if tools }}\n" + CHAT_TEMPLATE
        monkeypatch.setattr(reader.tokenizer, "chat_template", shown)
    rollout, prompt = written(readers, "It is nine.", tools=[{"name": "count"}])
    lesson = reading_of(readers, is_live=True).convert(rollout, prompt, None).record
    assert lesson.student_ids.tolist() == [*prompt.ids, *rollout.ids.tolist()]
    assert readers[0].tokenizer.decode(lesson.teacher_ids.tolist()).startswith("count\n")
    assert (lesson.chunk_of >= 0).all()


def test_tokens_that_no_tokenizer_would_choose_stay_as_they_were_drawn(readers):
    """A student draws letters one by one where its tokenizer has the word."""
    tokens = readers[1].tokens
    letters = [
        next(at for at in range(len(tokens)) if tokens.of(at) == bytes([byte]))
        for byte in b"the house"
    ]
    rollout, prompt = written(readers, "", ids=letters)
    lesson = reading_of(readers, is_live=True).convert(rollout, prompt, None).record
    assert lesson.student_ids[len(prompt.ids) :].tolist() == letters
    canonical = readers[1].tokenizer("the house", add_special_tokens=False).input_ids
    assert len(canonical) < len(letters)
    assert (lesson.chunk_of >= 0).all()


def test_a_text_that_stops_within_a_character_bears_loss_up_to_there(readers):
    tokens = readers[1].tokens
    whole = readers[1].tokenizer("kept whole", add_special_tokens=False).input_ids
    half = next(at for at in range(len(tokens)) if tokens.of(at) == b"\xe2")
    reading = reading_of(readers, is_live=True)
    found = reading.convert(*written(readers, "", ids=[*whole, half]), None)
    assert found.cut == 1
    assert found.record.student_ids[-len(whole) :].tolist() == whole
    nothing = reading.convert(*written(readers, "", ids=[half]), None)
    assert nothing is None
    told = reading.metrics([found, nothing])
    assert told["rollouts_passed_over"] == 1
    assert told["rollout_tokens_cut"] == 1
    assert 0.9 < told["rollout_coverage"] <= 1


@pytest.mark.parametrize("name", ["chunk_likelihood", "uld", "projected_kl"])
def test_no_cross_entropy_is_taken_with_ones_own_words(readers, name):
    models = [load_causal_lm_like(len(reader.tokens), seed) for seed, reader in enumerate(readers)]
    reading = reading_of(readers, name, is_live=True)
    own = reading.convert(*written(readers, "It kept 12 drops of oil."), None).record
    record = Record((Message("user", "Who?"), Message("assistant", "It kept 12 drops of oil.")))
    (theirs,), _ = encode_aligned(*readers, [record], include_prompt=False)
    losses = {}
    for weight in (0.0, 1.0):
        crossing = CROSS_TOKENIZER_LOSSES.build(
            {"name": name, "ce_weight": weight, "kd_weight": 1.0}
        )
        objective = AlignedBatchLoss(
            crossing, tokens=map_tokens(*(one.tokens for one in readers)), teacher=models[0]
        )
        for side, lessons in (("own", [own]), ("record", [theirs]), ("both", [own, theirs])):
            batch = make_aligned_batch(lessons, rows=get_row_pairing(crossing))
            losses[side, weight] = float(objective(models[1], batch).total.detach())
    assert losses["own", 1.0] == pytest.approx(losses["own", 0.0], rel=1e-6)
    assert losses["record", 1.0] > losses["record", 0.0] + 1
    for weight in (0.0, 1.0):
        apart = losses["own", weight] + losses["record", weight]
        assert losses["both", weight] == pytest.approx(apart, rel=1e-5)


def load_causal_lm_like(vocabulary, seed):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("crossing", ["chunk_likelihood", "uld"])
def test_a_student_learns_from_what_it_wrote(make_recipe, do, crossing):
    recipe = make_recipe(
        cross_tokenizer_loss={"name": crossing, "min_coverage": 0.05},
        rollout_policy={**OWN, "student_share": 0.7},
        train={**FAST, "steps": 16},
    )
    artifact, folder = do(recipe)
    found = artifact.details["cross_tokenizer_fidelity"]
    before, after = (CrossTokenizerFidelity.from_json(found[name]) for name in ("initial", "final"))
    if crossing == "chunk_likelihood":
        assert after.mean("divergence") < before.mean("divergence")
    rollouts = list(read_records(folder / "output" / "rollouts.jsonl"))
    assert rollouts
    assert {one.origin.kind for one in rollouts} == {"synthetic"}
    assert {one.fields["by"] for one in rollouts} == {"student"}


def test_stopped_while_it_writes_it_ends_with_the_same_bytes(make_recipe, do, monkeypatch):
    whole, folder = do(make_recipe(), "whole")
    real, begun = RolloutBatchSource.begin, []

    def begin(self, step, model, ranks):
        if len(begun) == 4:
            raise Cancelled("stopped", code="job.cancelled")
        begun.append(step)
        return real(self, step, model, ranks)

    with monkeypatch.context() as patch:
        patch.setattr(RolloutBatchSource, "begin", begin)
        with pytest.raises(Cancelled):
            do(make_recipe(), "part")
    resumed, other = do(make_recipe(), "part", resume=True)
    assert resumed.digest == whole.digest
    first, second = (load_file(one / "output" / "model.safetensors") for one in (folder, other))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_server_of_another_tokenizer_hears_each_text_once(
    loaded, make_recipe, teacher_folder, do
):
    server = TeacherServer(*loaded, "prompt_logprobs", most=0)
    with serving(server) as address:
        endpoint = {"endpoint": address, "tokenizer": str(teacher_folder), "tries": 1}
        recipe = make_recipe(teacher=endpoint)
        _, folder = do(recipe, "served")
    _, other = do(make_recipe(), "here")
    ours, theirs = (load_file(one / "output" / "model.safetensors") for one in (folder, other))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)
    lines = (folder / "output" / "rollouts.jsonl").read_text().splitlines()
    assert len(lines) == FAST["steps"] * FAST["batch_size"]
    assert json.loads(lines[0])["fields"]["step"] == 0


def test_a_teacher_of_other_tokens_cannot_write(make_recipe):
    with pytest.raises(ValidationError, match="also generates with the teacher"):
        make_recipe(rollout_policy={"name": "on_policy", "other_text": "teacher"})
    with pytest.raises(ValidationError, match="also generates with the teacher"):
        make_recipe(rollout_policy={"name": "speculative"})
    with pytest.raises(ValidationError, match="sampled"):
        make_recipe(method={"name": "sampled_reverse_kl"})


def test_replay_validates_across_tokenizers(make_recipe, do):
    recipe = make_recipe(
        rollout_policy={
            "name": "replay", "level": 0.6, "validate_every": 3, "validation_records": 2,
            "max_new_tokens": 8, "buffer": 4,
        },
    )  # fmt: skip
    artifact, _ = do(recipe)
    assert artifact.details["train"]["steps"] == FAST["steps"]


def test_bytes_of_a_tokenizer_that_puts_a_space_before(teacher_folder):
    """SentencePiece writes a space before a text; what was drawn is matched with it and without."""
    made, tokens = zoo.make("llama_legacy")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = CHAT_TEMPLATE
    student = TokenizerView(tokenizer, tokens, 128)
    _, teacher_tokenizer = load_causal_lm(teacher_folder, dtype="float32", device="cpu")
    teacher = TokenizerView(teacher_tokenizer, read_token_bytes(teacher_tokenizer), 256)
    readers = (teacher, student)
    rollout, prompt = written(readers, "the house kept drops")
    found = reading_of(readers, is_live=True).convert(rollout, prompt, None)
    assert found is not None
    assert (found.record.chunk_of >= 0).mean() > 0.5
