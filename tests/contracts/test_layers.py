"""Imports only go down; rooms never see each other. The rules stand in pyproject.toml."""

from importlinter.application.use_cases import lint_imports
from importlinter.configuration import configure


def test_every_import_contract_is_kept(monkeypatch):
    from tests.contracts.sources import ROOT

    monkeypatch.chdir(ROOT)
    configure()
    assert lint_imports(cache_dir=None, is_debug_mode=False)
