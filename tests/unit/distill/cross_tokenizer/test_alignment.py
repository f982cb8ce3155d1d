"""Two tokenizations as common chunks: kinds, special tokens, templates, and the report."""

import gzip
import json

import pytest
from click.testing import CliRunner
from tests.unit.distill.zoo import make

from stillroom.cli.distill import distill_group
from stillroom.distill.cross_tokenizer.alignment import KINDS, SharedSpan, align, find_shared_spans
from stillroom.distill.cross_tokenizer.report import AlignmentReport, align_files
from stillroom.distill.cross_tokenizer.spans import locate_tokens
from stillroom.distill.data.plain_text import open_tokenizer
from stillroom.errors import CheckpointError, DataError
from stillroom.testing import tiny_checkpoint


def aligned(one, other, text, *, add=False):
    """Return each chunk as (kind, bytes, teacher's tokens, student's tokens)."""
    sides = [locate_tokens(*make(name), text, add_special_tokens=add) for name in (one, other)]
    found = align(*sides)
    raw = text.encode()
    rows = []
    for at in range(len(found)):
        runs = [
            tuple(make(name)[1].of(int(one_id)) for one_id in side.ids[slice(*bounds)])
            for name, side, bounds in zip(
                (one, other), sides, (found.teacher[at], found.student[at]), strict=True
            )
        ]
        rows.append((KINDS[found.kinds[at]], raw[slice(*found.spans[at])], *runs))
    return rows, found


def test_digits_that_one_side_joins_are_one_chunk():
    rows, found = aligned("wordpiece", "byte_level_digits", "1999")
    assert rows == [("one_to_many", b"1999", (b"1999",), (b"1", b"9", b"9", b"9"))]
    assert not found.teacher_out
    assert not found.student_out


def test_an_emoji_split_over_tokens_is_one_chunk():
    rows, _ = aligned("byte_level", "wordpiece", "hello 🦉 wine")
    covered = b"".join(raw for _, raw, *_ in rows)
    assert covered == b"hello wine"  # WordPiece does not know the emoji: no chunk, counted
    assert aligned("byte_level", "wordpiece", "hello 🦉 wine")[1].student_out == {"unknown": 1}
    both, _ = aligned("byte_level", "llama_legacy", "🦉")
    assert b"".join(raw for _, raw, *_ in both) == "🦉".encode()
    assert len(both) > 1  # both split the character at one byte, so that it has two chunks


def test_line_ends_and_leading_spaces_align():
    for text in ("a\r\nb", "  two", "end \n", "\t\tx"):
        rows, found = aligned("byte_level", "metaspace_first", text)
        assert b"".join(raw for _, raw, *_ in rows) == text.encode()
        assert not found.teacher_out
        assert not found.student_out


def test_special_tokens_pair_by_role_or_are_counted():
    _, found = aligned("llama_legacy", "byte_level", "wine", add=True)
    assert found.teacher_out == {"special": 1}
    rows, found = aligned("byte_level", "byte_level_digits", "a<|im_end|>b")
    assert ("special", b"<|im_end|>", (b"<|im_end|>",), (b"<|im_end|>",)) in rows
    assert not found.teacher_out
    _, found = aligned("byte_level", "llama_legacy", "a<|im_end|>b")
    assert found.teacher_out == {"special": 1}
    assert found.student_out["uneven"] > 0


def test_texts_that_differ_are_refused():
    sides = [locate_tokens(*make("byte_level"), text) for text in ("wine", "vine")]
    with pytest.raises(DataError, match="texts differ") as error:
        align(*sides)
    assert error.value.code == "distill.texts-differ"
    for regions in (
        [SharedSpan(0, 0, 2)],
        [SharedSpan(1, 1, 9)],
        [SharedSpan(1, 1, 2), SharedSpan(0, 0, 1)],
    ):
        with pytest.raises(DataError, match="is not the same bytes") as error:
            align(*sides, regions)
    found = align(*sides, [SharedSpan(1, 1, 3)])
    assert found.spans.min(initial=3) >= 1


def test_nothing_aligns_with_nothing():
    _, found = aligned("byte_level", "wordpiece", "")
    assert len(found) == 0
    sides = [locate_tokens(*make("byte_level"), text) for text in ("wine", "vine")]
    found = align(*sides, [])
    assert len(found) == 0
    assert found.teacher_out == {"template": len(sides[0])}


def test_messages_are_found_between_two_templates():
    teacher = "<s>[INST] naïve? [/INST] Yes. Yes.</s>"
    student = "<|im_start|>user\nnaïve?<|im_end|>\n<|im_start|>assistant\nYes. Yes.<|im_end|>\n"
    regions, missed = find_shared_spans(teacher, student, ["naïve?", "Yes. Yes.", "absent", "  "])
    assert missed == 1
    raw = [teacher.encode(), student.encode()]
    for region, text in zip(regions, ("naïve?", "Yes. Yes."), strict=True):
        assert raw[0][region.teacher : region.teacher + region.length] == text.encode()
        assert raw[1][region.student : region.student + region.length] == text.encode()
    sides = [
        locate_tokens(*make(name), text)
        for name, text in (("llama_legacy", teacher), ("byte_level", student))
    ]
    found = align(*sides, regions)
    words = [student.encode()[a:b] for a, b in found.spans]
    # The teacher's tokens that begin with the template's space count as the message's first.
    assert b"".join(words) == "naïve?Yes. Yes.".encode()
    assert found.teacher_out["template"] > 0


def test_ends_of_turn_with_other_surfaces_pair_by_role(tmp_path):
    """The teacher ends a turn with </s>, the student with <|im_end|>: both are eos."""
    from transformers import PreTrainedTokenizerFast

    from stillroom.models.tokenization.token_bytes import read_token_bytes

    sides = []
    for name, eos, text in (
        ("llama_legacy", "</s>", "Q: x A: wine</s>"),
        ("byte_level", "<|im_end|>", "x\nwine<|im_end|>\n"),
    ):
        wrapped = PreTrainedTokenizerFast(tokenizer_object=make(name)[0], eos_token=eos)
        sides.append((locate_tokens(wrapped, read_token_bytes(wrapped), text), text))
    regions, _ = find_shared_spans(sides[0][1], sides[1][1], ["x", "wine"])
    found = align(sides[0][0], sides[1][0], regions)
    pair = found.kinds.tolist().index(KINDS.index("special"))
    assert found.teacher[pair].tolist() == [len(sides[0][0]) - 1, len(sides[0][0])]
    assert sides[1][0].roles[int(found.student[pair, 0])][0] == "eos"


def test_time_grows_with_the_text_and_not_with_its_square():
    """No table of pairs is made: 60,000 tokens a side would need 29 GB of one."""
    text = "wine and spirit 12 " * 8000
    sides = [locate_tokens(*make(name), text) for name in ("byte_level", "byte_level_digits")]
    found = align(*sides)
    assert (found.spans[:, 1] - found.spans[:, 0]).sum() == len(text)


# --- the report --------------------------------------------------------------------------------


def test_report_adds_up():
    report = AlignmentReport(make("byte_level")[1], make("wordpiece")[1])
    for text in ("The wine, 12 drops.", "Naïve 東 🙂 end  "):
        sides = [locate_tokens(*make(name), text) for name in ("byte_level", "wordpiece")]
        report.add(align(*sides), *sides)
    found = report.to_json()
    assert found["texts"] == 2
    assert found["texts_by_offsets"] == 2
    for side in ("teacher", "student"):
        inside = sum(row[f"{side}_tokens"] for row in found["kinds"].values())
        assert inside + sum(found["out"][side].values()) == found[f"{side}_tokens"]
    assert 0 < found["in_one_to_one"]["bytes"] < found["in_chunks"]["bytes"] < 1
    assert found["one_to_one_by_class"]["digits"]["bytes"] == 2
    assert json.loads(json.dumps(found)) == found
    said = str(report)
    assert "lowercases" in said
    assert "2 of them not exact" in said
    assert "unknown" in said


def test_report_of_one_tokenizer_with_itself_is_whole():
    tokenizer, _ = make("byte_level")
    found = AlignmentReport(make("byte_level")[1], make("byte_level")[1])
    side = locate_tokens(tokenizer, make("byte_level")[1], "wine 🙂")
    found.add(align(side, side), side, side)
    assert found.coverage(one_to_one=True) == dict.fromkeys(
        ("bytes", "teacher_tokens", "student_tokens"), 1.0
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("aligned")
    return [
        str(tiny_checkpoint(root / str(size), vocabulary=size, seed=size)) for size in (600, 300)
    ]


def test_command_reports_texts_and_records(folders, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"A still turns wine\r\ninto spirit.")
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Wine?"},
                {"role": "assistant", "content": "Yes, 12."},
            ]
        }
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress((tmp_path / "b.jsonl").read_bytes()))
    files = [str(tmp_path / name) for name in ("a.txt", "b.jsonl", "c.jsonl.gz")]
    result = CliRunner().invoke(distill_group, ["align", *folders, *files])
    assert result.exit_code == 0, result.output
    assert "in common chunks: 100.0% of bytes" not in result.output  # special tokens are apart
    assert "one to one" in result.output
    small = f"{folders[1]}/tokenizer.json"
    result = CliRunner().invoke(distill_group, ["align", folders[0], small, files[0], "--json"])
    found = json.loads(result.output)
    assert found["bytes"] == 32
    assert found["in_chunks"]["bytes"] == 1
    assert found["messages_missed"] == 0


def test_files_that_cannot_be_aligned_say_why(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"na\xefve")
    (tmp_path / "empty.txt").write_bytes(b"")
    sides = [make("byte_level")[0], make("wordpiece")[0]]
    with pytest.raises(DataError, match="cannot be read as text") as error:
        align_files(*sides, [tmp_path / "latin.txt"])
    assert error.value.code == "distill.text"
    with pytest.raises(DataError, match="contain no text") as error:
        align_files(*sides, [tmp_path / "empty.txt"])
    assert error.value.code == "distill.no-text"
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read") as error:
        open_tokenizer(str(tmp_path / "tokenizer.json"))
    assert error.value.code == "checkpoint.tokenizer"
