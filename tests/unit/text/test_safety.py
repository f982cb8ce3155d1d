"""What exposes a person is found by form and check digit; examples of documentation are not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stillroom.text.safety import find_pii


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to anna.berg+news@posteo.de today", "email"),
        ("mail jürgen@müller-söhne.de", "email"),
        ("call +49 30 1234 5678.", "phone"),
        ("call (212) 736-5000 now", "phone"),
        ("Tel. 030/1234567", "phone"),
        ("card 4539 5787 6362 1486 please", "card"),
        ("IBAN DE89 3704 0044 0532 0130 00", "iban"),
        ("GB82WEST12345698765432", "iban"),
        ("SSN 536-90-4399", "ssn"),
        ("from 81.169.145.66 at noon", "ip"),
        ("host 2a01:4f8:c17:b0f::2", "ip"),
        ("key AKIAIOSFODNN7EXAMPLX", "secret"),
        ("token ghp_" + "a1B2" * 9, "secret"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "secret"),
    ],
)
def test_each_kind_is_found(text, kind):
    assert [one.kind for one in find_pii(text)] == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "user@example.com, root@localhost, a@b.test",
        "Python 3.11.0.1 and 0.9.1.2 were released on 2024-01-02 10:30:00",
        "192.168.0.1, 10.0.0.1, 127.0.0.1, 192.0.2.7, 203.0.113.9 and fe80::1",
        "4111 1111 1111 1111 is a test card; 1234 5678 9012 3456 fails its check digit",
        "DE89 3704 0044 0532 0130 01",
        "000-12-3456, 666-12-3456 and 123-00-4567 were never given out",
        "sum(1 000 000, 2 000 000) == 3_000_000; 10.1000/182 and 978-3-16-148410-0",
        "12:34:56 and @decorator and name@ and @name",
        "sk-learn is a library; task-list-of-things-to-do-today",
        "",
    ],
)
def test_examples_versions_dates_and_code_are_left_alone(text):
    assert find_pii(text) == []


@given(st.text(max_size=200))
def test_any_text_gives_spans_in_order_that_do_not_meet(text):
    found = find_pii(text)
    ends = [0]
    for one in found:
        assert ends[-1] <= one.start < one.end <= len(text)
        ends.append(one.end)
