"""Every paper is accepted by its validator, tells what the lineage holds, and counts the rest."""

import json
import re
import shutil
from collections import Counter
from io import BytesIO

import pytest
import spdx_python_model
from click.testing import CliRunner
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from tests.unit.flow.papers.conftest import PRINT, TEACHER, build_run

from stillroom.cli.app import stillroom
from stillroom.errors import DataError
from stillroom.flow import run_recipe
from stillroom.flow.papers.facts import list_settings
from stillroom.flow.papers.graph import read_graph
from stillroom.flow.papers.node import hide_places
from stillroom.flow.papers.writer import FORMATS, write_all
from stillroom.jobs import Job
from stillroom.provenance import list_run_folders, make_parent, read_artifact
from stillroom.provenance.artifact import Parent
from stillroom.provenance.signing import (
    append_claim,
    create_key_pair,
    load_signing_key,
    sign_artifact,
)
from stillroom.recipes import parse_recipe
from stillroom.records import Link, Message, Origin, Record, write_records
from stillroom.testing import tiny_checkpoint


@pytest.fixture(scope="module")
def papers(run):
    return {paper.format: paper for paper in write_all(read_graph(run))[0]}


def invoke(*arguments):
    return CliRunner().invoke(stillroom, ["attest", *map(str, arguments)])


def check_bom(text):
    errors = JsonStrictValidator(SchemaVersion.V1_7).validate_str(text, all_errors=True)
    assert list(errors or ()) == []
    return json.loads(text)


def check_spdx(text):
    """Read by the bindings that are generated from the SHACL model, and write: both validate."""
    model, objects = spdx_python_model.load_data(json.loads(text))
    model.JSONLDSerializer().write(objects, BytesIO())
    assert sorted(objects.missing_ids) == []
    return [one for one in json.loads(text)["@graph"] if "spdxId" in one]


def test_bom_lists_models_data_and_how_they_were_made(papers, run):
    bom = check_bom(papers["cyclonedx"].text)
    assert bom["metadata"]["component"]["name"] == "run"
    parts = {part["name"]: part for part in bom["components"]}
    student, records = parts["student"], parts["records"]
    assert student["type"] == "machine-learning-model"
    assert student["pedigree"]["ancestors"][0]["purl"] == "pkg:huggingface/Maker/Large@0a1b2c"
    assert student["licenses"] == [{"license": {"id": "CC0-1.0"}}]
    card = student["modelCard"]
    assert card["modelParameters"]["modelArchitecture"] == "LlamaForCausalLM"
    assert card["modelParameters"]["datasets"] == [{"ref": "records:records"}]
    figures = {one["type"]: one for one in card["quantitativeAnalysis"]["performanceMetrics"]}
    assert figures["answers/student/closed/f1"]["confidenceInterval"]["lowerBound"] == "0.3"
    assert "confidenceInterval" not in figures["answers/student/closed/em"]  # NaN is no bound
    made = read_artifact(run / "steps" / "student")
    hashes = {one["name"]: one["hashes"][0]["content"] for one in student["components"]}
    assert hashes == {one.path: one.digest for one in (*made.files, *made.timed_files)}
    assert records["data"][0]["description"].startswith("3 records, ")
    workflows = {one["name"]: one for one in bom["formulation"][0]["workflows"]}
    assert set(workflows) == {"rag.index", "synth.records", "distill.supervised"}
    roles = [one["properties"][0]["value"] for one in workflows["synth.records"]["inputs"][:2]]
    assert roles == ["passages", "teacher"]
    complete = {one["aggregate"]: one["dependencies"] for one in bom["compositions"]}
    assert f"model:{TEACHER}" in complete["unknown"]


def test_documents_are_listed_with_digest_license_and_origin(papers):
    bom = check_bom(papers["cyclonedx"].text)
    index = next(part for part in bom["components"] if part["name"] == "index")
    documents = [part for part in index["components"] if part["name"] in ("ferry.md", "rivers.txt")]
    assert [one["mime-type"] for one in documents] == ["text/markdown", "text/plain"]
    assert all(one["licenses"] == [{"license": {"id": "CC0-1.0"}}] for one in documents)
    assert all(one["properties"][0]["value"] == "human" for one in documents)


def test_minimum_elements_have_seven_clusters_of_fifty(papers):
    fields = papers["cyclonedx"].fields
    counts = Counter(name.partition("/")[0] for name in fields)
    assert dict(counts) == {
        "metadata": 10,
        "system": 9,
        "models": 13,
        "datasets": 10,
        "infrastructure": 2,
        "security": 4,
        "kpis": 2,
    }
    bom = json.loads(papers["cyclonedx"].text)
    told = {one["value"] for one in bom["metadata"]["properties"]}
    assert told == set(papers["cyclonedx"].unknown)
    assert "datasets/sensitivity" in told
    assert fields["security/controls"] == "records: filters injection"
    assert fields["models/license"] == "CC0-1.0"


def test_spdx_has_packages_builds_and_two_licenses_each(papers):
    elements = check_spdx(papers["spdx"].text)
    by_type = Counter(one["type"] for one in elements)
    assert by_type["ai_AIPackage"] == 3  # student, its base, and the embedder
    assert by_type["build_Build"] == 3
    student = next(one for one in elements if one.get("name") == "student")
    assert {"type": "DictionaryEntry", "key": "teacher", "value": TEACHER} in student[
        "ai_hyperparameter"
    ]
    links = [one for one in elements if one["type"] == "Relationship"]
    packages = [
        one for one in elements if one["type"] in ("ai_AIPackage", "dataset_DatasetPackage")
    ]
    for package in packages:
        kinds = Counter(
            one["relationshipType"] for one in links if one["from"] == package["spdxId"]
        )
        assert (kinds["hasDeclaredLicense"], kinds["hasConcludedLicense"]) == (1, 1)
    (trained,) = [one for one in links if one["relationshipType"] == "trainedOn"]
    names = {one["spdxId"]: one.get("name") for one in elements}
    assert names[trained["from"]] == "student"
    assert [names[one] for one in trained["to"]] == ["records"]  # not what these were made from
    uses = next(one["dataset_intendedUse"] for one in elements if one.get("name") == "index")
    assert uses == "index of a job, passages of synth.records"


def test_spdx_is_a_bill_of_materials_of_a_build_whose_root_is_the_model(papers):
    """Checkers of minimum elements (NTIA, CISA) begin at a document's Sbom."""
    elements = {one["spdxId"]: one for one in check_spdx(papers["spdx"].text)}
    (document,) = [one for one in elements.values() if one["type"] == "SpdxDocument"]
    bom = elements[document["rootElement"][0]]
    assert (bom["type"], bom["software_sbomType"]) == ("software_Sbom", ["build"])
    assert [elements[one]["type"] for one in bom["rootElement"]] == ["ai_AIPackage"]
    assert {*bom["element"], bom["spdxId"], document["spdxId"]} == elements.keys()


def test_spdx_states_no_conformance_to_profiles_whose_demands_no_lineage_meets(papers):
    """The profiles demand a release time, which spdx-python-model does not check."""
    elements = check_spdx(papers["spdx"].text)
    document = elements[-1]
    assert document["profileConformance"] == ["core", "software", "simpleLicensing", "build"]
    assert "release time" in document["comment"]
    student = next(one["spdxId"] for one in elements if one.get("name") == "student")
    said = next(one["statement"] for one in elements if one.get("subject") == student)
    assert {"releaseTime", "software_downloadLocation"} <= set(said.split(": ")[1].split(", "))


def find_agents(told):
    """Return the names of who supplied each package and from whom its data came."""
    elements = check_spdx(told)
    names = {one["spdxId"]: one.get("name") for one in elements}
    packages = [one for one in elements if one["type"].endswith("Package")]
    said = {one["subject"]: one["statement"] for one in elements if one["type"] == "Annotation"}
    for one in packages:
        assert ("suppliedBy" in one) != ("suppliedBy" in said.get(one["spdxId"], ""))
    return {
        one["name"]: (
            names.get(one.get("suppliedBy")),
            [names[agent] for agent in one.get("originatedBy", ())],
        )
        for one in packages
        if one["type"] != "software_Package"
    }


def test_spdx_names_suppliers_and_originators_that_are_known(run, tmp_path):
    """Unknown ones are left out and named in an annotation, not called 'unknown'."""
    unsigned = find_agents(FORMATS["spdx"](read_graph(run)).text)
    assert unsigned["records"] == unsigned["student"] == unsigned["index"] == (None, [])
    assert unsigned["Maker/Large"] == ("Maker", [])
    told = find_agents(FORMATS["spdx"](read_graph(run, provider="Ann Lee")).text)
    assert told["records"] == told["index"] == ("Ann Lee", ["Ann Lee"])
    assert told["student"] == ("Ann Lee", [])
    signed = shutil.copytree(run, tmp_path / "signed")
    create_key_pair(tmp_path / "alice")
    signer = load_signing_key(tmp_path / "alice.key")
    for folder in list_run_folders(signed):
        sign_artifact(folder, signer)
    holder = f"holder of key {signer.key_id}"
    told = find_agents(FORMATS["spdx"](read_graph(signed)).text)
    assert told["records"] == (holder, [holder])
    append_claim(signed / "steps/records", {"payload": "", "signatures": [{"keyid": "eve"}]})
    shutil.copy(signed / "model.sig", signed / "steps/index/model.sig")
    (signed / "steps/student/signer.pub").write_text("eve")
    told = find_agents(FORMATS["spdx"](read_graph(signed)).text)
    assert told["records"] == (holder, [holder])  # the newest claim is not the signer's
    assert told["student"] == (None, [])


def test_spdx_states_the_threshold_that_a_reader_answers_from(run, tmp_path):
    job = Job.start(tmp_path / "reader", "version: 1\nkind: rag.reader\n")
    (job.output / "reader.json").write_text("{}")
    job.finish("checkpoint", details={"reader": True, "validation": {"threshold": 0.1353821}})
    (model,) = [
        one
        for one in check_spdx(FORMATS["spdx"](read_graph(tmp_path / "reader")).text)
        if one["type"] == "ai_AIPackage"
    ]
    (entry,) = model["ai_metricDecisionThreshold"]
    assert (entry["key"], entry["value"]) == (
        "probability from which a sentence answers",
        "0.135382",
    )


def test_a_merge_learned_what_its_parents_did_and_was_only_tested_on_its_own_records(run, tmp_path):
    records = run / "steps" / "records"
    recipe = (
        "version: 1\nkind: merge.select\nmodels: [{model: hub:a/b}, {model: hub:a/c}]\n"
        "method: linear\nselect: {records: other}\n"
    )
    job = Job.start(tmp_path / "merge", recipe)
    tiny_checkpoint(job.output, hidden=32)
    other = tmp_path / "other"
    shutil.copytree(records, other)
    parents = [
        make_parent("model", run / "steps" / "student", job.out),
        make_parent("records", other, job.out),
    ]
    job.finish("checkpoint", parents=parents, origin={"kind": "synthetic"})
    graph = read_graph(tmp_path / "merge")
    learned = graph.list_training_data(graph.subject)
    tested = graph.list_training_data(graph.subject, is_tested=True)
    assert ([one.folder for one in learned], [one.folder for one in tested]) == ([records], [other])
    kinds = {one.get("relationshipType") for one in check_spdx(FORMATS["spdx"](graph).text)}
    assert {"trainedOn", "testedOn"} <= kinds


def test_croissant_tells_sources_models_and_what_was_dropped(papers):
    told = json.loads(papers["croissant"].text)
    assert told["conformsTo"][0] == "http://mlcommons.org/croissant/1.1"
    assert {one["prov:label"] for one in told["prov:wasDerivedFrom"]} == {"rivers.txt", "ferry.md"}
    made_by = told["prov:wasAttributedTo"][0]["prov:label"]
    assert made_by == f"Maker/Large ({PRINT}) (2 rows)"
    assert told["rai:dataCollection"] == "2 synthetic, 1 human"
    assert told["rai:dataCollectionMissingData"] == "dropped: 4 duplicate"
    assert told["rai:dataBiases"] == "unknown"
    assert told["distribution"][0]["contentUrl"] == "steps/records/output/records.jsonl"


@pytest.mark.parametrize(
    ("format", "said"),
    [
        ("eu-summary", "- **Model dependencies:** Maker/Large"),
        ("eu-summary", "- **Training data size:** 48 bytes of text in 3 records. Less than 1 "),
        ("eu-summary", "- **General description of measures taken:** unknown"),
        ("eu-form", "3 records, 48 bytes of text; split: 3 train; origin: 2 synthetic, 1 human"),
        ("eu-summary", "- **Was synthetic AI-generated data created to train the model?:** Yes"),
        ("eu-summary", f"Maker/Large ({PRINT}): 2 texts"),
        ("eu-summary", "2 documents of papers: 1 text/markdown, 1 text/plain; license: 2 CC0-1.0"),
        ("eu-summary", "- **Are you a signatory to the Code of Practice?:** unknown"),
        ("eu-form", "- **Model architecture:** LlamaForCausalLM"),
        ("eu-form", "- **Maximum input size:** 512 tokens"),
        ("eu-form", "- **License:** CC0-1.0"),
        ("eu-form", "student/tokens_per_second 90 (n=1)"),
        ("eu-form", "- **Amount of energy used for training:** unknown"),
        ("card", "| records of records | 1 (33%) | 2 (67%) | 0 (0%) | CC0-1.0 |"),
    ],
)
def test_forms_say_what_is_on_record_and_what_is_not(papers, format, said):
    assert said in papers[format].text


def test_papers_have_no_local_path_and_are_the_same_twice(papers, run, tmp_path):
    moved = tmp_path / "elsewhere" / "run"
    shutil.copytree(run, moved)
    again = {paper.format: paper for paper in write_all(read_graph(moved))[0]}
    for format, paper in papers.items():
        assert str(run.parent) not in paper.text
        if format != "card":
            assert "/private/" not in paper.text
        assert again[format].text == paper.text


def test_name_and_provider_are_written_where_they_belong(run):
    graph = read_graph(run, name="Ferry", provider="Ann Lee, ann@example.org")
    told = {paper.format: paper for paper in write_all(graph)[0]}
    bom = check_bom(told["cyclonedx"].text)
    assert bom["metadata"]["authors"] == [{"name": "Ann Lee, ann@example.org"}]
    assert "Ferry" in {part["name"] for part in bom["components"]}
    assert "# Public Summary of Training Content: Ferry" in told["eu-summary"].text
    assert "1.1 Provider name and contact details" not in told["eu-summary"].unknown
    assert json.loads(told["croissant"].text)["creator"]["name"] == "Ann Lee, ann@example.org"
    check_spdx(told["spdx"].text)


def test_a_license_that_is_no_spdx_id_is_a_name(tmp_path):
    run = build_run(tmp_path, license="House rules")
    told = {paper.format: paper for paper in write_all(read_graph(run))[0]}
    student = next(
        part
        for part in check_bom(told["cyclonedx"].text)["components"]
        if part["name"] == "student"
    )
    assert student["licenses"] == [{"license": {"name": "House rules"}}]
    terms = [one.get("simplelicensing_licenseExpression") for one in check_spdx(told["spdx"].text)]
    assert "LicenseRef-House-rules" in terms


def test_what_is_gone_is_an_open_end_and_unknown(run, tmp_path):
    left = tmp_path / "run"
    shutil.copytree(run, left)
    (left / "steps" / "records" / "output" / "records.jsonl").unlink()
    shutil.rmtree(left / "steps" / "index")
    graph = read_graph(left)
    assert graph.open_ends == [
        "index is gone",
        "records: its records were deleted and cannot be counted",
    ]
    told, left_out = write_all(graph)
    assert list(left_out) == ["croissant"]
    by_format = {paper.format: paper for paper in told}
    bom = check_bom(by_format["cyclonedx"].text)
    groups = {one["aggregate"]: one["dependencies"] for one in bom["compositions"]}
    assert "records:records" in groups["incomplete"]
    assert "1.3 Training data size" in by_format["eu-summary"].unknown
    assert "- index is gone" in by_format["eu-summary"].text
    with pytest.raises(DataError) as caught:
        FORMATS["croissant"](graph)
    assert caught.value.code == "attest.no-records"


def test_records_alone_have_the_papers_of_data(run):
    papers, left_out = write_all(read_graph(run / "steps" / "records"))
    told = {paper.format: paper for paper in papers}
    assert set(told) == {"cyclonedx", "spdx", "croissant"}
    assert set(left_out) == {"eu-summary", "eu-form", "card"}
    assert check_bom(told["cyclonedx"].text)["metadata"]["component"]["type"] == "data"
    check_spdx(told["spdx"].text)


def test_merge_has_papers_with_its_parents(tmp_path):
    for seed, name in enumerate(("first", "second")):
        tiny_checkpoint(tmp_path / name, hidden=32, seed=seed)
    models = "".join(f"  - {{model: {tmp_path / name}}}\n" for name in ("first", "second"))
    recipe = parse_recipe(f"kind: merge.weights\nmethod: linear\nmodels:\n{models}")
    run_recipe(recipe, tmp_path / "merged")
    papers, left_out = write_all(read_graph(tmp_path / "merged"))
    told = {paper.format: paper for paper in papers}
    assert list(left_out) == ["croissant"]
    bom = check_bom(told["cyclonedx"].text)
    merged = bom["metadata"]["component"]
    assert [one["name"] for one in merged["pedigree"]["ancestors"]] == ["first", "second"]
    assert bom["formulation"][0]["workflows"][0]["taskTypes"] == ["merge"]
    assert merged["licenses"] == [{"license": {"name": "unknown"}}]
    check_spdx(told["spdx"].text)
    assert "- **Model dependencies:** first, second" in told["eu-summary"].text


def test_command_writes_counts_and_refuses(run, tmp_path):
    done = invoke(run, "--format", "all", "--out", tmp_path / "papers")
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "papers").iterdir())) == len(FORMATS)
    assert "11 of 50 fields unknown: metadata/author, " in " ".join(done.output.split())
    again = invoke(run, "--format", "all", "--out", tmp_path / "papers")
    assert isinstance(again.exception, DataError)
    assert again.exception.code == "data.exists"
    told = json.loads(invoke(run, "--format", "spdx", "--json").output)["papers"][0]
    assert "suppliedBy" in told["unknown"]
    check_spdx(told["text"])
    one = invoke(run, "--format", "cyclonedx", "--out", tmp_path / "bom.json")
    assert one.exit_code == 0
    check_bom((tmp_path / "bom.json").read_text(encoding="utf-8"))
    assert invoke(run, "--format", "all").exception.code == "attest.no-folder"
    told = invoke(run / "steps" / "index", "--format", "all", "--out", tmp_path / "index")
    assert told.exit_code == 0  # an index alone has inventories, and no papers of a model
    assert {one.name for one in (tmp_path / "index").iterdir()} == {"bom.cdx.json", "bom.spdx.json"}
    check_bom((tmp_path / "index" / "bom.cdx.json").read_text(encoding="utf-8"))
    check_spdx((tmp_path / "index" / "bom.spdx.json").read_text(encoding="utf-8"))


def test_a_run_that_answers_nothing_is_refused_with_its_steps_named(tmp_path):
    job = Job.start(tmp_path / "run", "version: 1\nkind: flow\n")
    job.finish("report", details={"steps": {"graph": "steps/graph"}, "answer": {}})
    (problem,) = invoke(tmp_path / "run", "--format", "spdx").exception.problems
    assert problem.code == "data.wrong-kind"
    assert problem.what.endswith("is a run without `answer:` in its recipe")
    assert problem.next.endswith("run/steps")


def test_signed_run_names_its_signer(run, tmp_path):
    from stillroom.provenance.signing import create_key_pair, load_signing_key, sign_artifact

    signed = tmp_path / "run"
    shutil.copytree(run, signed)
    key = load_signing_key(create_key_pair(tmp_path / "ann")[0])
    sign_artifact(signed / "steps" / "student", key)
    told = {paper.format: paper for paper in write_all(read_graph(signed))[0]}
    student = next(
        part
        for part in check_bom(told["cyclonedx"].text)["components"]
        if part["name"] == "student"
    )
    assert {"name": "stillroom:signer", "value": key.key_id} in student["properties"]
    assert {one["type"] for one in student["externalReferences"]} == {
        "attestation",
        "digital-signature",
    }
    assert f"signed by key {key.key_id}" in told["eu-form"].text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/srv/ann/model", "model"),
        ("scripted:/srv/ann/script.json", "script.json"),
        (r"C:\models\first", "first"),
        ("hub:Maker/Large@1", "hub:Maker/Large@1"),
        ("s3://bucket/records", "s3://bucket/records"),
        ("all-linear", "all-linear"),
        ("http://10.0.0.7:8000/v1#gemma", "endpoint#gemma"),
        ("endpoint:https://intern.example/v1#a/b", "endpoint#a/b"),
    ],
)
def test_folders_and_addresses_of_endpoints_are_hidden(text, shown):
    assert hide_places(text).removeprefix("scripted:") == shown
    assert dict(list_settings({"model": text}))["model"].endswith(shown)
    objective = {"name": "forward_kl", "temperature": 2.0, "ce_weight": 1.0}
    left_out = dict(list_settings({"method": {**objective, "kd_weight": 0.0}}))
    assert left_out == {"method.ce_weight": "1.0", "method.kd_weight": "0.0"}
    assert "method.name" in dict(list_settings({"method": {**objective, "kd_weight": 0.5}}))
    told = dict(list_settings({"teacher": {"endpoint": "http://10.0.0.7/v1", "model": "gemma"}}))
    assert told == {"teacher.endpoint": "an address", "teacher.model": "gemma"}


def test_no_paper_names_the_address_of_an_endpoint(run, tmp_path):
    address = "http://10.0.0.7:8000/v1#gemma"
    job = Job.start(tmp_path / "records", f"version: 1\nkind: synth.records\nmodel: {address}\n")
    made = Origin("synthetic", (Link("synth.generators.x", f"endpoint:{address}"),))
    turns = (Message("user", "When?"), Message("assistant", "Noon."))
    write_records(job.output / "records.jsonl", [Record(turns, {}, made)])
    job.finish("records", parents=[Parent("teacher", address, f"endpoint:{address}", "checkpoint")])
    for paper in write_all(read_graph(tmp_path / "records"))[0]:
        assert "10.0.0.7" not in paper.text
        assert "gemma" in paper.text


def test_serial_numbers_come_from_the_content(papers, run):
    serial = json.loads(papers["cyclonedx"].text)["serialNumber"]
    other = FORMATS["cyclonedx"](read_graph(run, name="Other")).text
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f-]{21}", serial)
    assert json.loads(other)["serialNumber"] != serial


def test_a_detector_has_inventories_but_no_papers_of_a_language_model(tmp_path):
    job = Job.start(tmp_path / "detector", "version: 1\nkind: flow\n")
    tiny_checkpoint(job.output, hidden=32)
    job.finish("checkpoint", details={"detector": {"method": "mesonet"}})
    papers, left_out = write_all(read_graph(tmp_path / "detector"))
    assert [paper.format for paper in papers] == ["cyclonedx", "spdx"]
    assert "not a language model" in left_out["card"]
    card = check_bom(papers[0].text)["metadata"]["component"]["modelCard"]
    assert card["modelParameters"]["task"] == "forgery-detection"
    assert "inputs" not in card["modelParameters"]


def test_hostile_names_stay_text(run):
    hostile = "<img src=x>\n# Heading \udc80"
    told = {paper.format: paper for paper in write_all(read_graph(run, name=hostile))[0]}
    for paper in told.values():
        paper.text.encode()
    assert (
        "# Public Summary of Training Content: &lt;img src=x> # Heading" in told["eu-summary"].text
    )
    check_bom(told["cyclonedx"].text)
    check_spdx(told["spdx"].text)


def test_a_student_alone_tells_what_its_training_counted_and_measured(run, tmp_path):
    job = Job.start(tmp_path / "student", "version: 1\nkind: flow\n")
    tiny_checkpoint(job.output, hidden=32)
    rows = [
        {
            "name": "student/kl",
            "value": 0.1159,
            "low": 0.113,
            "high": 0.118,
            "n": 6,
            "unit": "nats",
        },
        {"name": "teacher/loss", "value": 6.0, "low": 5.9, "high": 6.1, "n": 6, "unit": "nats"},
        {"name": "student/steps", "value": 14.0, "low": None, "high": None, "n": 1, "unit": ""},
    ]
    (job.output / "fidelity.json").write_text(json.dumps({"report": {"metrics": rows}}))
    counted = {"steps": 14, "tokens": 2072, "first_loss": 6.0916, "last_loss": 4.6135}
    job.finish("checkpoint", details={"train": counted}, origin={"kind": "synthetic"})
    told = {paper.format: paper for paper in write_all(read_graph(tmp_path / "student"))[0]}
    assert "14 steps, 2072 tokens, loss 6.092 at first and 4.614 at last" in told["eu-form"].text
    assert "loss 6.092 at first" in told["cyclonedx"].fields["models/training properties"]
    bom = check_bom(told["cyclonedx"].text)
    card = bom["metadata"]["component"]["modelCard"]
    figures = card["quantitativeAnalysis"]["performanceMetrics"]
    assert [(one["type"], one["value"]) for one in figures] == [("student/kl", "0.1159")]
    (model,) = [one for one in check_spdx(told["spdx"].text) if one["type"] == "ai_AIPackage"]
    assert "2072 tokens" in model["ai_informationAboutTraining"]
    assert [one["key"] for one in model["ai_metric"]] == ["student/kl"]
    assert "No evaluation is recorded" not in told["card"].text


def test_a_plain_file_that_a_student_learned_from_is_named(tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text('{"messages": []}\n', encoding="utf-8")
    job = Job.start(tmp_path / "student", "version: 1\nkind: flow\n")
    tiny_checkpoint(job.output, hidden=32)
    job.finish("checkpoint", parents=[make_parent("records", file, job.out)])
    told = {paper.format: paper for paper in write_all(read_graph(tmp_path / "student"))[0]}
    elements = check_spdx(told["spdx"].text)
    names = {one["spdxId"]: one.get("name") for one in elements}
    (trained,) = [one for one in elements if one.get("relationshipType") == "trainedOn"]
    assert [names[one] for one in trained["to"]] == ["mine.jsonl"]
    assert "1.3 Training data size" in told["eu-summary"].unknown  # nobody counted it


def test_a_reader_that_learned_from_judgments_says_that_user_data_was_used(run, tmp_path):
    for role, expected in (("questions", "unknown"), ("judgments", "Yes: questions that people")):
        (tmp_path / "train.jsonl").write_text("{}\n")
        job = Job.start(tmp_path / role, "version: 1\nkind: rag.reader\n")
        (job.output / "reader.json").write_text("{}")
        parent = make_parent(role, tmp_path / "train.jsonl", job.out)
        job.finish("checkpoint", details={"reader": True}, parents=[parent])
        text = FORMATS["eu-summary"](read_graph(tmp_path / role)).text
        assert f"user interactions with the AI model used?:** {expected}" in text
