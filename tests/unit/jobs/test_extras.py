"""A module that is not installed is named by the extra that brings it, to every kind of user."""

import importlib.util
import sys

import pytest

from stillroom.errors import MissingExtraError
from stillroom.jobs import extras
from stillroom.jobs.extras import find_missing_extra, require_extras


def test_a_missing_module_of_an_extra_is_named_by_it():
    missing = find_missing_extra(ModuleNotFoundError("no", name="torch.nn"))
    assert missing.problems[0].next == "pip install 'stillroom[models]'"
    assert find_missing_extra(ModuleNotFoundError("no", name="nobody")) is None
    assert find_missing_extra(ValueError("no")) is None


def test_a_client_of_the_server_is_answered_with_the_extra():
    errors = pytest.importorskip("stillroom.serve.errors")
    answer = errors.to_api_error(ModuleNotFoundError("no", name="torch"))
    assert (answer.status, answer.code) == (501, "extra.missing")
    assert errors.to_api_error(ModuleNotFoundError("no", name="nobody")).status == 500


def test_a_declared_extra_and_one_that_run_imports_are_required(monkeypatch):
    def run(recipe, job):
        import torch

        return torch

    require_extras(("models",), run, "a job")
    find = importlib.util.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "torch" else find(name))
    monkeypatch.setitem(sys.modules, "torch", None)
    for declared in ((), ("models",)):
        with pytest.raises(MissingExtraError) as caught:
            require_extras(declared, run, "a job of kind x")
        assert "a job of kind x needs the package 'torch'" in str(caught.value)
        assert caught.value.problems[0].next == "pip install 'stillroom[models]'"
    require_extras((), len, "a job")
