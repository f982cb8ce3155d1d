import pytest

from stillroom.errors import DataError
from stillroom.provenance import find_output
from stillroom.rag.previous import Previous


def test_an_index_of_another_preparation_is_not_taken_over(built):
    with pytest.raises(DataError) as caught:
        Previous(find_output(built, "index"), "another")
    assert caught.value.code == "rag.other-preparation"
