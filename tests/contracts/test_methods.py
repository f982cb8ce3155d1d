"""Every registered method keeps the contract of its registry."""

import importlib
import math
import subprocess
import sys
from typing import get_args

import pytest
from pydantic import BaseModel, ValidationError

from stillroom.recipes import find_recipe_class, list_kinds
from stillroom.recipes.schema import iter_targets
from stillroom.registry.catalog import find_registries, list_methods
from stillroom.registry.method import Registry
from stillroom.testing import check_method

METHODS = list(list_methods())


def test_every_seam_says_what_it_is_for():
    for name in find_registries():
        assert importlib.import_module(name).REGISTRY


@pytest.mark.parametrize("row", METHODS, ids=[f"{row.registry}.{row.name}" for row in METHODS])
def test_method_keeps_its_contract(row):
    check_method(row.registry, row.name)
    assert row.summary.endswith(".")
    assert len(row.summary) <= 100


def settings_of(*models):
    """Yield models and those of the groups within them, each once."""
    ahead, seen = list(models), set()
    while ahead:
        model = ahead.pop()
        if model in seen:
            continue
        seen.add(model)
        yield model
        for field in model.model_fields.values():
            targets = iter_targets(field.annotation, field.metadata)
            ahead += [one for one in targets if isinstance(one, type)]  # methods are roots


def takes(model, name, value):
    """Return whether a setting takes a value, whatever else the model is without."""
    try:
        model.model_validate({name: value})
    except ValidationError as error:
        return not any(each["loc"][:1] == (name,) for each in error.errors())
    return True


def is_fraction(annotation):
    return annotation is float or any(map(is_fraction, get_args(annotation)))


def test_every_setting_with_a_fraction_is_finite():
    methods = [Registry(row.registry, BaseModel).get(row.name) for row in METHODS]
    found, infinite = set(), set()
    for model in settings_of(*map(find_recipe_class, list_kinds()), *methods):
        for name, field in model.model_fields.items():
            if not is_fraction(field.annotation):
                continue
            found.add((model.__name__, name))
            for number in (math.nan, math.inf, -math.inf):
                shapes = (number, str(number), [number], [number] * 2, {"a": number})
                if any(takes(model, field.alias or name, shape) for shape in shapes):
                    infinite.add((model.__name__, name))
    assert {("Ties", "density"), ("TrainSettings", "learning_rate")} <= found
    assert not infinite


def test_test_kit_needs_torch_only_for_what_computes_with_it():
    """Authors of retrievers, filters or chunkers test them with the core alone."""
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None)\n"
        "from stillroom.testing import check_method, check_store, read_stream, scripted_model\n"
        "check_method('stillroom.rag.retrievers', 'keyword')\n"
        "check_method('stillroom.synth.filters', 'shape')\n"
        "check_method('stillroom.text.chunkers', 'recursive')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
