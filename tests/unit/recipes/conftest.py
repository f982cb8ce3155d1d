"""A small package with two rooms, so that recipes are tested apart from the real ones."""

import sys
from pathlib import Path

import pytest

from stillroom.recipes import schema

FILES = {
    "__init__.py": "",
    "merge/__init__.py": "",
    "merge/method.py": '''
from typing import ClassVar
from stillroom.registry import Method, Registry

class MergeMethod(Method):
    """The base."""
    paper: ClassVar[str] = ""

METHODS = Registry("roomset.merge.methods", MergeMethod)
''',
    "merge/methods/__init__.py": 'REGISTRY = "how weights are joined"\n',
    "merge/methods/linear.py": '''
"""Average."""
from roomset.merge.method import MergeMethod

class Linear(MergeMethod):
    """Average."""
''',
    "merge/methods/ties.py": '''
"""Trim, elect, average."""
from typing import Literal
from pydantic import BaseModel, Field, field_validator
from roomset.merge.method import MergeMethod
from stillroom.errors import DataError
from stillroom.recipes import Reference, Settings

class Vote(Settings):
    by: Literal["sign", "mass"] = Field("sign", description="what is elected")

class Ties(MergeMethod):
    """Trim."""
    density: float = Field(0.2, gt=0, le=1, description="share of each task vector that is kept")
    weights: float | list[float] = Field(1.0, description="multipliers")
    votes: list[Vote] = Field(default_factory=list, description="rounds of voting")
    prior: Reference | None = Field(None, description="a checkpoint to lean on")

    @field_validator("density")
    @classmethod
    def _not_a_third(cls, value):
        if value == 0.33:
            raise DataError("a third is refused", code="data.third", expected="anything else")
        return value
''',
    "merge/jobs/weights.py": '''
"""MergeRecipe: which checkpoints are merged, and how."""
from typing import Annotated, Literal
from pydantic import Field, model_validator
from roomset.merge.method import METHODS, MergeMethod
from stillroom.jobs.kind import JobKind
from stillroom.recipes import Duration, Recipe, Reference, Secret, Settings, Size

class Model(Settings):
    checkpoint: Reference = Field(description="a checkpoint")
    weight: float = Field(1.0, ge=0, le=2, description="its share")

class Out(Settings):
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="stored precision")
    shard_size: Size = Field("2GB", description="largest file")

class MergeRecipe(Recipe):
    """Merge checkpoints into one."""
    kind: Literal["merge.weights"] = "merge.weights"
    method: Annotated[MergeMethod, METHODS.choice()] = Field(description="how weights are joined")
    base: Reference = Field(description="the reference checkpoint")
    models: list[Model] = Field(min_length=2, description="what is merged")
    out: Out = Field(default_factory=Out, description="how it is written")
    then: list[Annotated[MergeMethod, METHODS.choice()]] = Field(
        default_factory=list, description="methods that follow"
    )
    patience: Duration = Field(30.0, description="how long a file is waited for")
    key: Secret | None = Field(None, description="key of the hub")
    note: str = Field("", max_length=500, description="anything")
    labels: dict[str, str] = Field(default_factory=dict, description="free words")

    @model_validator(mode="after")
    def _no_zero(self):
        if sum(model.weight for model in self.models) == 0:
            raise ValueError("the weights sum to zero")
        return self

JOB_KIND = JobKind(recipe=MergeRecipe, run=print, estimate=print)
''',
    "tiny/__init__.py": "",
    "tiny/jobs/job.py": '''
"""TinyRecipe: a kind with a written example."""
from typing import Literal
from pydantic import Field
from stillroom.jobs.kind import JobKind
from stillroom.recipes import Recipe

class TinyRecipe(Recipe):
    """Do next to nothing."""
    kind: Literal["tiny.job"] = "tiny.job"
    steps: int = Field(gt=0, lt=5, description="how many")
    tables: dict[str, int] = Field(description="numbers by name")
    words: list[str] = Field(min_length=1, description="words")
    maybe: float | None = Field(description="a number or nothing")
    name: str = Field(examples=["tom"], pattern="^t", description="begins with t")

JOB_KIND = JobKind(recipe=TinyRecipe, run=print, estimate=print)
''',
    "tiny/make.yaml": "# stillroom run make.yaml\nkind: tiny.job\n",
    "tiny/other.yaml": "# another\nkind: tiny.job\n",
}


@pytest.fixture(scope="session")
def room_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rooms")
    for name, text in FILES.items():
        path = root / "roomset" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root / "roomset"


@pytest.fixture
def rooms(room_package: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(room_package.parent))
    monkeypatch.setattr(schema, "_PACKAGE", room_package)
    return room_package


@pytest.fixture(scope="session", autouse=True)
def _forget_rooms():
    yield
    for name in [known for known in sys.modules if known.split(".")[0] == "roomset"]:
        del sys.modules[name]
