import importlib
import sys
from importlib.metadata import EntryPoint
from typing import Annotated

import pytest
from pydantic import BaseModel, Field, ValidationError

from stillroom.errors import RecipeError
from stillroom.registry import Method, Registry, method
from stillroom.registry.method import CheckedModel

FILES = {
    "__init__.py": "",
    "registry/__init__.py": 'REGISTRY = "x"\n',
    "base.py": "from typing import ClassVar\nfrom stillroom.registry import Method\n"
    "class Base(Method):\n    paper: ClassVar[str] = ''\n",
    "registry/loud.py": "from pluggable.base import Base\nfrom pydantic import BaseModel, Field\n"
    "class _Quiet(Base):\n    pass\n"
    "class Inner(BaseModel):\n    x: int = 1\n"
    "class Loud(Base):\n    level: int = Field(3, ge=0)\n    inner: Inner = Inner()\n",
    "registry/_hidden.py": "raise RuntimeError\n",
}


@pytest.fixture
def registry(tmp_path, monkeypatch):
    for name, text in FILES.items():
        path = tmp_path / "pluggable" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    base = importlib.import_module("pluggable.base").Base
    yield Registry("pluggable.registry", base)
    for name in [known for known in sys.modules if known.split(".")[0] == "pluggable"]:
        del sys.modules[name]


def test_a_method_is_chosen_by_name_settings_or_itself(registry):
    loud = registry.build({"name": "loud", "level": 5})
    assert loud.level == 5
    assert registry.build("loud").level == 3
    assert registry.build(loud) is loud
    assert loud.method_name() == "loud"
    assert loud.model_dump() == {"name": "loud", "level": 5, "inner": {"x": 1}}


@pytest.mark.parametrize(
    "name",
    ["", "_hidden", "../base", "registry.loud", "empty", "nope", "lou", "x" * 300, "\ud800", "\0"],
)
def test_what_is_no_method_is_refused_by_name(registry, name):
    (registry.folder / "empty.py").write_text("from pluggable.base import Base\n")
    with pytest.raises(RecipeError) as caught:
        registry.get(name)
    assert caught.value.code == "recipe.unknown-method"


@pytest.mark.parametrize("chosen", [None, 3, [], {}, {"name": None}, {"level": 1}])
def test_a_choice_without_a_name_is_refused(registry, chosen):
    with pytest.raises(RecipeError) as caught:
        registry.build(chosen)
    assert caught.value.code == "recipe.unknown-method"


def test_settings_are_bounded_and_closed(registry):
    for bad in [{"level": -1}, {"volume": 1}]:
        with pytest.raises(ValidationError):
            registry.build({"name": "loud", **bad})


def test_a_field_chooses_and_comes_back_from_json(registry):
    class Holder(BaseModel):
        how: Annotated[Method, registry.choice()]

    holder = Holder.model_validate({"how": {"name": "loud", "level": 1}})
    assert Holder.model_validate_json(holder.model_dump_json()) == holder
    branch = Holder.model_json_schema()["properties"]["how"]["anyOf"][1]
    assert branch["properties"]["name"] == {"const": "loud"}
    assert "$ref" not in str(branch["properties"]["inner"])


def test_a_plug_in_is_found_by_its_entry_point(registry, monkeypatch):
    entry = EntryPoint("strange", "pluggable.registry.loud:Loud", "pluggable.registry")
    other = EntryPoint("wrong", "pluggable.registry.loud:Inner", "pluggable.registry")

    def entry_points(group):
        return [e for e in (entry, other) if e.group == group]

    monkeypatch.setattr(method, "entry_points", entry_points)
    monkeypatch.syspath_prepend("installed")  # entry points are read once for an import path
    assert "strange" in registry.names()
    assert registry.get("strange").__name__ == "Loud"
    with pytest.raises(RecipeError):
        registry.get("wrong")


def test_a_subset_lists_plug_ins_that_cannot_be_imported(registry, monkeypatch):
    entries = [
        EntryPoint("broken", "no_such_package:Loud", "pluggable.registry"),
        EntryPoint("wrong", "pluggable.registry.loud:Inner", "pluggable.registry"),
        EntryPoint("strange", "pluggable.registry.loud:Loud", "pluggable.registry"),
    ]
    monkeypatch.setattr(method, "entry_points", lambda group: entries)
    monkeypatch.syspath_prepend("elsewhere")  # entry points are read once for an import path
    none = registry.subset(lambda method: False, "is not for this")
    assert none.names() == ["broken", "wrong"]
    with pytest.raises(ImportError):
        none.get("broken")
    with pytest.raises(RecipeError, match="'wrong' is not a method"):
        none.get("wrong")
    with pytest.raises(RecipeError, match="'strange' is not for this"):
        none.get("strange")


def test_a_plug_in_for_another_version_is_refused_by_what_it_lacks(registry, monkeypatch):
    (registry.folder.parent / "older.py").write_text(
        "from pluggable.base import Base\nfrom abc import abstractmethod\n"
        "class Verb(Base):\n    @abstractmethod\n    def act(self): ...\n"
        "class Older(Verb):\n    def do(self): ...\n"
    )
    entry = EntryPoint("older", "pluggable.older:Older", "pluggable.registry")
    monkeypatch.setattr(method, "entry_points", lambda group: [entry])
    monkeypatch.syspath_prepend("outdated")  # entry points are read once for an import path
    with pytest.raises(RecipeError, match="'older' does not define act") as caught:
        registry.build("older")
    assert caught.value.code == "recipe.incomplete-method"


class Bounded(CheckedModel):
    min_words: int = 1
    max_words: int | None = 5
    form: str = "plain"


def test_a_minimum_above_its_maximum_is_refused():
    assert Bounded(min_words=9, max_words=None).min_words == 9
    with pytest.raises(ValidationError, match=r"min_words \(9\) is above max_words \(5\)"):
        Bounded(min_words=9)


class Formed(CheckedModel):
    form: str = "plain"
    groups: dict[str, list[CheckedModel]] = Field(default_factory=dict, alias="parts")

    def list_unused(self):
        return {"form": "set another"}


def test_only_settings_that_were_changed_are_without_effect():
    assert Formed(form="plain").describe_unused() == []
    within = Formed(parts={"a": [Formed(form="x")]})
    assert within.describe_unused() == ["parts.a.0.form has no effect: set another"]


def test_a_default_that_a_subclass_changes_is_no_change():
    class Other(Formed):
        form: str = "x"

    assert Other().describe_unused() == []
    assert Other(form="plain").describe_unused() == ["form has no effect: set another"]
