from stillroom.rag.generation.answer import count_origins

SOURCES = [
    {"number": 1, "origin": "human"},
    {"number": 2, "origin": "synthetic"},
    {"number": 3, "origin": "unknown"},
    {"number": 4, "origin": "human"},
]


def test_the_origins_of_what_is_cited_are_counted():
    assert count_origins(SOURCES, {1, 2, 4}) == {"human": 2, "synthetic": 1}
    assert count_origins(SOURCES, set()) == {"human": 2, "synthetic": 1, "unknown": 1}
    assert count_origins([], {1}) == {}
