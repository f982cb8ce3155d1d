"""Vocabularies read from tokenizer.json, their union, and the written tokenizer files.

Handles the four models of the tokenizers library (BPE, Unigram, WordPiece, WordLevel) as JSON, and
how each spells bytes and spaces. Reads no weights (embedding rows: ``token_plan``); encoding and
decoding use the library.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.checkpoints.config_file import copy_file, open_config, read_config
from stillroom.errors import CheckpointError
from stillroom.jobs import atomic_write
from stillroom.models.tokenization.growth import check_growth

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from stillroom.merge.planning.token_plan import TokenPlan

__all__ = [
    "Vocabulary",
    "adapt_config",
    "drop_tokens_without_rows",
    "extend_vocabulary",
    "join_vocabularies",
    "read_vocabulary",
    "write_tokenizer",
]

_MOST_TOKENS = 10_000_000
_BYTE_FORM = 6  # as in <0x0A>
_NEW_TOKEN_SCORE = -1e4
_CONFIGS = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of one folder.

    Attributes:
        folder: The checkpoint's folder.
        data: Contents of tokenizer.json.
        config: Contents of config.json.
        ids: Row of each token; if an added token replaced another's row, both are listed.
        tokens: Tokens by row, None for rows without a token.
        rows: Number of embedding rows by config.json; may be more or fewer than tokens.
    """

    folder: Path
    data: Mapping[str, Any]
    config: Mapping[str, Any]
    ids: Mapping[str, int]
    tokens: tuple[str | None, ...]
    rows: int

    @property
    def name(self) -> str:
        """Display name."""
        return self.folder.name or str(self.folder)

    @property
    def kind(self) -> str:
        """Model of the tokenizers library: BPE, Unigram, WordPiece or WordLevel."""
        return str(self.data["model"]["type"])

    @cached_property
    def spelling(self) -> str:
        """How tokens spell text: ``bytes``, ``spaces`` (with a lower bar) or ``letters``."""
        parts = json.dumps([self.data.get("pre_tokenizer"), self.data.get("decoder")])
        if '"ByteLevel"' in parts:
            return "bytes"
        normalizer = json.dumps(self.data.get("normalizer"))
        return "spaces" if "▁" in normalizer + parts or '"Metaspace"' in parts else "letters"

    @property
    def added(self) -> list[dict[str, Any]]:
        """Added tokens, as listed in tokenizer.json."""
        return list(self.data.get("added_tokens") or ())

    @property
    def config_rows(self) -> int:
        """``vocab_size`` of config.json; 0 if it is missing."""
        return _config_rows(self.config)

    @cached_property
    def is_ambiguous(self) -> bool:
        """Whether another value of config.json equals ``vocab_size``."""
        return sum(_count_values(self.config, self.rows)) > 1

    def spell(self, token: str) -> bytes:
        """Return the bytes of text that a token represents, independent of its spelling."""
        if token in self._literal or self.spelling == "letters":
            return token.encode("utf-8", "surrogatepass")
        if self.spelling == "bytes":
            letters = _byte_letters()
            if all(letter in letters for letter in token):
                return bytes(letters[letter] for letter in token)
        elif len(token) == _BYTE_FORM and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                pass
        return token.replace("▁", " ").encode("utf-8", "surrogatepass")

    @cached_property
    def spelled(self) -> Mapping[bytes, int]:
        """Rows by the bytes of their tokens; the first of several."""
        rows_by_bytes: dict[bytes, int] = {}
        for token, row in sorted(self.ids.items(), key=lambda item: item[1]):
            rows_by_bytes.setdefault(self.spell(token), row)
        return rows_by_bytes

    @cached_property
    def _literal(self) -> frozenset[str]:
        return frozenset(str(added["content"]) for added in self.added)


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read the vocabulary of a checkpoint's folder.

    Raises:
        CheckpointError: If tokenizer.json is missing or invalid.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"'{folder.name}' has no tokenizer.json, which assigns tokens to embedding rows",
            code="merge.tokenizer-missing",
            where=str(folder),
            expected="a fast tokenizer, as written by the tokenizers library",
            next="load the tokenizer with transformers and save_pretrained it into the folder, "
            "or omit 'tokenizer' in the recipe",
        )
    try:
        data = json.loads(path.read_bytes())
        ids = _read_ids(data)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"tokenizer.json cannot be read: {error!s:.100}",
            code="checkpoint.tokenizer",
            where=str(path),
            expected="a tokenizer as written by the tokenizers library",
            next="download the file again",
        ) from error
    tokens, config = _by_row(ids), _read_config(folder / "config.json")
    return Vocabulary(folder, data, config, ids, tokens, _config_rows(config) or len(tokens))


def join_vocabularies(first: Vocabulary, more: Sequence[Vocabulary]) -> Vocabulary:
    """Return the union: the first vocabulary's tokens and rules, then new tokens of the others.

    New tokens are appended in the order of the others and of their rows; BPE merges of the others
    follow the first one's; the first definition of an added token counts. Rows of the first
    vocabulary do not change.

    Raises:
        CheckpointError: If the tokenizers are of different kinds.
    """
    for vocabulary in more:
        _check_alike(first, vocabulary)
    joined = copy.deepcopy(dict(first.data))
    added = {str(token["content"]): dict(token) for token in first.added}
    ids = dict(first.ids)
    following = itertools.count(len(first.tokens))
    for vocabulary in more:
        for new_token in vocabulary.tokens:
            if new_token is not None and new_token not in ids:
                ids[new_token] = next(following)
        for token in vocabulary.added:
            content = str(token["content"])
            if content not in ids:  # another added token replaced its row
                ids[content] = next(following)
            added.setdefault(content, {**token, "id": ids[content]})
    joined["added_tokens"] = sorted(added.values(), key=lambda token: int(token["id"]))
    model = joined["model"]
    if first.kind == "Unigram":
        model["vocab"] = _join_pieces(first, more, ids)
    else:
        # Added tokens are listed here, too, so that ids have no gaps.
        model["vocab"] = dict(sorted(ids.items(), key=lambda item: item[1]))
    if first.kind == "BPE":
        model["merges"] = _join_merges([first, *more])
    tokens = _by_row(ids)
    rows = max(first.rows, len(tokens))
    return Vocabulary(first.folder, joined, first.config, ids, tokens, rows)


def drop_tokens_without_rows(vocabulary: Vocabulary) -> Vocabulary:
    """Remove the tokens whose ids exceed the rows of the weights.

    The model has no embedding for them. Returns the vocabulary itself if there are none.
    """
    ids = {token: row for token, row in vocabulary.ids.items() if row < vocabulary.rows}
    if len(ids) == len(vocabulary.ids):
        return vocabulary
    data = copy.deepcopy(dict(vocabulary.data))
    data["added_tokens"] = [entry for entry in vocabulary.added if str(entry["content"]) in ids]
    model = data["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = model["vocab"][: vocabulary.rows]
    else:
        model["vocab"] = {token: row for token, row in model["vocab"].items() if token in ids}
    if model.get("merges"):
        pairs = [
            entry.split(" ", 1) if isinstance(entry, str) else entry for entry in model["merges"]
        ]
        model["merges"] = [list(pair) for pair in pairs if {*pair, "".join(pair)} <= ids.keys()]
    return replace(vocabulary, data=data, ids=ids, tokens=_by_row(ids))


def extend_vocabulary(vocabulary: Vocabulary, tokens: Sequence[str]) -> Vocabulary:
    """Append new added tokens, at which texts are split."""
    if not tokens:
        return vocabulary
    first = len(vocabulary.tokens)
    ids = {**vocabulary.ids, **{token: first + offset for offset, token in enumerate(tokens)}}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special", "normalized"), False)
    added = [{"id": ids[token], "content": token, **flags} for token in tokens]
    data = {**vocabulary.data, "added_tokens": [*vocabulary.added, *added]}
    all_tokens = _by_row(ids)
    rows = max(vocabulary.rows, len(all_tokens))
    return Vocabulary(vocabulary.folder, data, vocabulary.config, ids, all_tokens, rows)


def _by_row(ids: Mapping[str, int]) -> tuple[str | None, ...]:
    tokens: list[str | None] = [None] * (max(ids.values(), default=-1) + 1)
    for token, row in ids.items():
        tokens[row] = token
    return tuple(tokens)


def _check_alike(first: Vocabulary, second: Vocabulary) -> None:
    if (first.kind, first.spelling) == (second.kind, second.spelling):
        return
    raise CheckpointError(
        f"the tokenizers of '{first.name}' ({first.kind}, spells {first.spelling}) and "
        f"'{second.name}' ({second.kind}, spells {second.spelling}) have no union",
        code="merge.tokenizer-kind",
        where="tokenizer.source",
        expected="tokenizers of one kind",
        next="set tokenizer.source to 'base' or to the number of a model, or transplant one "
        "model's embeddings to the other's tokenizer first",
    )


def _join_pieces(
    first: Vocabulary, more: Sequence[Vocabulary], ids: Mapping[str, int]
) -> list[list[Any]]:
    """Return pieces by row: the ids of a Unigram model are list positions."""
    scores: dict[str, float] = {}
    for vocabulary in (first, *more):
        for piece, score in vocabulary.data["model"]["vocab"]:
            scores.setdefault(piece, score)
    size = max(ids.values(), default=-1) + 1
    pieces: list[list[Any]] = [[f"<gap_{row}>", _NEW_TOKEN_SCORE] for row in range(size)]
    for token, row in ids.items():
        pieces[row] = [token, scores.get(token, _NEW_TOKEN_SCORE)]
    return pieces


def _join_merges(vocabularies: Iterable[Vocabulary]) -> list[list[str]]:
    pairs: dict[tuple[str, ...], None] = {}
    for vocabulary in vocabularies:
        for merge in vocabulary.data["model"].get("merges") or ():
            pair = merge.split(" ", 1) if isinstance(merge, str) else merge
            pairs.setdefault(tuple(pair))
    return [list(pair) for pair in pairs]


def _read_ids(data: Any) -> dict[str, int]:
    model = data["model"]
    vocab = model["vocab"]
    if "type" not in model:  # files of old versions: infer the type from the keys
        model["type"] = "BPE" if "merges" in model else "WordPiece"
    if isinstance(vocab, list):
        pairs: list[tuple[Any, Any]] = [(item[0], row) for row, item in enumerate(vocab)]
    else:
        pairs = list(vocab.items())
    pairs += [(token["content"], token["id"]) for token in data.get("added_tokens") or ()]
    for token, row in pairs:
        if not isinstance(token, str) or type(row) is not int or not 0 <= row < _MOST_TOKENS:
            raise ValueError(f"the token {token!r:.60} has the id {row!r:.20}")
    return dict(pairs)


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        config: Mapping[str, Any] = read_config(path)
    except (OSError, ValueError):
        return {}
    return config


def _config_rows(config: Mapping[str, Any]) -> int:
    """Return ``vocab_size``, also from the language model's part of a config."""
    for part in (config, *(config.get(name) for name in _CONFIGS)):
        size = part.get("vocab_size") if isinstance(part, Mapping) else None
        if type(size) is int and 0 < size <= _MOST_TOKENS:
            return size
    return 0


def _count_values(config: Any, number: int) -> Iterator[int]:
    for value in config.values() if isinstance(config, Mapping) else ():
        yield int(type(value) is int and value == number)
        yield from _count_values(value, number)


def _byte_letters() -> Mapping[str, int]:
    """Return the byte of each letter of byte-level BPE."""
    if not _LETTERS:
        plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        moved = [byte for byte in range(256) if byte not in set(plain)]
        _LETTERS.update({chr(byte): byte for byte in plain})
        _LETTERS.update({chr(256 + offset): byte for offset, byte in enumerate(moved)})
    return _LETTERS


_LETTERS: dict[str, int] = {}

_COPIED = (
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)

_COUNTED = ("merges.txt", "tokenizer.model", "vocab.json", "vocab.txt", "added_tokens.json")
_FLAGS = ("lstrip", "normalized", "rstrip", "single_word", "special")

_TEXTS = (
    "The still house kept 27 jars; what was in them, nobody knows.",
    "  def add(a, b):\n\treturn a + b  # 3.14\n",
    "Grüße, señor: 你好, мир, שלום, नमस्ते!",
    "naïve café 😀 e\u0301",
)


def write_tokenizer(plan: TokenPlan, folder: Path) -> list[str]:
    """Write the files of a plan's tokenizer; return their names, sorted.

    A tokenizer equal to a source's is copied file by file. For a new one, the older formats
    (vocab.json, merges.txt, tokenizer.model) are not written, and existing ones are removed,
    because their ids would differ.

    Raises:
        CheckpointError: If the written tokenizer changes ids or texts, or multiplies a text.
    """
    origin = plan.sources[plan.definer].folder
    names = _COPIED if plan.is_new else ("tokenizer.json", *_COPIED, *_COUNTED)
    for name in {"tokenizer.json", *_COPIED, *_COUNTED}:
        (folder / name).unlink(missing_ok=True)  # from another tokenizer
    written = [name for name in names if copy_file(name, origin, folder)]
    if plan.is_new:
        with atomic_write(folder / "tokenizer.json") as file:
            file.write(json.dumps(plan.vocabulary.data, ensure_ascii=False, indent=2) + "\n")
        written.append("tokenizer.json")
        _extend_config(plan, folder / "tokenizer_config.json")
    _check_written(plan, folder / "tokenizer.json")
    return sorted(written)


def adapt_config(plan: TokenPlan, config: Mapping[str, Any], donor: int = 0) -> dict[str, Any]:
    """Return config.json with the result's vocab_size and ids of its special tokens.

    An id is taken from the vocabulary's model if its config has it, else translated by token.
    """
    definer = plan.sources[plan.definer].config
    adapted: dict[str, Any] = {}
    for key, value in config.items():
        if key == "vocab_size":
            adapted[key] = plan.size
        elif isinstance(value, Mapping) and "vocab_size" in value:
            adapted[key] = adapt_config(plan, value, donor)
        elif key.endswith(("_token_id", "_token_ids", "_token_index")) and donor != plan.definer:
            adapted[key] = definer[key] if key in definer else _translate(plan, value, donor)
        else:
            adapted[key] = value
    return adapted


def _translate(plan: TokenPlan, value: Any, donor: int) -> Any:
    """Return the result's row of a donor's token; None if it has none."""
    if isinstance(value, list):
        return [row for row in (_translate(plan, part, donor) for part in value) if row is not None]
    tokens = plan.sources[donor].tokens
    if type(value) is not int or not 0 <= value < len(tokens):
        return None
    return plan.vocabulary.ids.get(tokens[value] or "")


def _extend_config(plan: TokenPlan, path: Path) -> None:
    """List the new added tokens in tokenizer_config.json, if it lists any, and remove others.

    A token that is listed there but not in tokenizer.json would be added when it is loaded.
    """
    if not path.is_file():
        return
    config, known = open_config(path), plan.vocabulary.ids
    for key in ("additional_special_tokens", "extra_special_tokens"):
        if isinstance(config.get(key), list):
            config[key] = [
                entry for entry in config[key] if not isinstance(entry, str) or entry in known
            ]
    listed = config.get("added_tokens_decoder")
    if isinstance(listed, dict):
        removed = [
            row for row, entry in listed.items() if known.get(entry.get("content")) != int(row)
        ]
        for row in removed:
            del listed[row]
        for token in plan.vocabulary.added:
            flags = {flag: bool(token.get(flag)) for flag in _FLAGS}
            listed.setdefault(str(token["id"]), {"content": token["content"], **flags})
    with atomic_write(path) as file:
        file.write(json.dumps(config, ensure_ascii=False, indent=2) + "\n")


def _check_written(plan: TokenPlan, path: Path) -> None:
    from tokenizers import Tokenizer

    for folder in (path.parent, *(source.folder for source in plan.sources)):
        check_growth(folder / "tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise _mismatch_error(path, f"cannot be read back: {error!s:.120}") from error
    numbered = tokenizer.get_vocab(with_added_tokens=True)
    for token, row in plan.vocabulary.ids.items():
        if numbered.get(token) != row and plan.vocabulary.tokens[row] == token:
            raise _mismatch_error(
                path, f"gives {token!r} the id {numbered.get(token)} instead of {row}"
            )
    if not plan.is_new:
        return
    before = [
        Tokenizer.from_file(str(folder / "tokenizer.json"))
        for folder in dict.fromkeys(source.folder for source in plan.sources)
    ]
    for text in _TEXTS:
        spelled = _spell(tokenizer, text)
        if spelled != text and all(
            _spell(source_tokenizer, text) != spelled for source_tokenizer in before
        ):
            raise _mismatch_error(path, f"spells {text!r} as {spelled!r}")


def _spell(tokenizer: Tokenizer, text: str) -> str:
    encoded = tokenizer.encode(text, add_special_tokens=False)
    return str(tokenizer.decode(encoded.ids, skip_special_tokens=False))


def _mismatch_error(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"the merged tokenizer {problem}",
        code="merge.tokenizer-round-trip",
        where=str(path),
        expected="the same ids and texts as those of the models",
        next="set tokenizer.source to 'base' or to the index of a model",
    )
