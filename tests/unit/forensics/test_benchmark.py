"""Manifests, splits, audits and figures: each known mistake of a benchmark is tried on ours."""

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from stillroom.cli.app import stillroom
from stillroom.errors import DataError
from stillroom.evaluate import Metric
from stillroom.forensics.benchmark.audit import (
    BenchmarkAudit,
    audit_pairs,
    compute_difference_hash,
    find_leaks,
    find_near_duplicates,
    fit_file_trait_baseline,
)
from stillroom.forensics.benchmark.evaluation import (
    EvaluationProtocol,
    compare_evaluations,
    evaluate_folds,
    evaluate_scores,
    open_protocol,
    read_evaluation,
    read_scores,
)
from stillroom.forensics.benchmark.manifest import (
    ManifestItem,
    digest_items,
    import_deepfakebench,
    import_faceforensics,
    import_folder,
    read_items,
    write_items,
)
from stillroom.forensics.benchmark.metrics import (
    bootstrap_auc,
    brier_score,
    expected_calibration_error,
    measure_scores,
    roc_auc,
    select_threshold,
)
from stillroom.forensics.benchmark.splits import leave_one_out, split_items
from stillroom.forensics.synthesis.faces import draw_face
from stillroom.provenance import read_artifact, render_tree, verify_artifact, walk_lineage


def make_items(people=20, generators=("a", "b"), frames=1):
    """Return real clips of some people, and of each a fake by every generator."""
    items = []
    for person in range(people):
        for generator in ("", *generators):
            for frame in range(frames):
                name = f"{generator or 'real'}-{person}-{frame}"
                items.append(
                    ManifestItem(
                        id=name,
                        path=f"{name}.png",
                        label=1 if generator else 0,
                        generator=generator,
                        source=f"clip{person}",
                        identity=f"p{person}",
                        others=(f"p{person ^ 1}",) if generator else (),
                        dataset="set",
                        clip=f"c{person}",
                    )
                )
    return items


def tell(items, *, blind=(), seed=0, step=1.5):
    """Return scores of a detector that is blind to some generators."""
    rng = np.random.default_rng(seed)
    return {
        item.id: float(rng.normal(step * (item.label and item.generator not in blind)))
        for item in items
    }


class TestManifest:
    @pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
    def test_every_format_keeps_every_column(self, ending, tmp_path):
        items = make_items(2)
        path = tmp_path / f"m.{ending}"
        write_items(path, items)
        assert read_items(path) == items
        assert digest_items(read_items(path)) == digest_items(reversed(items))

    @pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
    def test_names_hold_what_names_may_hold(self, ending, tmp_path):
        people = [
            ("Tom Hanks", "Ann Lee"),
            ("[x]",),
            ('["x"]',),
            ("a\nb\u2028c", "d"),
            ("p1", "p2"),
        ]
        items = [ManifestItem(f"{n}", "a", 1, others=names) for n, names in enumerate(people)]
        write_items(tmp_path / f"m.{ending}", items)
        assert read_items(tmp_path / f"m.{ending}") == items

    @pytest.mark.parametrize("limit", ["_MAX_CHUNK_VALUES", "MAX_ROW_BYTES"])
    def test_a_parquet_file_that_grows_in_memory_is_refused(self, limit, tmp_path, monkeypatch):
        write_items(tmp_path / "m.parquet", make_items(2))
        monkeypatch.setattr(f"stillroom.records.streams.{limit}", 1)
        monkeypatch.setattr("stillroom.records.streams._VALUES_PER_BYTE", 0)
        with pytest.raises(DataError, match="cannot be read"):
            read_items(tmp_path / "m.parquet")

    def test_reads_what_the_lab_writes(self, tmp_path):
        row = {"id": "fake-1", "path": "fake\\1.jpg", "label": 1, "source_id": "s", "mask": None}
        (tmp_path / "manifest.jsonl").write_text(json.dumps({**row, "psnr": 41.5}) + "\n")
        (item,) = read_items(tmp_path)
        assert (item.path, item.source, item.mask) == ("fake/1.jpg", "s", "")

    @pytest.mark.parametrize("ending", ["jsonl", "csv"])
    def test_a_row_ends_at_the_end_of_a_line_alone(self, ending, tmp_path):
        path = tmp_path / f"m.{ending}"
        items = [dataclasses.replace(item, id=f"{item.id}\u2028b") for item in make_items(2)]
        write_items(path, items)
        assert read_items(path) == items
        (tmp_path / "s.csv").write_text("id,score\na\u2028b,0.5\n")
        (tmp_path / "s.jsonl").write_text('{"id": "a\u2028b", "score": 0.5}\n')
        assert read_scores(tmp_path / f"s.{ending}") == {"a\u2028b": 0.5}

    def test_a_zero_is_a_name(self, tmp_path):
        row = {"id": 0, "path": "0.png", "label": 0, "identity": 0, "source": 0, "clip": 0}
        row |= {"mask": False, "consent": []}
        (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n")
        (item,) = read_items(tmp_path / "m.jsonl")
        assert (item.id, item.identity, item.source, item.clip) == ("0", "0", "0", "0")
        assert (item.mask, item.consent) == ("", "")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            '{"id": "a", "path": "a.png"}',
            '{"id": "a", "path": "a.png", "label": 2}',
            '{"id": "a", "path": "../a.png", "label": 1}',
            '{"id": "a", "path": "/a.png", "label": 1}',
            '{"id": "a", "path": "a", "label": 1}\n{"id": "a", "path": "b", "label": 0}',
            "nonsense",
        ],
        ids=["empty", "no-label", "label", "above", "absolute", "twice", "no-json"],
    )
    def test_what_is_not_understood_is_refused(self, text, tmp_path):
        (tmp_path / "m.jsonl").write_text(text)
        with pytest.raises(DataError) as caught:
            read_items(tmp_path / "m.jsonl")
        assert caught.value.code == "forensics.manifest"

    def test_a_folder_of_pictures_is_told_what_to_name(self, tmp_path):
        (tmp_path / "real").mkdir()
        with pytest.raises(DataError) as caught:
            read_items(tmp_path)
        assert "is a folder without manifest.jsonl" in str(caught.value)
        assert "Errno" not in str(caught.value)


class TestSplits:
    @pytest.mark.parametrize("by", ["identity", "source", "generator"])
    def test_no_two_splits_share_what_is_split_by(self, by):
        generators = tuple("abcdefgh")
        items = split_items(make_items(30, generators), by=by, held_out=0.4, validation=0.2)
        places = {}
        for item in items:
            keys = {
                "identity": item.people,
                "source": (item.source,),
                "generator": (item.generator or item.source,),
            }[by]
            for key in keys:
                assert places.setdefault(key, item.split) == item.split
        assert set(places.values()) == {"train", "validation", "test"}
        assert not [line for line in find_leaks(items) if line.startswith(by)]

    def test_shares_above_the_whole_are_refused(self):
        with pytest.raises(DataError, match=r"0\.9 and 0\.9 are more than the whole") as caught:
            split_items(make_items(30), held_out=0.9, validation=0.9)
        assert caught.value.code == "forensics.split"
        assert split_items(make_items(30), held_out=0.9, validation=0.1)

    def test_a_person_who_is_put_into_another_split_is_a_leak(self):
        items = split_items(make_items(30), by="identity", held_out=0.4)
        test = next(item for item in items if item.split == "test")
        train = next(item for item in items if item.split == "train" and item.label)
        moved = dataclasses.replace(train, others=(test.identity,))
        found = find_leaks([moved if item is train else item for item in items])
        assert any(f"set/{test.identity} is in test and train" in line for line in found)

    def test_a_row_moves_no_other_row(self):
        items = make_items(30)
        whole = {item.id: item.split for item in split_items(items)}
        assert {item.id: item.split for item in split_items(items[:45])}.items() <= whole.items()

    def test_what_hangs_together_or_lacks_a_column_is_refused(self):
        joined = [dataclasses.replace(item, others=("p0",)) for item in make_items(10)]
        for items in (joined, [ManifestItem("a", "a.png", 0), ManifestItem("b", "b.png", 1)]):
            with pytest.raises(DataError) as caught:
                split_items(items)
            assert caught.value.code == "forensics.split"

    def test_leaving_a_generator_out_holds_out_both_sides(self):
        items = make_items(30, ("a", "b", "c"))
        folds = list(leave_one_out(items, "generator"))
        assert [fold.name for fold in folds] == ["a", "b", "c"]
        for fold in folds:
            assert {item.generator for item in fold.test if item.label} == {fold.name}
            assert fold.name not in {item.generator for item in fold.train}
            assert {item.label for item in fold.test} == {item.label for item in fold.train}
            assert not {i.source for i in fold.train} & {i.source for i in fold.test}

    def test_leaving_a_source_out(self):
        items = [
            dataclasses.replace(item, dataset=f"d{at % 2}")
            for at, item in enumerate(make_items(8, ("a",)))
        ]
        for fold in leave_one_out(items, "source"):
            assert {item.dataset for item in fold.test} == {fold.name}
        with pytest.raises(DataError):
            list(leave_one_out(make_items(4, ("a",)), "generator"))


class TestAudits:
    def test_different_drawn_faces_are_no_twins_and_a_copy_is(self):
        faces = [draw_face(3, number, 96).image for number in range(12)]
        items = [
            ManifestItem(str(at), f"{at}.png", 0, split="train" if at % 2 else "test")
            for at in range(12)
        ]
        assert find_near_duplicates(items, [compute_difference_hash(face) for face in faces]) == []
        faces[5] = np.clip(faces[2].astype(int) + 6, 0, 255).astype(np.uint8)[1:, 1:]
        (line,) = find_near_duplicates(items, [compute_difference_hash(face) for face in faces])
        assert line.startswith("2 (test) and 5 (train) differ in")

    def test_the_file_alone_tells_nothing_where_both_classes_are_alike(self):
        rng = np.random.default_rng(0)
        items = make_items(40, ("a",))
        traits = [{"format": "JPEG", "bytes a pixel": float(rng.normal())} for _ in items]
        metric, _ = fit_file_trait_baseline(items, traits)
        assert metric.low < 0.5 < metric.high

    @pytest.mark.parametrize(
        "trait",
        [
            {"format": ("JPEG", "PNG")},
            {"bytes a pixel": (0.0, 3.0)},
            {"bytes a pixel": (30.0, 0.0)},
        ],
        ids=str,
    )
    def test_a_difference_of_files_is_found_and_named(self, trait):
        rng = np.random.default_rng(0)
        ((name, values),) = trait.items()
        items = make_items(40, ("a",))
        traits = [
            {
                name: value + rng.normal()
                if isinstance(value := values[item.label], float)
                else value
            }
            for item in items
        ]
        metric, tells = fit_file_trait_baseline(items, traits)
        assert metric.value > 0.9
        assert next(iter(tells)).startswith(name)
        assert next(iter(tells.values())) > 0.9

    @pytest.mark.parametrize("prefix", ["", "x" * 50], ids=["short", "long"])
    def test_a_value_that_all_fakes_share_is_found_among_many(self, prefix):
        items = make_items(100, ("a",))
        traits = [{"tags": f"{prefix}{'z' if item.label else at}"} for at, item in enumerate(items)]
        metric, tells = fit_file_trait_baseline(items, traits)
        assert metric.low > 0.9
        assert max(tells.values()) == 1

    @pytest.mark.parametrize(
        ("labels", "sources"),
        [([0] * 12, range(12)), ([0, 1] * 6, [0] * 12)],
        ids=["one-class", "one-source"],
    )
    def test_what_could_not_be_measured_is_not_called_clean(self, labels, sources):
        traits = [{"format": "PNG" if label else "JPEG"} for label in labels]
        audit = audit_pairs(traits, labels, [str(source) for source in sources])
        assert not audit.is_clean
        assert not audit.leak
        (line,) = audit.lines()
        assert line.startswith("not shown whether the file alone tells fake from real: ")
        assert audit.summary()["undecided"] == line
        assert audit.faults == (line,)

    def test_faults_are_told_before_a_training(self):
        area = Metric("tell_by_file", 0.5, 0.4, 0.6, 40)
        assert BenchmarkAudit((), (), area).faults == ()
        (fault,) = BenchmarkAudit((), ("a and b differ in 3",), area).faults
        assert fault.startswith("1 pairs of pictures of two splits look the same")
        assert fault.endswith("a and b differ in 3")

    def test_pictures_of_one_person_count_as_one(self):
        items = [
            ManifestItem(str(at), str(at), at // 4 % 2, identity=f"p{at // 4}") for at in range(80)
        ]
        metric, _ = fit_file_trait_baseline(items, [{"length": float(at)} for at in range(80)])
        assert metric.n == 20

    def test_command_finds_what_is_wrong_with_a_set(self, tmp_path):
        items = []
        for number in range(12):
            for label in (0, 1):
                name = f"{label}-{number}.{'png' if label else 'jpg'}"
                image = draw_face(5, number, 96).image
                Image.fromarray(image).save(tmp_path / name)
                items.append(ManifestItem(name, name, label, source=str(number), split="train"))
        items[1] = dataclasses.replace(items[1], split="test")
        items.append(ManifestItem("gone", "gone.png", 1, source="x", split="test"))
        write_items(tmp_path / "m.csv", items)
        done = CliRunner().invoke(
            stillroom, ["forensics", "benchmark", "audit", str(tmp_path / "m.csv")]
        )
        assert done.exit_code == 1
        assert "leak: source 0 is in test and train" in done.output
        assert "near duplicate: 0-0.jpg (train) and 1-0.png (test)" in done.output
        assert "not read: gone" in done.output
        assert "the file alone tells fake from real" in done.output


class TestIntervals:
    def test_every_figure_is_that_of_measures(self):
        rng = np.random.default_rng(4)
        labels = rng.integers(0, 2, 300)
        scores = np.round(np.clip(rng.normal(0.4, 0.2, 300) + 0.2 * labels, 0, 1), 2)  # with ties
        found = measure_scores(labels, scores, list(range(300)), threshold=0.5, resamples=50)
        assert found["auc"].value == pytest.approx(roc_auc(labels, scores))
        assert found["brier"].value == pytest.approx(brier_score(labels, scores))
        assert found["ece"].value == pytest.approx(expected_calibration_error(labels, scores))
        mean = ((scores >= 0.5)[labels == 1].mean() + (scores < 0.5)[labels == 0].mean()) / 2
        assert found["balanced_accuracy"].value == pytest.approx(mean)
        assert all(one.low <= one.value + 1e-9 for name, one in found.items() if "ece" not in name)

    def test_intervals_agree_with_those_of_the_area_alone(self):
        rng = np.random.default_rng(5)
        labels, groups = np.arange(400) % 2, (np.arange(400) // 8).tolist()
        scores = rng.normal(size=400) + labels + rng.normal(size=50)[np.arange(400) // 8]
        one = measure_scores(labels, scores, groups)["auc"]
        other = bootstrap_auc(labels, scores, groups)
        assert (one.value, one.n) == (pytest.approx(other.value), other.n)
        assert one.low == pytest.approx(other.low, abs=0.01)
        assert one.high == pytest.approx(other.high, abs=0.01)

    def test_one_class_has_no_figure(self):
        found = measure_scores([0, 0], [0.1, 0.9], ["a", "b"])
        assert all(one.note == "one class is missing" for one in found.values())
        assert select_threshold([1, 1], [0.1, 0.2]) is None

    def test_scores_no_better_than_chance_have_no_threshold(self):
        assert select_threshold([0, 1], [0.9, 0.1]) is None
        assert select_threshold([0, 1, 0, 1], [0.5] * 4) is None
        items = [
            ManifestItem(f"{split}{label}", "a.png", label, split=split)
            for split in ("validation", "test")
            for label in (0, 1)
        ]
        scores = {item.id: 1.0 - item.label for item in items}
        found = evaluate_scores(items, scores)
        assert found.threshold is None
        assert "no threshold, so no balanced accuracy: the split 'validation'" in found.lines()[-2]
        json.dumps(found.to_json(), allow_nan=False)


class TestStanding:
    def score(self, items, scores, **settings):
        return evaluate_scores(items, scores, resamples=200, split="", **settings)

    def test_a_detector_blind_to_one_generator_is_seen_to_be(self):
        items = make_items(40, frames=3)
        found = self.score(items, tell(items, blind=("b",), step=9), unit="clip")
        assert found.by_generator["a"].value == 1.0
        assert found.by_generator["b"].value < 0.65
        assert found.metrics["auc"].value < 0.85
        assert len(found.scores) == 120  # clips of one name but of different generators stay apart

    def test_a_clip_of_real_and_forged_frames_is_refused(self):
        items = make_items(4, frames=2)
        items[-1] = dataclasses.replace(items[-1], label=0)
        with pytest.raises(DataError) as caught:
            self.score(items, tell(items), unit="clip")
        assert caught.value.code == "forensics.mixed-group"

    def test_intervals_are_over_recordings(self):
        items = make_items(30, ("a",), frames=5)
        assert self.score(items, tell(items)).metrics["auc"].n == 30

    def test_frames_of_a_clip_are_one_group_where_no_source_is_named(self):
        items = [dataclasses.replace(one, source="") for one in make_items(8, ("a",), frames=5)]
        groups = {group for *_, group in self.score(items, tell(items)).scores}
        assert len(groups) == len({one.unit for one in items}) < len(items)

    def test_a_threshold_is_never_chosen_on_what_is_tested(self):
        items = split_items(make_items(40), by="source", held_out=0.4, validation=0.3)
        scores = tell(items)
        threshold = evaluate_scores(items, scores, resamples=50).threshold
        moved = {item.id: scores[item.id] + (9 if item.split == "test" else 0) for item in items}
        assert evaluate_scores(items, moved, resamples=50).threshold == threshold
        assert self.score(make_items(4), tell(items)).threshold is None

    def test_missing_scores_are_refused_or_counted(self):
        items = make_items(10)
        scores = {**tell(items), "real-0-0": float("nan")}
        with pytest.raises(DataError) as caught:
            self.score(items, scores)
        assert "1 of 30 items have no score" in str(caught.value)
        dropped = self.score(items, scores, no_score="drop")
        assert (dropped.missing, len(dropped.scores)) == (1, 29)
        half = self.score(items, scores, no_score="half")
        assert ("real-0-0", 0, 0.5, "set/clip0") in half.scores
        assert half.protocol.digest != dropped.protocol.digest
        with pytest.raises(DataError, match="none of 30 items has a score"):
            self.score(items, {}, no_score="drop")
        folds = evaluate_folds(items, scores, "generator", no_score="drop")
        assert set(folds) == {"a", "b"}

    def test_clips_that_no_row_names_are_refused(self):
        items = [dataclasses.replace(item, clip="") for item in make_items(4)]
        with pytest.raises(DataError, match="no row of the manifest names a clip"):
            self.score(items, tell(items), unit="clip")

    def test_figures_of_different_protocols_are_not_compared(self, tmp_path):
        items = make_items(20, frames=2)
        ours = self.score(items, tell(items), detector="ours")
        theirs = self.score(items, tell(items, seed=1), detector="theirs", unit="clip")
        for one in (ours, theirs):
            file = tmp_path / f"{one.detector}.json"
            file.write_text(json.dumps(one.to_json()))
            assert read_evaluation(file).to_json() == one.to_json()
        words = [
            "forensics",
            "benchmark",
            "compare",
            *(str(tmp_path / f"{name}.json") for name in ("ours", "theirs")),
        ]
        done = CliRunner().invoke(stillroom, words)
        assert done.exit_code != 0
        assert done.exception.code == "forensics.protocol"
        assert "unit: frame and clip" in str(done.exception)

    def test_a_protocol_that_was_changed_is_noticed(self, tmp_path):
        items = make_items(5)
        text = json.dumps(self.score(items, tell(items)).to_json()).replace(
            '"crop": "whole picture"', '"crop": "x"'
        )
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(DataError, match="was modified after"):
            read_evaluation(tmp_path / "a.json")

    def test_pairs_are_compared_on_the_same_items(self):
        items = make_items(60, ("a",))
        good, bad = tell(items, step=2), tell(items, step=0.1, seed=3)
        better = compare_evaluations(self.score(items, good), self.score(items, bad))
        assert better.p_value < 1e-4
        assert better.low > 0
        same = compare_evaluations(self.score(items, good), self.score(items, good))
        assert (same.difference, same.p_value) == (0, 1)
        assert "no difference shown" in same.line()

    def test_leaving_generators_out_is_measured_fold_by_fold(self):
        items = make_items(40)
        folds = evaluate_folds(items, tell(items, blind=("b",), step=9), "generator")
        assert folds["a"].value == 1.0
        assert folds["b"].value < 0.75

    def test_tables_of_scores_are_read_and_refused(self, tmp_path):
        (tmp_path / "s.csv").write_text("id,prob_x\na,0.5\nb,\n")
        found = read_scores(tmp_path / "s.csv", column="prob_x")
        assert found["a"] == 0.5
        assert np.isnan(found["b"])
        for text in ("id,score\na,1\na,2\n", "name,score\na,1\n"):
            (tmp_path / "s.csv").write_text(text)
            with pytest.raises(DataError) as caught:
                read_scores(tmp_path / "s.csv")
            assert caught.value.code == "forensics.scores"

    def test_the_digest_is_of_everything(self):
        items = make_items(3)
        plain = open_protocol(items)
        assert plain.digest == open_protocol(items).digest
        others = [
            open_protocol(items[1:]),
            *(
                open_protocol(items, **change)
                for change in (
                    {"unit": "clip"},
                    {"aggregation": "max"},
                    {"frames": 32},
                    {"crop": "face"},
                    {"treatment": "jpeg-75"},
                    {"size": 224},
                    {"choice": "first"},
                )
            ),
            dataclasses.replace(plain, versions={}),
        ]
        assert len({plain.digest, *(one.digest for one in others)}) == len(others) + 1
        assert EvaluationProtocol.from_json(plain.to_json()) == plain
        with pytest.raises(DataError):
            open_protocol(items, unit="video")

    def test_commands_split_and_score(self, tmp_path):
        items = make_items(30)
        write_items(tmp_path / "m.jsonl", items)
        rows = "".join(f"{name},{score}\n" for name, score in tell(items).items())
        (tmp_path / "mine.csv").write_text("id,score\n" + rows)

        def ask(*words):
            done = CliRunner().invoke(stillroom, ["forensics", "benchmark", *map(str, words)])
            assert done.exit_code == 0, done.output
            return done.output

        split = tmp_path / "split.jsonl"
        assert "test: " in ask("split", tmp_path / "m.jsonl", "--held-out", 0.4, "--out", split)
        assert [one.role for one in read_artifact(split).parents] == ["manifest"]
        assert str(tmp_path / "m.jsonl") in render_tree(walk_lineage(split)).replace("\n", "")
        assert not verify_artifact(split)
        out = tmp_path / "scored"
        measured = ["measurement.type=scores", f"measurement.scores={tmp_path / 'mine.csv'}"]
        words = [f"manifest={split}", *measured, "measurement.leave_out=generator"]
        done = CliRunner().invoke(
            stillroom, ["run", "forensics.benchmark", *words, "--out", str(out)]
        )
        said = done.output
        assert "mine: protocol " in said
        assert "tpr_at_fpr_1: " in said
        assert "auc with generator a left out: " in said
        assert "no difference shown" in ask("compare", out, out)
        assert json.loads(ask("compare", out, out, "--json"))["p_value"] == 1
        assert str(tmp_path / "m.jsonl") in render_tree(walk_lineage(out))
        split.write_text(split.read_text() + "\n")
        assert {found.kind for found in verify_artifact(out)} == {"changed"}


class TestImports:
    def test_deepfakebench_keeps_clips_of_generators_apart(self, tmp_path):
        def clip(name):
            return {
                "label": "x",
                "frames": [f"E:\\data\\FaceForensics++\\{name}\\{n}.png" for n in ("000", "010")],
            }

        text = {
            "FaceForensics++": {
                "FF-real": {"train": {"c23": {"000": clip("o\\000")}}},
                "FF-DF": {
                    "test": {
                        "c23": {"000_003": clip("d\\000_003")},
                        "c40": {"000_003": clip("e\\000_003")},
                    }
                },
                "FF-FS": {"test": {"c23": {"000_003": clip("f\\000_003")}}},
            }
        }
        (tmp_path / "ff.json").write_text(json.dumps(text))
        items = import_deepfakebench(tmp_path / "ff.json", compression="c23")
        assert len(items) == 6
        assert items[0].path == "FaceForensics++/o/000/000.png"
        assert (items[0].label, items[0].split) == (0, "train")
        fakes = [item for item in items if item.label]
        assert {item.unit for item in fakes} == {
            ("FaceForensics++", "FF-DF", "000_003"),
            ("FaceForensics++", "FF-FS", "000_003"),
        }
        assert (fakes[0].identity, fakes[0].others) == ("000", ("003",))
        items = import_deepfakebench(tmp_path / "ff.json")
        clips = {item.unit for item in items if item.generator == "FF-DF"}
        assert (len(items), len(clips)) == (8, 2)  # of c23 and of c40

    def test_people_of_deepfakebench_are_those_that_a_clips_name_states(self, tmp_path):
        def clips(*names):
            return {name: {"frames": [f"C/{name}/0.png"]} for name in names}

        text = {
            "C": {
                "C_real": {
                    "train": clips("id0_0002", "id0_0003", "01__walk"),
                    "val": clips("id0_0002", "00037"),
                    "test": clips("id0_0002", "00037"),
                },
                "C_fake": {"test": clips("id0_id16_0002", "01_02__walk__ABC")},
            }
        }
        (tmp_path / "c.json").write_text(json.dumps(text))
        items = import_deepfakebench(tmp_path / "c.json")
        write_items(tmp_path / "m.jsonl", items)
        rows = {item.clip: item for item in read_items(tmp_path / "m.jsonl")}
        assert len(items) == len(rows) == 6  # a clip of several splits is one
        assert {name: (row.split, *row.people) for name, row in rows.items()} == {
            "00037": ("test",),
            "01__walk": ("train", "01"),
            "01_02__walk__ABC": ("test", "01", "02"),
            "id0_0002": ("test", "id0"),
            "id0_0003": ("train", "id0"),
            "id0_id16_0002": ("test", "id0", "id16"),
        }
        assert rows["id0_id16_0002"].source == rows["id0_0002"].source == "id0_0002"
        with pytest.raises(DataError, match="has no identity"):
            split_items(items)

    def test_data_sets_without_a_level_of_compression(self, tmp_path):
        text = {
            "Celeb": {
                "Celeb-real": {"test": {"id0": {"label": "r", "frames": ["a/0.png"]}}},
                "Celeb-fake": {"test": {"id1": {"label": "f", "frames": ["b/0.png"]}}},
            }
        }
        (tmp_path / "c.json").write_text(json.dumps(text))
        assert [item.label for item in import_deepfakebench(tmp_path / "c.json")] == [0, 1]
        assert [
            item.label for item in import_deepfakebench(tmp_path / "c.json", real=["Celeb-fake"])
        ] == [1, 0]

    def test_faceforensics_pairs(self, tmp_path):
        (tmp_path / "train.json").write_text('[["071", "054"]]')
        (tmp_path / "test.json").write_text('[["953", "974"]]')
        out = tmp_path / "ff.jsonl"
        words = ["--ff-train", tmp_path / "train.json", "--ff-test", tmp_path / "test.json"]
        done = CliRunner().invoke(
            stillroom,
            ["forensics", "benchmark", "import", *map(str, words), "--out", str(out)],
        )
        assert "20 rows of 20 clips" in done.output
        assert [one.role for one in read_artifact(out).parents] == ["train", "test"]
        assert str(tmp_path / "train.json") in render_tree(walk_lineage(out))
        assert not verify_artifact(out)
        items = read_items(out)
        paths = {item.path for item in items}
        assert "manipulated_sequences/Deepfakes/c23/videos/071_054.mp4" in paths
        assert "original_sequences/youtube/c23/videos/974.mp4" in paths
        assert find_leaks(items) == []
        (tmp_path / "test.json").write_text('[["071", "974"]]')
        with pytest.raises(DataError, match="repeats clip"):
            import_faceforensics(tmp_path / "train.json", None, tmp_path / "test.json")

    def test_folders_named_real_and_fake_are_labels(self, tmp_path):
        names = (
            "train/0_real/a.png",
            "train/1_fake/gan/a.png",
            "val/REAL/b.JPG",
            "test/fake/c.wav",
        )
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).write_bytes(b"x")
        (tmp_path / "README.md").write_text("of the set")
        out = tmp_path / "manifest.jsonl"
        with pytest.raises(DataError) as caught:
            read_items(tmp_path)
        assert "benchmark import --folder" in caught.value.problems[0].next
        words = ["forensics", "benchmark", "import", "--folder", str(tmp_path), "--out", str(out)]
        done = CliRunner().invoke(stillroom, words)
        assert "4 rows of 4 clips" in done.output
        assert not verify_artifact(out)
        read = [
            (item.path, item.label, item.split, item.generator) for item in read_items(tmp_path)
        ]
        assert read == [
            ("test/fake/c.wav", 1, "test", ""),
            ("train/0_real/a.png", 0, "train", ""),
            ("train/1_fake/gan/a.png", 1, "train", "gan"),
            ("val/REAL/b.JPG", 0, "validation", ""),
        ]

    def test_other_names_of_splits_are_no_generators(self, tmp_path):
        for name in ("valid/fake/a.png", "dev/fake/b.png", "Training/fake/c.png", "testing/fake/d"):
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).with_suffix(".png").write_bytes(b"x")
        found = {item.split: item.generator for item in import_folder(tmp_path, tmp_path)}
        assert found == {"validation": "", "train": "", "test": ""}

    @pytest.mark.parametrize(
        ("names", "out", "said"),
        [
            (["real/a.png", "other/b.png"], "m.jsonl", "1 of 2 files, such as other/b.png"),
            (["real/fake/a.png"], "m.jsonl", "1 of 1 files"),
            (["test/real/train/a.png"], "m.jsonl", "two splits for 1 of 1 files"),
            (["real/a.txt"], "m.jsonl", "has no picture"),
            (["real/a.png"], "out/m.jsonl", "outside of"),
        ],
    )
    def test_a_folder_without_one_label_for_each_file_is_refused(self, names, out, said, tmp_path):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).write_bytes(b"x")
        with pytest.raises(DataError, match=said) as caught:
            import_folder(tmp_path, (tmp_path / out).parent)
        assert caught.value.code == "forensics.manifest"

    @pytest.mark.parametrize("text", ["[]", "{}", '{"a": {"b": {"c": {"d": 1}}}}', "nonsense"])
    def test_what_is_no_list_is_refused(self, text, tmp_path):
        (tmp_path / "x.json").write_text(text)
        for read in (
            lambda path: import_deepfakebench(path),
            lambda path: import_faceforensics(path, None, None),
        ):
            with pytest.raises(DataError) as caught:
                read(tmp_path / "x.json")
            assert caught.value.code == "forensics.manifest"


def test_check_refuses_a_split_without_rows(tmp_path):
    from stillroom.flow import estimate_recipe
    from stillroom.recipes import parse_recipe

    write_items(tmp_path / "manifest.jsonl", make_items(2))
    text = "kind: forensics.benchmark\nsplit: tset\nmeasurement: {type: scores, scores: s.csv}\n"
    with pytest.raises(DataError) as caught:
        estimate_recipe(parse_recipe(f"{text}manifest: {tmp_path}/manifest.jsonl\n"))
    assert caught.value.code == "forensics.stress"
