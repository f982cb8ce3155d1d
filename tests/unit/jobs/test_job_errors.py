import pytest

from stillroom.errors import Cancelled
from stillroom.jobs import Job


def test_a_cancelled_job_says_so_with_its_own_code(tmp_path):
    job = Job.start(tmp_path / "out", "recipe\n")
    job.cancel()
    with pytest.raises(Cancelled) as caught:
        job.check_cancelled()
    job.close()
    assert caught.value.code == "job.cancelled"
    assert caught.value.exit_code == 130
