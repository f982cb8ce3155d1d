import importlib
import sys
from importlib.metadata import EntryPoint
from typing import Annotated

import pytest
from pydantic import BaseModel, ValidationError

from stillroom.errors import RecipeError
from stillroom.registry import Method, Registry, method

FILES = {
    "__init__.py": "",
    "seam/__init__.py": 'SEAM = "x"\n',
    "base.py": "from typing import ClassVar\nfrom stillroom.registry import Method\n"
    "class Base(Method):\n    paper: ClassVar[str] = ''\n",
    "seam/loud.py": "from pluggable.base import Base\nfrom pydantic import BaseModel, Field\n"
    "class _Quiet(Base):\n    pass\n"
    "class Inner(BaseModel):\n    x: int = 1\n"
    "class Loud(Base):\n    level: int = Field(3, ge=0)\n    inner: Inner = Inner()\n",
    "seam/_hidden.py": "raise RuntimeError\n",
}


@pytest.fixture
def seam(tmp_path, monkeypatch):
    for name, text in FILES.items():
        path = tmp_path / "pluggable" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    base = importlib.import_module("pluggable.base").Base
    yield Registry("pluggable.seam", base)
    for name in [known for known in sys.modules if known.split(".")[0] == "pluggable"]:
        del sys.modules[name]


def test_a_method_is_chosen_by_name_settings_or_itself(seam):
    loud = seam.build({"name": "loud", "level": 5})
    assert loud.level == 5
    assert seam.build("loud").level == 3
    assert seam.build(loud) is loud
    assert loud.method_name() == "loud"
    assert loud.model_dump() == {"name": "loud", "level": 5, "inner": {"x": 1}}


@pytest.mark.parametrize("name", ["", "_hidden", "../base", "seam.loud", "empty", "nope", "lou"])
def test_what_is_no_method_is_refused_by_name(seam, name):
    (seam.folder / "empty.py").write_text("from pluggable.base import Base\n")
    with pytest.raises(RecipeError) as caught:
        seam.get(name)
    assert caught.value.code == "recipe.unknown-method"


@pytest.mark.parametrize("chosen", [None, 3, [], {}, {"name": None}, {"level": 1}])
def test_a_choice_without_a_name_is_refused(seam, chosen):
    with pytest.raises(RecipeError) as caught:
        seam.build(chosen)
    assert caught.value.code == "recipe.unknown-method"


def test_settings_are_bounded_and_closed(seam):
    for bad in [{"level": -1}, {"volume": 1}]:
        with pytest.raises(ValidationError):
            seam.build({"name": "loud", **bad})


def test_a_field_chooses_and_comes_back_from_json(seam):
    class Holder(BaseModel):
        how: Annotated[Method, seam.choice()]

    holder = Holder.model_validate({"how": {"name": "loud", "level": 1}})
    assert Holder.model_validate_json(holder.model_dump_json()) == holder
    branch = Holder.model_json_schema()["properties"]["how"]["anyOf"][1]
    assert branch["properties"]["name"] == {"const": "loud"}
    assert "$ref" not in str(branch["properties"]["inner"])


def test_a_plug_in_is_found_by_its_entry_point(seam, monkeypatch):
    entry = EntryPoint("strange", "pluggable.seam.loud:Loud", "pluggable.seam")
    other = EntryPoint("wrong", "pluggable.seam.loud:Inner", "pluggable.seam")

    def entry_points(group):
        return [e for e in (entry, other) if e.group == group]

    monkeypatch.setattr(method, "entry_points", entry_points)
    monkeypatch.syspath_prepend("installed")  # entry points are read once for an import path
    assert "strange" in seam.names()
    assert seam.get("strange").__name__ == "Loud"
    with pytest.raises(RecipeError):
        seam.get("wrong")


def test_a_subset_lists_plug_ins_that_cannot_be_imported(seam, monkeypatch):
    entries = [
        EntryPoint("broken", "no_such_package:Loud", "pluggable.seam"),
        EntryPoint("wrong", "pluggable.seam.loud:Inner", "pluggable.seam"),
        EntryPoint("strange", "pluggable.seam.loud:Loud", "pluggable.seam"),
    ]
    monkeypatch.setattr(method, "entry_points", lambda group: entries)
    monkeypatch.syspath_prepend("elsewhere")  # entry points are read once for an import path
    none = seam.subset(lambda method: False, "is not for this")
    assert none.names() == ["broken", "wrong"]
    with pytest.raises(ImportError):
        none.get("broken")
    with pytest.raises(RecipeError, match="'wrong' is not a method"):
        none.get("wrong")
    with pytest.raises(RecipeError, match="'strange' is not for this"):
        none.get("strange")
