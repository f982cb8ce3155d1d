"""Every method that mergekit 0.1.5 has too, in its mode: equal bit for bit, or the reason said."""

import pytest
from tests.parity.merge.harness import (
    WEIGHTS,
    Case,
    compare,
    find_mergekit,
    make_families,
    run_ours,
    run_their_file,
    run_theirs,
)

pytestmark = pytest.mark.peer


def with_weights(**settings):
    """mergekit's parameters of three models: the irregular weights, and the same settings."""
    return tuple({"weight": weight, **settings} for weight in WEIGHTS)


def with_densities(*densities):
    """The same with a density for each."""
    pairs = zip(WEIGHTS, densities, strict=True)
    return tuple({"weight": weight, "density": density} for weight, density in pairs)


CASES = [
    Case("passthrough", {"merge_method": "passthrough"}, {"name": "passthrough"}, models=1,
         base=None, per_model=({},)),
    Case("passthrough-scaled", {"merge_method": "passthrough"},
         {"name": "passthrough", "scale": 0.37}, models=1, base=None, per_model=({"scale": 0.37},)),
    Case("linear", {"merge_method": "linear"}, {"name": "linear"}, base=None),
    Case("linear-sum", {"merge_method": "linear", "parameters": {"normalize": False}},
         {"name": "linear", "normalize": False}, base=None),
    Case("slerp", {"merge_method": "slerp", "parameters": {"t": 0.3}}, {"name": "slerp", "t": 0.3},
         base="first", models=2, per_model=({}, {})),
    Case("slerp-wide", {"merge_method": "slerp", "parameters": {"t": 0.3}},
         {"name": "slerp", "t": 0.3}, base="first", models=2, per_model=({}, {}), wide=True),
    Case("task_arithmetic", {"merge_method": "task_arithmetic"}, {"name": "task_arithmetic"}),
    Case("task_arithmetic-scaled",
         {"merge_method": "task_arithmetic", "parameters": {"lambda": 0.7, "normalize": True}},
         {"name": "task_arithmetic", "scale": 0.7, "normalize": True}),
    Case("ties", {"merge_method": "ties"}, {"name": "ties", "density": 0.37},
         per_model=with_weights(density=0.37)),
    Case("ties-wide", {"merge_method": "ties"}, {"name": "ties", "density": 0.37},
         per_model=with_weights(density=0.37), wide=True),
    Case("ties-each",
         {"merge_method": "ties", "parameters": {"normalize": False, "lambda": 1.3}},
         {"name": "ties", "normalize": False, "scale": 1.3},
         per_model=with_densities(.9, .5, .1),
         own=({"density": .9}, {"density": .5}, {"density": .1})),
    Case("ties-rescaled", {"merge_method": "ties", "parameters": {"rescale": True}},
         {"name": "ties", "density": 0.5, "rescale": True}, per_model=with_weights(density=0.5)),
    Case("dare_linear", {"merge_method": "dare_linear"}, {"name": "dare_linear", "density": 0.4},
         per_model=with_weights(density=0.4)),
    Case("dare_linear-plain", {"merge_method": "dare_linear",
                               "parameters": {"rescale": False, "normalize": True}},
         {"name": "dare_linear", "density": 0.4, "rescale": False, "normalize": True},
         per_model=with_weights(density=0.4)),
    Case("dare_ties", {"merge_method": "dare_ties"},
         {"name": "dare_ties", "density": 0.4, "normalize": False},
         per_model=with_weights(density=0.4)),
    Case("della", {"merge_method": "della"},
         {"name": "della", "density": 0.5, "epsilon": 0.1}, 
         per_model=with_weights(density=0.5, epsilon=0.1)),
    Case("della-wide", {"merge_method": "della"},
         {"name": "della", "density": 0.5, "epsilon": 0.1},
         per_model=with_weights(density=0.5, epsilon=0.1), wide=True),
    Case("della_linear", {"merge_method": "della_linear"},
         {"name": "della_linear", "density": 0.6, "epsilon": 0.2},
         per_model=with_weights(density=0.6, epsilon=0.2)),
    Case("breadcrumbs", {"merge_method": "breadcrumbs"},
         {"name": "breadcrumbs", "density": 0.6, "gamma": 0.05},
         per_model=with_weights(density=0.6, gamma=0.05)),
    Case("breadcrumbs_ties", {"merge_method": "breadcrumbs_ties"},
         {"name": "breadcrumbs_ties", "density": 0.6, "gamma": 0.05, "normalize": False},
         per_model=with_weights(density=0.6, gamma=0.05)),
    *[
        Case(f"{name}-ends", {"merge_method": name},
             {"name": name, "normalize": name == "ties"},
             per_model=with_densities(1, 0, 0.5),
             own=({"density": 1.0}, {"density": 0.0}, {"density": 0.5}))
        for name in ("ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties")
    ],
    Case("della-whole", {"merge_method": "della"}, {"name": "della", "density": 1.0},
         per_model=with_weights(density=1.0)),
    Case("della-ends", {"merge_method": "della"}, {"name": "della"},
         per_model=with_densities(1, 0, 0.5),
         own=({"density": 1.0}, {"density": 0.0}, {"density": 0.5})),
    *[
        Case(f"{name}-rescaled", {"merge_method": name, "parameters": {"rescale": True}},
             {"name": name, "density": 0.6, "gamma": 0.05, "normalize": False, "rescale": True},
             per_model=with_weights(density=0.6, gamma=0.05))
        for name in ("breadcrumbs", "breadcrumbs_ties")
    ],
    Case("ties-two-of-weight-zero", {"merge_method": "ties"}, {"name": "ties", "density": 0.5},
         per_model=tuple({"weight": w, "density": 0.5} for w in (0.7, 0.0, -0.7)),
         weights=(0.7, 0.0, -0.7)),
    Case("linear-negative", {"merge_method": "linear"}, {"name": "linear"}, base=None,
         per_model=({"weight": 1.3137}, {"weight": -0.3071}, {"weight": 0.1963}),
         weights=(1.3137, -0.3071, 0.1963)),
    Case("model_stock-wide", {"merge_method": "model_stock"}, {"name": "model_stock"},
         per_model=({}, {}, {}), wide=True),
    Case("model_stock", {"merge_method": "model_stock"}, {"name": "model_stock"},
         per_model=({}, {}, {})),
    Case("model_stock-rows",
         {"merge_method": "model_stock", "parameters": {"filter_wise": True}},
         {"name": "model_stock", "by_row": True}, per_model=({}, {}, {})),
]  # fmt: skip


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


CASES_BY_TYPE = pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param(case, dtype, id=f"{case.name}-{dtype}")
        for case in CASES
        for dtype in case.dtypes
    ],
)


@CASES_BY_TYPE
def test_replicates_mergekit(case, dtype, families, theirs):
    ours = run_ours(case, dtype, families[dtype, case.wide])
    compare(case, dtype, ours, theirs[case.name, dtype])


@CASES_BY_TYPE
def test_runs_their_file_to_their_weights(case, dtype, theirs, tmp_path):
    peer = theirs[case.name, dtype]
    compare(case, dtype, run_their_file(peer.with_suffix(".yml"), tmp_path / "out"), peer)
