import json
import re
from html.parser import HTMLParser

import pytest

from stillroom.errors import DataError
from stillroom.evaluate.charts import Plot, format_value, render_plot
from stillroom.evaluate.metrics.bootstrap import Metric, bootstrap
from stillroom.evaluate.report import Report, Table, describe_metric, merge_reports

HOSTILE = '<script>alert("x")</script>'


def make_report():
    metrics = [Metric("student/f1", 0.5, 0.4, 0.6, 10), bootstrap([1.0], name="one/value")]
    return Report("A title", "A summary.").section(
        "First",
        "Words.\n\nMore words.",
        metrics=metrics,
        plot=Plot.of("A plot", metrics),
        table=Table("Reasons", ("why", "count"), (("too short", "3"),)),
    )


class Checker(HTMLParser):
    """Checks that tags nest, and collects what a browser would fetch or run."""

    VOID = frozenset({"meta", "wbr", "br", "line", "circle", "rect", "path"})

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.fetched = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [v for k, v in attrs if k in {"src", "href", "srcset", "data", "action"}]
        self.fetched += [k for k, _ in attrs if k.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def check_page(page):
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.fetched == []
    assert "script" not in checker.tags
    assert not re.search(r"url\(|@import|https?://", page)
    return checker


def test_written_report_reads_back_the_same(tmp_path):
    report = make_report().write(tmp_path)
    again = Report.read(tmp_path)
    assert again.to_json() == report.to_json()
    rows = json.loads((tmp_path / "report.json").read_text())["metrics"]
    assert rows[0] == {
        "name": "student/f1", "value": 0.5, "low": 0.4, "high": 0.6, "n": 10, "unit": ""
    }  # fmt: skip
    assert rows[1]["low"] is None


def test_page_is_whole_and_fetches_nothing(tmp_path):
    make_report().write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    checker = check_page(page)
    assert checker.tags.count("caption") == checker.tags.count("table") == 2
    assert "svg" in checker.tags
    assert "one value has no interval" in page
    assert "prefers-color-scheme:dark" in page


def test_hostile_text_is_shown_not_run(tmp_path):
    metric = Metric(HOSTILE, 1.0, 0.5, 1.5, 3, HOSTILE, HOSTILE)
    Report(HOSTILE, HOSTILE).section(
        HOSTILE,
        HOSTILE,
        metrics=[metric],
        plot=Plot.of(HOSTILE, [metric]),
        table=Table(HOSTILE, (HOSTILE,), ((HOSTILE,),)),
    ).add(metric, is_headline=True).write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    check_page(page)
    assert page.count("&lt;script&gt;") >= 8


def test_a_name_has_one_value():
    report = make_report()
    report.add(Metric("student/f1", 0.5, 0.4, 0.6, 10))
    with pytest.raises(DataError) as caught:
        report.add(Metric("student/f1", 0.7))
    assert caught.value.code == "report.duplicate-metric"


def test_merging_keeps_order_and_headlines(tmp_path):
    first = make_report()
    first.add(first.metrics["student/f1"], is_headline=True).write(tmp_path / "a")
    (tmp_path / "timings.json").write_text(
        json.dumps({"metrics": [Metric("student/tokens_per_second", 9.0).to_json()]})
    )
    whole = merge_reports(
        "Whole", [tmp_path / "a", tmp_path / "timings.json"], folder=tmp_path / "out"
    )
    assert list(whole.metrics) == ["student/f1", "one/value", "student/tokens_per_second"]
    assert whole.headlines == ["student/f1"]
    assert whole.summary == "A summary."
    assert "Further measurements" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("text", ["", "[]", '{"metrics": [{}]}', '{"title": "x"}'])
def test_what_is_no_report_is_refused(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(DataError) as caught:
        Report.read(tmp_path)
    assert caught.value.code == "report.unreadable"


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.47, "", "0.470"), (0.0, "", "0"), (1.0, "", "1"), (163.2e6, "B", "163 MB"),
        (4.312, "nats", "4.31 nats"), (81_000_000, "", "81 M"), (None, "", "–"),
        (float("nan"), "", "–"), (0.00001234, "", "1.23e-05"), (-2.5, "", "-2.50"),
    ],
)  # fmt: skip
def test_numbers_as_people_read_them(value, unit, shown):
    assert format_value(value, unit) == shown


@pytest.mark.parametrize("values", [(), (float("nan"),)])
def test_a_plot_of_nothing_is_nothing(values):
    assert render_plot(Plot("x", ("a",) * len(values), values)) == ""


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e12, 1e-9])
@pytest.mark.parametrize("kind", ["bars", "intervals"])
def test_plots_stay_within_their_frame(value, kind):
    drawn = render_plot(Plot("x", ("a", "b"), (value, value), kind=kind))
    for x in re.findall(r'\b(?:x|x1|cx|width)="(-?[\d.]+)"', drawn):
        assert 0 <= float(x) <= 720


def test_the_page_calls_a_metric_by_its_name_in_the_field_beside_its_key(tmp_path):
    report = Report("Answers").add(Metric("reader/owned/silent_unanswerable", 0.5, n=4))
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "abstention on unanswerable questions" in page
    assert '<div class="note">reader/owned/silent_unanswerable</div>' in page
    # or by its label, and no line of text ends within an option
    report.summary = "Run `<stillroom>` make --questions FILE."
    report.add(Metric("reader/a/holds", 1.0, n=4, label="word search: accuracy"), is_headline=True)
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<span class="name">word search: accuracy</span>' in page
    assert '&lt;stillroom&gt;` make <span class="option">--questions</span> FILE.' in page
    assert Report.read(tmp_path).metrics["reader/a/holds"].label == "word search: accuracy"
    assert describe_metric("a/evidence_recall@10") == "a/evidence recall@10"
    assert describe_metric("loss") == "loss"
