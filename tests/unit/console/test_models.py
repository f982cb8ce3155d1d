import pytest
from starlette.testclient import TestClient
from tests.console_folder import HOSTILE, KEY, build_tenants

from stillroom.console import create_console
from stillroom.errors import DataError
from stillroom.jobs import Job
from stillroom.provenance import Parent
from stillroom.serve.views.lineage import layout_lineage_graph, trace_lineage
from stillroom.serve.views.models import list_models
from stillroom.testing import tiny_checkpoint

MODEL = "run/steps/model"


def test_models_are_listed_with_what_they_are(client, folder):
    models, _ = list_models(folder)
    one = next(one for one in models if one.name == MODEL)
    assert one.parameters > 0
    assert one.layers == 2
    assert one.made_by == "distill.logits"
    page = client.get("/models").text
    assert MODEL in page
    assert f"{one.parameters:,}" in page


def test_two_checkpoints_of_the_same_weights_are_shown_as_such(tmp_path):
    for name, seed in (("student", 1), ("merged", 1), ("other", 2)):
        job = Job.start(tmp_path / name, "kind: merge\n")
        tiny_checkpoint(job.output, seed=seed)
        if name == "student":
            tiny_checkpoint(job.output / "candidates" / "step-1", seed=3)
        job.finish("checkpoint")
        job.close()
    models, _ = list_models(tmp_path)
    assert {one.name: one.same_as for one in models} == {
        "student": "", "merged": "student", "other": ""
    }  # fmt: skip
    app = create_console(tmp_path, key=KEY)
    with TestClient(app, base_url="http://127.0.0.1:8152") as client:
        client.get(f"/?key={KEY}")
        assert client.get("/models").text.count("same weights as student") == 1
        page = client.get("/models/compare", params={"m": ["merged", "student"]}).text
        assert "the same as student" in page


@pytest.fixture
def mixed(tmp_path):
    """A folder with a student of a hub's teacher, and a reader, which has weights and no config."""
    job = Job.start(tmp_path / "student", "version: 1\nkind: distill.logits\n")
    tiny_checkpoint(job.output)
    job.finish("checkpoint", parents=[Parent("teacher", "hub:org/teacher", "", "checkpoint")])
    job = Job.start(tmp_path / "reader", "version: 1\nkind: rag.reader\n")
    (job.output / "reader.safetensors").write_bytes(bytes(1000))
    (job.output / "committed.bin").write_bytes(bytes(100_000))
    job.finish("checkpoint")
    return tmp_path


def test_a_model_from_elsewhere_has_a_role_and_an_unknown_origin(mixed):
    models = {one.name: one for one in list_models(mixed)[0]}
    teacher = models["hub:org/teacher"]
    assert (teacher.roles, teacher.made_by, teacher.origin) == ("teacher", "", "unknown")
    assert models["reader"].size_bytes == 1000


def test_what_generates_no_text_is_neither_asked_nor_merged(mixed):
    app = create_console(mixed, key=KEY)
    with TestClient(app, base_url="http://127.0.0.1:8152") as client:
        client.get(f"/?key={KEY}")
        page = client.get("/models/compare", params={"m": ["reader", "student"]}).text
        assert 'data-at="student"' in page
        assert 'data-at="reader"' not in page
        assert "no language model" in page
        assert "contains 1." in client.get("/merge").text
        assert '<span class="badge unknown">' in client.get("/models").text


@pytest.mark.parametrize("path", ["/ask", f"/models/compare?m={MODEL}"])
def test_nothing_can_be_asked_before_its_script_has_come(client, path):
    assert '<button class="first" id="send" disabled>' in client.get(path).text


def test_two_are_held_side_by_side(client):
    page = client.get("/models/compare", params={"m": [MODEL, MODEL]}).text
    assert page.count(f'data-at="{MODEL}"') == 2
    assert client.get("/models/compare").status_code == 404
    assert client.get("/models/compare?m=../secret").status_code == 404


def test_a_model_answers_by_itself(client, token):
    headers = {"x-stillroom-token": token}
    assert client.post(f"/models/open?at={MODEL}", headers=headers).json() == {"model": "model"}
    reply = client.post("/models/open?at=records", headers=headers)
    assert reply.status_code == 400
    assert "does not answer" in reply.text


def test_the_graph_names_what_everything_was_made_from(folder):
    graph = layout_lineage_graph(folder, ["run/steps/index"])
    assert {node.kind for node in graph.nodes} == {"index", "folder", "reference"}
    index = next(node for node in graph.nodes if node.kind == "index")
    documents = next(node for node in graph.nodes if node.kind == "folder")
    assert documents.x < index.x
    assert "index was made from documents as its documents" in graph.words


def test_everything_is_listed_and_walked_to_its_bytes(client):
    page = client.get("/lineage").text
    for name in ("run", "run/steps/index", MODEL):
        assert f"at={name.replace('/', '/')}" in page
    assert MODEL not in client.get("/lineage?kind=index").text
    tree = client.get("/lineage?at=run/steps/index").text
    assert "rivers.txt: bytes 0-" in tree
    assert 'class="to-source" href="/source?at=run/steps/index&amp;passage=pas-' in tree
    assert HOSTILE not in tree
    assert client.get("/lineage?at=../secret").status_code == 404
    assert client.get("/lineage?at=run/steps/index&record=rec-none").status_code in {400, 404}


def test_no_word_of_a_tenant_is_walked(tmp_path):
    folder = build_tenants(tmp_path)

    def titles(node):
        return [node.title, *node.notes, *(one for child in node.children for one in titles(child))]

    told = " ".join(titles(trace_lineage(folder, "index")))
    assert "aword" not in told
    assert "bword" not in told
    with pytest.raises(DataError, match="tenants"):
        trace_lineage(folder, "index", record="pas-anything")
