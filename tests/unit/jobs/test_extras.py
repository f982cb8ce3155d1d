"""A module that is not installed is named by the extra that brings it, to every kind of user."""

import pytest

from stillroom.jobs.extras import find_missing_extra


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
