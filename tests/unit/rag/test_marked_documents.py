"""An index of marked texts: none loses what it says of its origin, none is found by its mark."""

import json
import shutil

from stillroom.jobs import Job
from stillroom.models import open_embedder
from stillroom.provenance import read_artifact, verify_artifact
from stillroom.provenance.lineage import render_tree, walk_lineage
from stillroom.provenance.text_marks import open_marker
from stillroom.rag.generation.answer import describe_sources
from stillroom.rag.index.searcher import Index
from stillroom.rag.maintenance.update import delete_documents, update_index
from stillroom.records import Hit
from stillroom.records.text_credentials import Disclosure

SAYINGS = 40


def test_no_marked_text_loses_its_origin(build, folder, tmp_path):
    shutil.rmtree(folder)
    folder.mkdir()
    marker, said = open_marker(), Disclosure(model_name="Small", model_identifier="gguf:abc")
    types = (("txt", "text/plain"), ("md", "text/markdown"), ("md", "text/plain"))
    for number in range(SAYINGS):
        suffix, media_type = types[number % 3]
        text = f"Machine {number} lifts {number * 7} stones, as zebra{number} said of it.\n"
        marked = marker.mark(text, said, media_type)
        (folder / f"m{number}.{suffix}").write_text(marked, encoding="utf-8")
        (folder / f"h{number}.txt").write_text(f"Person {number} lifts one stone ❤\ufe0f.\n")
    build()
    with Index.open(tmp_path / "index") as index:
        found = [index.passage_at(row) for row in range(len(index))]
    kinds = {one.location.path: one.origin.kind for one in found}
    assert len(kinds) == 2 * SAYINGS
    assert all(kinds[path] == ("synthetic" if path[0] == "m" else "unknown") for path in kinds)
    tree = render_tree(walk_lineage(tmp_path / "index", examples=2 * SAYINGS))
    assert tree.count("content credential valid, model gguf:abc") == SAYINGS
    for one in found:
        data = (folder / one.location.path).read_bytes()
        assert data[one.location.byte_start : one.location.byte_end].decode() == one.text
        if one.origin.kind == "synthetic":
            assert (one.origin.chain[0].method, one.origin.chain[0].model) == (
                "c2pa.valid",
                "gguf:abc",
            )


def test_an_index_is_as_synthetic_as_its_documents_say(build, folder, tmp_path):
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "own.txt").write_text("Anna lifts two stones.\n")
    human = {"origin": {"kind": "human", "license": "CC0-1.0"}}
    assert build(**human).origin == {"kind": "human", "chain": [], "license": "CC0-1.0"}
    (folder / "made.md").write_text("---\nai_generated: true\n---\nThe zebra lifts three stones.\n")
    assert build(**human).origin == {"kind": "synthetic", "chain": [], "license": "CC0-1.0"}
    assert "says so itself (flag)" in render_tree(walk_lineage(tmp_path / "index", examples=2))
    with Index.open(tmp_path / "index") as index:
        rows = [index.passage_at(row) for row in range(len(index))]
    told = describe_sources([Hit(one, 1.0, rank) for rank, one in enumerate(rows, 1)])
    assert {one["path"]: (one["origin"], one["checked"]) for one in told} == {
        "made.md": ("synthetic", "stated"),
        "own.txt": ("human", ""),
    }


def test_an_updated_index_is_as_synthetic_as_its_documents(build, folder, tmp_path):
    index = tmp_path / "index"
    human = {"origin": {"kind": "human", "license": "CC0-1.0"}}
    recipe = {"version": 1, "kind": "rag.index", "documents": str(folder), "embedder": "static"}
    build(job=Job.start(index, json.dumps({**recipe, **human})), **human)
    (folder / "made.md").write_text("---\nai_generated: true\n---\nThe zebra lifts three stones.\n")
    update_index(index, embedder=open_embedder("static"))
    assert read_artifact(index).origin == {"kind": "synthetic", "chain": [], "license": "CC0-1.0"}
    assert not verify_artifact(index)
    delete_documents(index, ["made.md"])
    assert read_artifact(index).origin == {"kind": "human", "chain": [], "license": "CC0-1.0"}
    assert not verify_artifact(index)
