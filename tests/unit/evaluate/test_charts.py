"""Curves on a page: what is drawn, where, and what is said to who cannot see it."""

import json
import math
import re
from xml.etree import ElementTree

import pytest
from pydantic import TypeAdapter

from stillroom.evaluate.charts import LineChart, Series, render_line_chart
from stillroom.evaluate.report import Report

TWO = LineChart(
    "Loss <of> both",
    "step",
    "nats",
    (Series("a & b", ((1.0, 4.0), (2.0, 2.0), (5.0, 1.0)), (1.0, 4.0, 9.0)), Series("none", ())),
)


def circles(drawn):
    return [
        tuple(map(float, found))
        for found in re.findall(
            r'<circle class="s\d" cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', drawn
        )
    ]


def test_is_sound_markup_without_script_or_outside_references():
    drawn = render_line_chart(TWO)
    figure = ElementTree.fromstring(drawn)  # noqa: S314 - our own
    assert figure.tag == "figure"
    assert "Loss &lt;of&gt; both" in drawn
    assert "a &amp; b from 4 to 1" in figure.find("svg").get("aria-label").replace("&", "&amp;")
    assert "script" not in drawn
    assert "http" not in drawn
    assert len(figure.findall("ul/li")) == 1  # one without points is not in the key


def test_points_lie_where_their_numbers_say():
    drawn = circles(render_line_chart(TWO))
    assert [x for x, _, _ in drawn] == sorted(x for x, _, _ in drawn)
    one, two, five = drawn
    assert (two[0] - one[0]) * 3 == pytest.approx(five[0] - two[0], abs=0.5)
    assert (two[1] - one[1]) == pytest.approx(2 * (five[1] - two[1]), abs=0.5)  # less lies lower
    assert one[2] < two[2] < five[2]  # more tokens, larger dot


def test_a_doubling_axis_spaces_doublings_alike():
    curves = LineChart(
        "c", "x", "y", (Series("s", ((1.0, 1.0), (2.0, 1.0), (4.0, 1.0))),), is_log=True
    )
    one, two, four = circles(render_line_chart(curves))
    assert two[0] - one[0] == pytest.approx(four[0] - two[0], abs=0.2)


def test_reliability_has_its_diagonal_and_both_axes_to_one():
    curves = LineChart("c", "x", "y", (Series("s", ((0.5, 0.5),)),), diagonal=True)
    drawn = render_line_chart(curves)
    assert 'class="even"' in drawn
    (dot,) = circles(drawn)
    ends = [float(one) for one in re.findall(r"[\d.]+", drawn.split('class="even" d="')[1])[:4]]
    assert dot[0] == pytest.approx((ends[0] + ends[2]) / 2, abs=0.2)
    assert dot[1] == pytest.approx((ends[1] + ends[3]) / 2, abs=0.2)


@pytest.mark.parametrize(
    "points", [((3.0, 0.0),), ((3.0, 2.0), (3.0, 2.0)), ((0.0, -1.0), (1.0, 1e-9))], ids=str
)
def test_one_point_or_no_range_is_drawn_without_division_by_zero(points):
    drawn = render_line_chart(LineChart("c", "x", "y", (Series("s", points),)))
    assert "nan" not in drawn
    assert "inf" not in drawn


def test_nothing_is_drawn_of_nothing():
    assert render_line_chart(LineChart("c", "x", "y", (Series("s", ()),))) == ""


def test_a_report_keeps_its_curves(tmp_path):
    report = Report("Title")
    report.section("Section", curves=[TWO])
    report.write(tmp_path)
    again = Report.read(tmp_path)
    assert again.sections[0].curves == (TWO,)
    assert render_line_chart(TWO) in (tmp_path / "report.html").read_text()


def test_the_same_thing_has_the_same_stroke_on_every_picture():
    first = render_line_chart(
        LineChart("c", "x", "y", (Series("s", ((0.0, 1.0), (1.0, 1.0)), style=3),))
    )
    assert 'class="line s3"' in first


def test_intervals_are_drawn_and_kept():
    one = Series("a", ((0.0, 1.0), (1.0, 2.0)), spans=((0.5, 1.5), (1.0, 5.0)))
    curves = LineChart("c", "x", "y", (one,))
    assert render_line_chart(curves).count('class="span s0"') == 2
    assert TypeAdapter(LineChart).validate_python(curves.to_json()) == curves


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_left_out(odd):
    spans = ((0.4, 0.6), (odd, 0.7), (odd, odd))
    series = Series("s", ((0, 0.5), (1, 0.6), (2, odd)), weights=(1, 2, 3), spans=spans)
    chart = LineChart("c", "x", "y", (series,))
    drawn = render_line_chart(chart)
    assert render_line_chart(TypeAdapter(LineChart).validate_json(told(chart))) == drawn
    assert "nan" not in drawn
    assert "inf" not in drawn
    assert len(circles(drawn)) == 2
    assert drawn.count('class="span s0"') == 1
    nothing = Series("s", ((0, odd), (1, odd)), spans=((odd, odd),) * 2)
    empty = LineChart("c", "x", "y", (nothing,))
    assert render_line_chart(empty) == ""
    assert told(empty)


def told(chart):
    return json.dumps(chart.to_json(), allow_nan=False)
