from pathlib import Path

from stillroom.registry import find_registries, list_kinds, list_methods, list_names, suggest
from stillroom.registry.catalog import read_settings


def test_methods_are_listed_from_their_files(tmp_path):
    package = tmp_path / "house"
    registry = package / "room" / "methods"
    registry.mkdir(parents=True)
    (registry / "__init__.py").write_text('REGISTRY = "how"\n')
    (package / "room" / "plain").mkdir()
    (package / "room" / "plain" / "__init__.py").write_text("")
    (registry / "_private.py").write_text("raise RuntimeError\n")
    (registry / "first.py").write_text(
        '"""One line.\n\nSource: x\n"""\nraise RuntimeError\n'
        "class _Hidden:\n    paper: str = 'no'\n"
        "class First:\n    paper: str = 'arXiv:1'\n    status: str = 'experimental'\n"
    )
    registries = find_registries(package)
    assert registries == {"stillroom.room.methods": registry}
    (listed,) = list_methods(registries)
    assert (listed.name, listed.summary, listed.paper, listed.status) == (
        "first",
        "One line.",
        "arXiv:1",
        "experimental",
    )
    assert list_names(registry) == ["first"]


def test_every_method_of_the_house_has_a_summary():
    for listed in list_methods():
        assert listed.summary.endswith("."), listed.path
        assert listed.path.is_file()


def test_the_nearest_word_is_suggested():
    assert suggest("densty", ["density", "weight"]) == "did you mean 'density'?"
    assert suggest("semantic", ["sentence", "heading"]) == ""  # a method that is gone, no typo
    assert suggest("zzz", ["density"]) == ""


def test_kinds_are_modules_that_declare_one(tmp_path: Path):
    jobs = tmp_path / "merge" / "jobs"
    jobs.mkdir(parents=True)
    (jobs / "weights.py").write_text('"""What is merged.\n\nMore."""\nJOB_KIND = JobKind()\n')
    (jobs / "shared.py").write_text('"""Declares none."""\n')
    (tmp_path / "flow").mkdir()
    (tmp_path / "flow" / "recipe.py").write_text('"""Steps."""\n')
    assert list_kinds(tmp_path) == {"flow": "Steps.", "merge.weights": "What is merged."}


def test_settings_are_read_without_importing_their_method(tmp_path):
    (tmp_path / "mine.py").write_text(
        'raise ImportError\nclass Mine(Method):\n    paper: ClassVar[str] = "x"\n'
        '    share: float = Field(0.5, ge=0, description="how " "much")\n'
        '    kind: str = Field("plain", description="which")\n    is_on: bool = Field(True)\n'
        '    limit: int | None = Field(None)\n    place: str = Field(description="where")\n'
        "    steps: tuple[int, ...] = (1, 2)\n    count: int\n    _hidden: int = 1\n"
        '    size: int = SIZE\nSIZE = Field(3, description="shared")\n'
    )
    found = [
        (one.name, one.default, one.description) for one in read_settings(tmp_path / "mine.py")
    ]
    assert found == [
        ("share", "0.5", "how much"),
        ("kind", "plain", "which"),
        ("is_on", "true", ""),
        ("limit", "null", ""),
        ("place", "", "where"),
        ("steps", "(1, 2)", ""),
        ("count", "", ""),
        ("size", "3", "shared"),
    ]


def test_every_setting_of_every_method_says_what_it_is():
    from stillroom.merge.interfaces import METHODS

    settings = {(row.registry, row.name): read_settings(row.path) for row in list_methods()}
    assert [
        (key, one.name) for key, all_ in settings.items() for one in all_ if not one.description
    ] == []
    for name in METHODS.names():
        told = {one.name: one.description for one in settings["stillroom.merge.methods", name]}
        fields = METHODS.get(name).model_fields
        assert told == {key: field.description for key, field in fields.items()}, name
