"""Partners of a swap come from their own block, so that every split keeps its own people."""

import pytest

from stillroom.errors import DataError
from stillroom.forensics.synthesis.pairing import pair_identities


@pytest.mark.parametrize("people", [2, 3, 4, 7, 12])
@pytest.mark.parametrize("pictures", [1, 3])
def test_partners_are_other_people_of_the_same_block(people, pictures):
    identities = [f"p{at // pictures}" for at in range(people * pictures)]
    cast = pair_identities(identities, 2)
    blocks = {}
    for number in range(3 * len(identities)):
        (target, partner), block = cast.choose(number)
        assert target == number % len(identities)
        assert identities[target] != identities[partner]
        for at in (target, partner):
            assert blocks.setdefault(identities[at], block) == block
    assert len(set(blocks.values())) == people // 2


def test_one_face_needs_no_partner():
    cast = pair_identities(["a", "b"], 1)
    assert [cast.choose(number) for number in range(3)] == [((0,), "a"), ((1,), "b"), ((0,), "a")]


def test_a_swap_of_one_person_is_refused():
    with pytest.raises(DataError) as caught:
        pair_identities(["a", "a"], 2)
    assert caught.value.code == "forensics.no-faces"
