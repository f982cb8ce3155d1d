"""mergekit's methods on spheres, by masks and by variance, in its mode: equal bit for bit."""

import pytest
from tests.parity.merge.harness import (
    Case,
    compare,
    find_mergekit,
    make_families,
    run_ours,
    run_theirs,
)

pytestmark = pytest.mark.peer

NONE = ({}, {}, {})


def nuslerp(name, per="tensor", base=None, **theirs):
    """Two models with irregular weights."""
    return Case(
        f"nuslerp-{name}",
        {"merge_method": "nuslerp", "parameters": theirs},
        {"name": "nuslerp", "per": per},
        models=2,
        base=base,
    )


def plain(name, ours=None, *, case="", models=3, base="apart", wide=False, **theirs):
    """Models without weights, with the same settings for both where ours are not given."""
    return Case(
        name + case,
        {"merge_method": name, "parameters": theirs},
        {"name": name, **(theirs if ours is None else ours)},
        per_model=NONE,
        weights=(1.0, 1.0, 1.0),
        models=models,
        base=base,
        wide=wide,
    )


ITERATED = {"max_iter": 10, "tol": 1e-5}
CASES = [
    nuslerp("flat"),
    nuslerp("flat-base", base="apart"),
    nuslerp("rows", "row", nuslerp_flatten=False),
    nuslerp("rows-base", "row", "apart", nuslerp_flatten=False),
    nuslerp("columns", "column", nuslerp_flatten=False, nuslerp_row_wise=True),
    nuslerp("columns-base", "column", "apart", nuslerp_flatten=False, nuslerp_row_wise=True),
    Case("multislerp", {"merge_method": "multislerp"}, {"name": "multislerp"}, base=None),
    Case("multislerp-base", {"merge_method": "multislerp"}, {"name": "multislerp"}),
    Case(
        "multislerp-sum",
        {"merge_method": "multislerp", "parameters": {"normalize_weights": False}},
        {"name": "multislerp", "normalize": False},
        weights=(0.9, 0.4, 0.6),
    ),
    plain("karcher", ITERATED, base=None),
    plain("karcher", ITERATED, case="-two", base=None, models=2),
    plain("karcher", ITERATED, case="-base"),
    plain("nearswap", models=1, t=0.0073),
    plain("arcee_fusion", {}, models=1),
    plain("arcee_fusion", {}, case="-wide", models=1, wide=True),
    plain("ram"),
    plain("ram", case="-coarse", epsilon=0.012),
    plain("ramplus_tl"),
    plain("ramplus_tl", case="-coarse", epsilon=0.012, r=0.3, alpha=3.5),
    plain("sce", {"density": 1.0}),
    plain("sce", {"density": 0.37}, case="-select", select_topk=0.37),
    plain("sce", {"density": 0.37}, case="-two", models=2, select_topk=0.37),
]


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    find_mergekit()
    return make_families(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="module")
def theirs(request, families, tmp_path_factory):
    asked = [getattr(item, "callspec", None) for item in request.session.items]
    names = {spec.params["case"].name for spec in asked if spec and "case" in spec.params}
    cases = [case for case in CASES if case.name in names]
    return run_theirs(cases, families, tmp_path_factory.mktemp("theirs"))


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, dtype) for case in CASES for dtype in case.dtypes],
    ids=[f"{case.name}-{dtype}" for case in CASES for dtype in case.dtypes],
)
def test_replicates_mergekit(case, dtype, families, theirs):
    compare(
        case, dtype, run_ours(case, dtype, families[dtype, case.wide]), theirs[case.name, dtype]
    )
