"""Which sections and entries of a document enclose a place, found without reading all of them."""

from hypothesis import given
from hypothesis import strategies as st

from stillroom.records import Document
from stillroom.records.document import Definition, Heading

LEVELS = st.lists(st.integers(1, 4), max_size=12)
SPANS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3), st.integers(0, 12)), max_size=8)


class Counted(tuple):
    """A tuple that counts what is read of it."""

    __slots__ = ()
    reads = 0

    def __iter__(self):
        Counted.reads += len(self)
        return super().__iter__()

    def __getitem__(self, key):
        Counted.reads += 1
        return super().__getitem__(key)


def make_document(headings, definitions):
    return Document(
        "a.md", "0" * 64, "text/plain", "x" * 60, headings=headings, definitions=definitions
    )


@given(levels=LEVELS, spans=SPANS, place=st.integers(0, 60))
def test_what_encloses_a_place_is_all_that_begins_before_it_and_has_not_ended(levels, spans, place):
    headings = tuple(Heading(4 * n, level, str(n)) for n, level in enumerate(levels))
    entries = tuple(Definition(a, a + b, a + b + c) for a, b, c in sorted(spans))
    document = make_document(headings, entries)
    path = []
    for heading in headings:
        if heading.start <= place:
            path = [*(one for one in path if one.level < heading.level), heading]
    assert document.find_headings(place) == tuple(path)
    inside = tuple(e for e in entries if e.start < place and e.end <= place < e.stop)
    assert document.find_definitions(place) == inside


def test_places_in_a_manual_of_thousands_of_sections_are_found_without_reading_them_all():
    headings = Counted(Heading(10 * n, 2, str(n)) for n in range(5000))
    entries = Counted(Definition(10 * n, 10 * n + 3, 10 * n + 9) for n in range(5000))
    document = make_document(headings, entries)
    assert document.heading_path(25_005)[0] == "2500"
    Counted.reads = 0
    for place in range(5, 50_000, 1000):
        document.heading_path(place)
    assert Counted.reads < 50 * 100
