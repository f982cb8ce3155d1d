"""mergekit's settings of the tokenizer, as ours.

It writes no padding rows unless asked to, and adds tokens that are named and not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stillroom.merge.mergekit_models import Model, ModelReader
from stillroom.merge.mergekit_problems import Reporter
from stillroom.recipes.reading import Path

__all__ = ["TokenizerReader"]


@dataclass(frozen=True)
class TokenizerReader:
    """Reads ``tokenizer`` and ``tokenizer_source`` of the configuration at a path."""

    report: Reporter
    reader: ModelReader
    path: Path
    data: Mapping[str, Any]
    models: tuple[Model, ...]
    base: Model | None

    def read(self) -> dict[str, Any]:
        """Return our setting ``tokenizer``; empty where nothing is said of one."""
        data, source = self.data.get("tokenizer"), self.data.get("tokenizer_source")
        if data is None and source is None:
            return {}
        if data is not None and source is not None:
            self.report.refuse(
                self._at("tokenizer_source"), "and tokenizer are both set", "one of the two"
            )
        if data is None:
            found = self._read_token_source(self._at("tokenizer_source"), source)
            return {"tokenizer": {"source": found, "pad_to_multiple_of": 1}}
        path = self._at("tokenizer")
        if not isinstance(data, dict):
            self.report.refuse(path, f"cannot be {data!r:.40}", "{source: union, tokens: {...}}")
            return {}
        self.report.check_keys(path, data, ("source", "tokens", "pad_to_multiple_of"))
        multiple = data.get("pad_to_multiple_of")
        if multiple is not None and (type(multiple) is not int or multiple < 1):
            self.report.refuse(
                (*path, "pad_to_multiple_of"), f"cannot be {multiple!r:.40}", "a number"
            )
        made: dict[str, Any] = {
            "source": self._read_token_source((*path, "source"), data.get("source", "union"))
        }
        tokens = data.get("tokens") or {}
        if not isinstance(tokens, dict):
            self.report.refuse((*path, "tokens"), f"cannot be {tokens!r:.40}", "settings by token")
            tokens = {}
        listed = {
            token: self._read_token((*path, "tokens", token), value)
            for token, value in tokens.items()
        }
        if listed:
            made["tokens"] = listed
        return {"tokenizer": made | {"pad_to_multiple_of": multiple or 1}}

    def _read_token_source(self, path: Path, value: Any) -> Any:
        if value in ("union", "base"):
            return value
        return self._find_model(path, value)

    def _read_token(self, path: Path, data: Any) -> dict[str, Any]:
        if data is None:
            data = {}
        if not isinstance(data, dict):
            self.report.refuse(path, f"cannot be {data!r:.40}", "{source: MODEL, force: false}")
            return {}
        self.report.check_keys(path, data, ("source", "force"))
        made: dict[str, Any] = {"add": True}
        if data.get("source") is not None:
            made["source"] = self._read_row((*path, "source"), data["source"])
        if data.get("force"):
            made["force"] = True
        return made

    def _read_row(self, path: Path, value: Any) -> Any:
        kind = value.get("kind") if isinstance(value, dict) else None
        if not isinstance(value, dict) or (kind is None and "token" not in value):
            return self._find_model(path, value)
        if kind == "zero":
            return "zero"
        self.report.check_keys(path, value, ("kind", "model", "token", "token_id"))
        if kind not in (None, "model_token"):
            self.report.refuse((*path, "kind"), f"cannot be {kind!r:.40}", "zero or model_token")
        made = {"model": self._find_model((*path, "model"), value.get("model"))}
        row, token = value.get("token_id"), value.get("token")
        return made | ({"row": row} if row is not None else {"token": token})

    def _find_model(self, path: Path, value: Any) -> int | str:
        """Return the number of a model that a tokenizer's setting names, or base."""
        model = self.reader.read(path, value)
        if model is not None and model in self.models:
            return self.models.index(model)
        if model is not None and model == self.base:
            return "base"
        if model is not None:
            self.report.refuse(path, f"{value!r:.60} is none of the models", "one that is merged")
        return "base"

    def _at(self, key: str) -> Path:
        return (*self.path, key)
