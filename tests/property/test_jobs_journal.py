from hypothesis import given
from hypothesis import strategies as st

from stillroom.jobs import Journal

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=6,
)


@given(st.lists(st.tuples(st.text(max_size=8), values), max_size=6), st.data())
def test_any_cut_of_the_file_leaves_a_prefix_of_the_units(tmp_path_factory, units, data):
    path = tmp_path_factory.mktemp("journal") / "units.jsonl"
    with Journal(path) as journal:
        for key, value in units:
            journal.put(key, value)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(data.draw(st.integers(0, size)))
    states = [dict(units[:count]) for count in range(len(units) + 1)]
    with Journal(path) as again:
        found = {key: again[key] for key in again.keys()}  # noqa: SIM118  # a Journal is no dict
        assert found in states
        again.put("after", "the cut")
    with Journal(path) as last:
        assert last["after"] == "the cut"


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_damaged_line_and_all_after_it_are_done_again(tmp_path_factory, position, flip):
    path = tmp_path_factory.mktemp("journal") / "units.jsonl"
    with Journal(path) as journal:
        for key in "abcdef":
            journal.put(key, {"value": key * 5})
    raw = bytearray(path.read_bytes())
    raw[position % len(raw)] ^= flip
    path.write_bytes(raw)
    with Journal(path) as again:
        assert all(again[key] == {"value": key * 5} for key in again.keys())  # noqa: SIM118
        assert len(again) < 6
