"""Every registered method keeps the contract of its seam."""

import importlib

import pytest

from stillroom.registry.listing import find_seams, list_methods
from stillroom.testing import check_method

METHODS = list(list_methods())


def test_every_seam_says_what_it_is_for():
    for name in find_seams():
        assert importlib.import_module(name).SEAM


@pytest.mark.parametrize("row", METHODS, ids=[f"{row.seam}.{row.name}" for row in METHODS])
def test_method_keeps_its_contract(row):
    check_method(row.seam, row.name)


@pytest.mark.parametrize("row", METHODS, ids=[f"{row.seam}.{row.name}" for row in METHODS])
def test_method_has_a_summary_line(row):
    assert row.summary.endswith(".")
    assert len(row.summary) <= 100
