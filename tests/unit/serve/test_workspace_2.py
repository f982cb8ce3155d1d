import pytest

from stillroom.errors import DataError, ResourceError
from stillroom.serve.workspace import Workspace


def test_one_server_holds_a_folder(tmp_path):
    with Workspace(tmp_path).open(), pytest.raises(ResourceError, match="another server"):
        Workspace(tmp_path).open().__enter__()
    with Workspace(tmp_path).open():
        pass
    with pytest.raises(DataError, match="not a folder"), Workspace(tmp_path / "none").open():
        pass


def test_tenants_have_folders_of_their_own_and_share_what_is_linked(tmp_path):
    space = Workspace(tmp_path, has_tenants=True)
    ann, bob = space.root("ann"), space.root("bob")
    (bob.folder / "notes.txt").write_text("bob's")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "base").mkdir()
    (ann.folder / "base").symlink_to(tmp_path / "shared" / "base")
    (ann.folder / "bob").symlink_to(bob.folder)
    (ann.folder / "dangling").symlink_to(ann.folder / "gone")
    assert [entry.path for entry in ann.list()[0]] == ["base", "jobs"]
    for name in ("../bob/notes.txt", "bob/notes.txt", "bob", "/etc", ".x", "a\0b", "a\\b", "none"):
        with pytest.raises(DataError, match="served folder") as caught:
            ann.find(name)
        assert caught.value.code == "data.missing"
    assert bob.find("notes.txt").read_text() == "bob's"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "-x", "é", "x" * 65])
def test_a_tenant_without_a_folders_name_is_refused(tmp_path, name):
    with pytest.raises(DataError) as caught:
        Workspace(tmp_path, has_tenants=True).root(name)
    assert caught.value.code == "serve.tenant-name"
