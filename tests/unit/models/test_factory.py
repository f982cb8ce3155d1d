import json

import pytest
from pydantic import ValidationError

from stillroom.errors import BackendError, CheckpointError, RecipeError
from stillroom.models import Backend, factory, open_embedder, open_text_model
from stillroom.models.backends.llamacpp import Llamacpp
from stillroom.rag.answer_selection.reader import open_reader
from stillroom.rag.claim_checking.checker import open_checker
from stillroom.rag.index_settings import IndexSettings
from stillroom.records import Prompt, Sampling
from stillroom.testing import tiny_checkpoint


def test_a_script_is_opened_and_cached(tmp_path):
    (tmp_path / "s.json").write_text('{"*": "hello"}')
    model = open_text_model(f"scripted:{tmp_path / 's.json'}", cache=tmp_path / "c.sqlite")
    assert model.generate([Prompt(text="x")], Sampling())[0].text == "hello"
    assert (tmp_path / "c.sqlite").is_file()
    model.close()


def test_a_folder_goes_to_transformers(tmp_path):
    model = open_text_model(str(tiny_checkpoint(tmp_path)), context_length=128)
    assert model.context_length == 128
    assert "transformers" in type(model).__module__


def test_unknown_settings_and_backends_are_refused(tmp_path):
    folder = str(tiny_checkpoint(tmp_path))
    with pytest.raises(RecipeError) as caught:
        open_text_model(folder, backend="tensorflow")
    assert caught.value.code == "recipe.unknown-method"
    with pytest.raises(ValueError, match="batchsize"):
        open_text_model(folder, backend="transformers", batchsize=3)


def test_a_checkpoint_may_name_a_plug_in(tmp_path):
    folder = tiny_checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "stillroom_backend": "nowhere"}))
    with pytest.raises(RecipeError, match="nowhere"):
        open_text_model(str(folder))


def test_llamacpp_refuses_what_is_no_gguf(tmp_path):
    pytest.importorskip("xllamacpp")
    assert issubclass(Llamacpp, Backend)
    with pytest.raises(BackendError) as caught:
        Llamacpp().open(str(tmp_path))
    assert caught.value.code == "backend.not-gguf"


def test_llamacpp_names_a_broken_file(tmp_path, capfd):
    pytest.importorskip("xllamacpp")
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(BackendError) as caught:
        open_text_model(str(tmp_path / "m.gguf"))
    assert caught.value.code == "backend.unloadable"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("installed", "backend"),
    [
        ({"xllamacpp", "torch"}, "llamacpp"),
        ({"torch"}, "transformers"),
        (set(), "llamacpp"),
    ],
)
def test_a_gguf_file_without_an_engine_is_sent_to_the_extra_of_llama_cpp(
    monkeypatch, installed, backend
):
    monkeypatch.setattr(factory.importlib.util, "find_spec", lambda name: name in installed or None)
    assert factory._choose_backend("model.gguf") == backend
    assert factory._choose_backend("folder") == "transformers"


@pytest.mark.parametrize(
    ("open_it", "reference", "named"),
    [
        (open_embedder, "builtin:mpnet", "builtin:mpnet-int8"),
        (open_reader, "builtin:reader-larg", "builtin:reader-large"),
        (open_checker, "builtin:check", "builtin:checker"),
    ],
)
def test_an_unknown_packaged_model_is_refused_with_the_names_there_are(open_it, reference, named):
    with pytest.raises(CheckpointError, match=f"there is no {reference}") as caught:
        open_it(reference)
    (problem,) = caught.value.problems
    assert problem.code == "checkpoint.missing"
    assert named in problem.expected
    assert problem.next == f"did you mean '{named}'?"


def test_an_index_refuses_an_unknown_packaged_embedder_before_it_starts():
    with pytest.raises(ValidationError, match="one of: builtin:auto, builtin:mpnet-int8"):
        IndexSettings(documents="docs", embedder="builtin:mpnet")
