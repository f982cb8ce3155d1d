"""Tokenizer union (``tokenizer_source`` of mergekit): merged vocabulary, sources of embedding rows.

A token's row is, for each model, the first that exists of: its own; the base's; that of the only
model with the token; the mean over the models with the token; zero. Padding rows are the model's
own, else the base's, else the mean of the model's other rows. Uses tokenizer.json and config.json
only; weights are read when rows are requested. Tokens are joined in ``vocabulary``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillroom.errors import CheckpointError, Problem, RecipeError
from stillroom.merge.interfaces import Array
from stillroom.merge.planning.vocabulary import (
    Vocabulary,
    drop_tokens_without_rows,
    extend_vocabulary,
    join_vocabularies,
    read_vocabulary,
)
from stillroom.merge.settings import TokenEmbeddingSettings, TokenizerSettings, TokenRowReference
from stillroom.registry.catalog import suggest

if TYPE_CHECKING:
    import numpy as np

__all__ = ["TokenPlan", "plan_tokenizer"]

Read = Callable[[int, "np.ndarray[Any, Any]"], Array]
"""Reads rows of a token table: source index (base first), and row indices, int64."""

_ZERO, _MEAN, _PAD = -1, -2, -3
_CHUNK = 4096
_LAYER = re.compile(r"\.\d+\.")

_TABLES = re.compile(
    r"(^|[._])(embed_tokens|lm_head|embed_out|embed_in|wte|word_embeddings?|tok_embeddings|"
    r"token_embeddings?|tokens_embed|output_embeddings?|input_embeddings?|vocab_projector|"
    r"shared|predictions\.decoder|predictions)\.(weight|bias)$"
)


@dataclass(frozen=True)
class TokenPlan:
    """The merged token tables: for every row and source, where it comes from.

    Attributes:
        vocabulary: Vocabulary of the result.
        sources: Vocabularies of the sources.
        has_base: Whether the first source is the base.
        definer: Index of the source whose tokenizer files are used.
        own_rows: Each source's own row of every result row, or -1, (sources, rows).
        fill: The source that fills in if there is none, or zero, mean, padding, (rows,).
        fill_row: Its row, (rows,).
        forced: Where set, the fill is used for every source, (rows,).
    """

    vocabulary: Vocabulary
    sources: tuple[Vocabulary, ...]
    has_base: bool
    definer: int
    own_rows: Array
    fill: Array
    fill_row: Array
    forced: Array

    @property
    def size(self) -> int:
        """Number of rows of a token table of the result, including padding."""
        return int(self.own_rows.shape[1])

    @property
    def is_new(self) -> bool:
        """Whether the tokenizer differs from all sources', so that its files are rewritten."""
        return self.vocabulary.data is not self.sources[self.definer].data

    @property
    def dropped(self) -> list[str]:
        """Tokens of the sources that the result lacks, since no model has a row for them."""
        known = self.vocabulary.ids.keys()
        rowless = (
            token
            for source in self.sources
            for token, row in source.ids.items()
            if row >= source.rows and token not in known
        )
        return list(dict.fromkeys(rowless))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the tokens and the origin of every row."""
        text = "\0".join(token or "" for token in self.vocabulary.tokens)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass"))
        for part in (self.own_rows, self.fill, self.fill_row, self.forced):
            digest.update(part.tobytes())
        return digest.hexdigest()

    def is_identity(self, source: int) -> bool:
        """Return whether a source's token tables are used unchanged."""
        import numpy as np

        own_rows = self.own_rows[source]
        return (
            self.size == self.sources[source].rows
            and not bool(self.forced.any())
            and bool((own_rows == np.arange(self.size, dtype=own_rows.dtype)).all())
        )

    def is_token_table(self, name: str, shape: Sequence[int], source: int) -> bool:
        """Return whether a source's tensor has one row per token.

        It must have as many rows as config.json's vocab_size, and either have the name of an
        embedding or head, or be outside the layers with no other config value of that size.

        Raises:
            CheckpointError: If name and number of rows contradict each other.
        """
        vocabulary = self.sources[source]
        if not 1 <= len(shape) <= 2 or _LAYER.search(name):
            return False
        is_named = _TABLES.search(name) is not None
        if shape[0] == vocabulary.rows:
            return is_named or (vocabulary.config_rows > 0 and not vocabulary.is_ambiguous)
        if is_named and name.endswith(("embed_tokens.weight", "lm_head.weight", "wte.weight")):
            raise CheckpointError(
                f"'{name}' of '{vocabulary.name}' has {shape[0]} rows, but its vocabulary "
                f"{vocabulary.rows}",
                code="merge.tokenizer-rows",
                where=name,
                expected="vocab_size of config.json equal to the embedding's number of rows",
                next="correct vocab_size in that model's config.json",
            )
        return False

    def rows(self, source: int, start: int, stop: int, read: Read) -> Array:
        """Return rows ``start`` to ``stop`` of a token table for one source.

        Args:
            source: Index of the source, base first.
            start: First row of the result.
            stop: Row after the last.
            read: Reads rows of the same table of any source: (rows,) int64 to (rows, ...) floats.

        Returns:
            A new array (stop - start, ...), in the type that ``read`` returns.
        """
        import numpy as np

        return self._gather(source, np.arange(start, stop), read)

    def report(self) -> dict[str, Any]:
        """Return the numbers of rows by origin for each source, as JSON values."""
        import numpy as np

        named = sum(token is not None for token in self.vocabulary.tokens)
        definer = self.sources[self.definer]
        return {
            "rows": self.size,
            "tokens": named,
            "padding": self.size - named,
            "new_tokens": len(self.vocabulary.ids) - len(definer.ids),
            "forced": int(np.count_nonzero(self.forced)),
            "sources": [self._report(number) for number in range(len(self.sources))],
        }

    def _report(self, number: int) -> dict[str, Any]:
        home, _ = self._homes(number, slice(None))
        is_base = self.has_base and number == 0
        counts = {
            "own": int((home == number).sum()),
            "from_base": 0 if is_base or not self.has_base else int((home == 0).sum()),
            "mean": int((home == _MEAN).sum()),
            "zero": int((home == _ZERO).sum()),
            "mean_padding": int((home == _PAD).sum()),
        }
        return {
            "name": self.sources[number].name,
            "role": "base" if is_base else f"models.{number - self.has_base}",
            **counts,
            "from_another": int(home.size) - sum(counts.values()),
            "left_out": len(self.sources[number].ids.keys() - self.vocabulary.ids.keys()),
        }

    def _homes(self, source: int, index: Any) -> tuple[Array, Array]:
        """Return source and row index (int64) of each of some rows."""
        import numpy as np

        own_rows = self.own_rows[source, index]
        is_own = (own_rows >= 0) & ~self.forced[index]
        home = np.where(is_own, np.int16(source), self.fill[index])
        return home, np.where(is_own, own_rows, self.fill_row[index]).astype(np.int64)

    def _gather(self, source: int, index: Array, read: Read) -> Array:
        import numpy as np

        home, rows = self._homes(source, index)
        if index.size and bool((home == source).all()):
            return read(source, rows)
        sample = read(source, np.zeros(1, np.int64))
        rows_out: Array = np.zeros((index.size, *sample.shape[1:]), sample.dtype)
        for owner in range(len(self.sources)):
            here = np.flatnonzero(home == owner)
            if here.size:
                rows_out[here] = read(owner, rows[here])
        means = np.flatnonzero(home == _MEAN)
        if means.size:
            rows_out[means] = self._mean_of_owners(index[means], read)
        pads = np.flatnonzero(home == _PAD)
        if pads.size:
            rows_out[pads] = self._mean_of_rows(source, read)
        return rows_out

    def _mean_of_owners(self, index: Array, read: Read) -> Array:
        import numpy as np

        total: Any = None
        own_rows = self.own_rows[:, index].astype(np.int64)
        for owner, rows in enumerate(own_rows):
            having = np.flatnonzero(rows >= 0)
            if having.size:
                values = read(owner, rows[having])
                if total is None:
                    total = np.zeros((index.size, *values.shape[1:]), values.dtype)
                total[having] += values
        counts = (own_rows >= 0).sum(0).astype(total.dtype)
        mean: Array = total / counts.reshape(-1, *[1] * (total.ndim - 1))
        return mean

    def _mean_of_rows(self, source: int, read: Read) -> Any:
        """Return the mean over rows with a token, in chunks of a fixed size and order."""
        import numpy as np

        index = np.flatnonzero([token is not None for token in self.vocabulary.tokens])
        total: Any = 0.0
        for start in range(0, index.size, _CHUNK):
            part = self._gather(source, index[start : start + _CHUNK], read)
            total = total + part.sum(0, dtype=np.float64)
        return total / max(index.size, 1)


def plan_tokenizer(
    settings: TokenizerSettings, base_folder: Path | None, parent_folders: Sequence[Path]
) -> TokenPlan:
    """Return the plan of a merge's tokenizer, reading tokenizer.json and config.json only.

    Args:
        settings: Tokenizer settings of the recipe.
        base_folder: Folder of the base; without one, ``base`` means the first model.
        parent_folders: Folders of the models.

    Raises:
        CheckpointError: If a tokenizer is missing, broken, or has no union with the others.
        RecipeError: If the settings name a missing model or token.
    """
    folders = [*([base_folder] if base_folder else []), *parent_folders]
    read = {folder: read_vocabulary(folder) for folder in dict.fromkeys(folders)}
    sources = tuple(read[folder] for folder in folders)
    has_base = base_folder is not None
    definer = settings.source + has_base if isinstance(settings.source, int) else 0
    if definer >= len(sources):
        raise RecipeError(
            [_missing_model(definer - has_base, len(parent_folders), "tokenizer.source")]
        )
    vocabulary = sources[definer]
    if settings.source == "union":
        # Exclude tokens that no model has an embedding row for.
        vocabulary = drop_tokens_without_rows(vocabulary)
        known = vocabulary.ids.keys()
        having = (drop_tokens_without_rows(candidate) for candidate in read.values())
        larger = [candidate for candidate in having if candidate.ids.keys() - known]
        vocabulary = join_vocabularies(vocabulary, larger) if larger else vocabulary
    new = [token for token, token_settings in settings.tokens.items() if token_settings.add]
    vocabulary = extend_vocabulary(vocabulary, [t for t in new if t not in vocabulary.ids])
    own_rows = _map_own_rows(
        vocabulary, sources, _count_rows(settings.pad_to_multiple_of, vocabulary)
    )
    fill, fill_row, forced = _choose_fill(
        own_rows, len(vocabulary.tokens), vocabulary, has_base=has_base
    )
    plan = TokenPlan(vocabulary, sources, has_base, definer, own_rows, fill, fill_row, forced)
    _apply_tokens(settings.tokens, plan)
    for part in (own_rows, fill, fill_row, forced):
        part.flags.writeable = False
    return plan


def _count_rows(multiple: int | None, vocabulary: Vocabulary) -> int:
    count = len(vocabulary.tokens)
    if multiple is None:
        return max(count, vocabulary.rows)
    return -(-count // multiple) * multiple


def _map_own_rows(vocabulary: Vocabulary, sources: Sequence[Vocabulary], size: int) -> Array:
    """Return each source's own row of every result row, (sources, rows) int32, or -1."""
    import numpy as np

    own_rows: Array = np.full((len(sources), size), -1, np.int32)
    count = len(vocabulary.tokens)
    pads = np.array([token is None for token in vocabulary.tokens] + [True] * (size - count), bool)
    for number, source in enumerate(sources):
        if source.spelling == vocabulary.spelling:
            find = source.ids
            keys: Sequence[Any] = vocabulary.tokens
        else:
            find = source.spelled  # type: ignore[assignment]  # keys are bytes on both sides
            keys = [None if t is None else vocabulary.spell(t) for t in vocabulary.tokens]
        own_rows[number, :count] = [-1 if key is None else find.get(key, -1) for key in keys]
        # Rows without a token in source and result are padding in both.
        free = np.zeros(size, bool)
        free[: source.rows] = True
        named_rows = [row for row, token in enumerate(source.tokens[:size]) if token is not None]
        free[named_rows] = False
        free &= pads
        own_rows[number, free] = np.flatnonzero(free)
        own_rows[number][own_rows[number] >= source.rows] = -1
    return own_rows


def _choose_fill(
    own_rows: Array, count: int, vocabulary: Vocabulary, *, has_base: bool
) -> tuple[Array, Array, Array]:
    """Return the source and row that fill in for missing rows, and ``forced``, all False."""
    import numpy as np

    has = own_rows >= 0
    owners = has.sum(0)
    fill = np.select([owners == 0, owners == 1], [_ZERO, has.argmax(0)], _MEAN).astype(np.int16)
    named = np.zeros(own_rows.shape[1], bool)
    named[:count] = [token is not None for token in vocabulary.tokens]
    fill[~named] = _PAD
    if has_base:
        fill[has[0]] = 0
    rows = np.take_along_axis(own_rows, np.maximum(fill, 0)[None].astype(np.int64), 0)[0]
    return fill, np.where(fill >= 0, rows, 0).astype(np.int32), np.zeros(own_rows.shape[1], bool)


def _apply_tokens(tokens: Mapping[str, TokenEmbeddingSettings], plan: TokenPlan) -> None:
    problems: list[Problem] = []
    for token, settings in tokens.items():
        where = f"tokenizer.tokens.{token}"
        row = plan.vocabulary.ids.get(token)
        if row is None:
            problems.append(_missing_token(token, plan.vocabulary, where, "the merged vocabulary"))
            continue
        if settings.source is None:
            continue
        origin = _find_source(token, settings.source, plan, where)
        if isinstance(origin, Problem):
            problems.append(origin)
            continue
        plan.fill[row], plan.fill_row[row] = origin
        plan.forced[row] = settings.force
    if problems:
        raise RecipeError(problems)


def _find_source(
    token: str,
    source: int | Literal["base", "zero"] | TokenRowReference,
    plan: TokenPlan,
    where: str,
) -> tuple[int, int] | Problem:
    """Return the source and row that fill in, or the problem."""
    if source == "zero":
        return _ZERO, 0
    if isinstance(source, TokenRowReference):
        model, name, row = source.model, source.token or token, source.row
    else:
        model, name, row = source, token, None
    number = 0 if model == "base" else int(model) + plan.has_base
    if not (0 if model == "base" else plan.has_base) <= number < len(plan.sources):
        return _missing_model(model, len(plan.sources) - plan.has_base, where)
    vocabulary = plan.sources[number]
    if row is None:
        row = vocabulary.ids.get(name)
        if row is None:
            return _missing_token(name, vocabulary, where, f"'{vocabulary.name}'")
    if row >= vocabulary.rows:
        return Problem(
            f"'{vocabulary.name}' has no row {row}",
            "merge.tokenizer-token",
            where,
            f"a row from 0 to {vocabulary.rows - 1}",
            "name another row, or another model",
        )
    return number, row


def _missing_token(token: str, vocabulary: Vocabulary, where: str, holder: str) -> Problem:
    return Problem(
        f"the token {token!r} is not in {holder}",
        "merge.tokenizer-token",
        where,
        f"one of its {len(vocabulary.ids)} tokens, spelled as in tokenizer.json",
        suggest(token, vocabulary.ids) or "use an existing token, or set 'add: true' for a new one",
    )


def _missing_model(number: object, count: int, where: str) -> Problem:
    return Problem(
        f"model {number} does not exist",
        "merge.tokenizer-source",
        where,
        f"an index into 'models', from 0 to {count - 1}",
        "count from 0",
    )
