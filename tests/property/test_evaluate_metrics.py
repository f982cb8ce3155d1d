"""What must hold of intervals, retrieval measures and pages, whatever comes in."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.evaluate.charts import Plot, format_value, render_plot
from stillroom.evaluate.metrics.bootstrap import bootstrap, paired_difference
from stillroom.evaluate.metrics.retrieval import retrieval_metrics

numbers = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 6))
lists = st.lists(numbers, min_size=2, max_size=30)
names = st.text(min_size=1, max_size=5).filter(lambda name: name.isprintable())


@settings(max_examples=60, deadline=None)
@given(lists)
def test_the_interval_holds_the_value_and_lies_within_the_data(values):
    metric = bootstrap(values, resamples=200)
    slack = 1e-9 * max(1.0, *(abs(value) for value in values))
    assert metric.low <= metric.value <= metric.high
    if set(values) in ({0.0}, {1.0}):  # all of some few, or none: others may differ
        assert 0 <= metric.low < metric.high <= 1
        return
    assert min(values) - slack <= metric.low
    assert metric.high <= max(values) + slack


@settings(max_examples=60, deadline=None)
@given(lists, st.floats(0.125, 8))
def test_scale_goes_through(values, scale):
    one = bootstrap(values, resamples=200)
    two = bootstrap([value * scale for value in values], resamples=200)
    size = max(1.0, *(abs(value) for value in values)) * scale
    assert two.value == pytest.approx(one.value * scale, abs=1e-6 * size)


@settings(max_examples=40, deadline=None)
@given(lists)
def test_a_list_differs_from_itself_by_nothing(values):
    metric = paired_difference(values, values, resamples=100)
    assert (metric.value, metric.low, metric.high) == (0, 0, 0)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(names, numbers, max_size=15),
    st.dictionaries(names, st.integers(-1, 3), max_size=15),
)
def test_measures_are_shares_and_order_of_hits_does_not_count(run, grades):
    pairs = list(run.items())
    one = retrieval_metrics({"q": pairs}, {"q": grades})
    two = retrieval_metrics({"q": pairs[::-1]}, {"q": grades})
    assert one == two
    assert all(0 <= values["q"] <= 1 + 1e-9 for values in one.values())


@given(st.one_of(st.none(), st.floats()), st.text(max_size=8))
def test_every_number_can_be_shown(value, unit):
    assert format_value(value, unit)


@settings(max_examples=80, deadline=None)
@given(
    st.text(max_size=50),
    st.lists(st.tuples(st.text(max_size=50), st.floats(-1e12, 1e12)), max_size=5),
    st.sampled_from(["bars", "intervals"]),
)
def test_plots_of_anything_are_drawn_and_escaped(caption, rows, kind):
    labels, values = tuple(row[0] for row in rows), tuple(row[1] for row in rows)
    drawn = render_plot(Plot(caption, labels, values, kind=kind))
    assert bool(drawn) == any(math.isfinite(value) for value in values)
    assert drawn.count("<svg") == drawn.count("</svg>")
    assert "<script" not in drawn
    words = "\n".join((caption, *labels)).lower()
    assert "nan" not in drawn.lower() or "nan" in words
