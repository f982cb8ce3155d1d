import pytest

from stillroom.checkpoints import Checkpoint
from stillroom.distill.output import choose_candidate_steps, make_candidate_writer, write_student
from stillroom.distill.settings import StudentOutputSettings

CARD = {"title": "T", "body": "B", "license": "apache-2.0", "base_models": ["org/teacher"]}


@pytest.mark.parametrize(
    ("steps", "candidates", "wanted"),
    [
        (10, 0, set()),
        (10, 1, {10}),
        (10, 2, {5, 10}),
        (10, 3, {5, 7, 10}),
        (1, 4, {1}),
        (3, 9, {2, 3}),
    ],
)
def test_candidates_come_from_the_second_half(steps, candidates, wanted):
    assert choose_candidate_steps(steps, candidates) == wanted


def test_what_is_written_is_the_model(loaded, teacher_folder, tmp_path):
    out = StudentOutputSettings(dtype="float32")
    fingerprint = write_student(loaded[0], tmp_path / "s", teacher_folder, out, CARD)
    found = Checkpoint.open(tmp_path / "s")
    assert found.fingerprint == fingerprint == Checkpoint.open(teacher_folder).fingerprint
    assert found.license == "apache-2.0"


def test_candidates_are_bfloat16_folders_and_leftovers_go(loaded, teacher_folder, tmp_path):
    stale = tmp_path / "candidates" / ".000002.writing"
    stale.mkdir(parents=True)
    (stale / "half").write_bytes(b"half")
    keep = make_candidate_writer(tmp_path, teacher_folder, {2}, StudentOutputSettings(), CARD)
    assert not stale.exists()
    keep(1, loaded[0])
    keep(2, loaded[0])
    assert [path.name for path in (tmp_path / "candidates").iterdir()] == ["000002"]
    found = Checkpoint.open(tmp_path / "candidates" / "000002")
    assert {str(found.dtype(name)) for name in found.names()} == {"torch.bfloat16"}
