"""Log-probabilities of axolotl: JSON lines of its knowledge distillation plugin.

A row has ``input_ids`` and, per position, ``target_token_ids``, ``target_logprobs`` and
``target_mask``; or ``logprobs`` as lists of ``{"token": "token_id:N", "logprob": X}``, the format
of vLLM. Row t predicts token t, because axolotl shifts in training, so a target of position t
becomes position t - 1 here. If there are fewer rows than tokens, they belong to the last tokens.
Later versions of axolotl write ``target_*`` already shifted: row t predicts token t + 1, and the
last row is padding, which is what tells the two apart. As a masked row may look so in the earlier
layout, too, the whole file decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stillroom.distill.logit_cache.sparse_logprobs import SparseLogprobs, malformed_row_error
from stillroom.errors import DataError
from stillroom.provenance.digests import load_json

__all__ = ["read_axolotl"]

_PADDING = -1e8  # axolotl fills missing entries with -1e9, of token 0
_Target = list[tuple[int, float]]
"""Tokens of one position with their log-probabilities, the likeliest first."""


def read_axolotl(path: Path) -> tuple[Iterator[SparseLogprobs], int, int]:
    """Read the records of a JSON lines file; k is that of the shortest position, then the longest.

    The file is read three times, by rows.
    """
    shift = int(_is_shifted(path))
    sizes = {
        len(target)
        for number, row in enumerate(_read_lines(path))
        for target in _parse_record(row, f"{path} row {number}", shift)[2]
    }
    if not sizes:
        raise malformed_row_error(
            str(path), "file", "no row", "JSON lines with input_ids and logprobs"
        )
    k = min(sizes)
    rows = (
        _cut_targets(*_parse_record(row, f"{path} row {number}", shift), k)
        for number, row in enumerate(_read_lines(path))
    )
    return rows, k, max(sizes)


def _read_lines(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise DataError(
            f"{path} is not a file",
            code="data.missing",
            expected="a JSON lines file written by axolotl",
            next="check the path",
        )
    with path.open(encoding="utf-8", errors="replace") as file:  # invalid JSON is reported by row
        for number, line in enumerate(file):
            if not line.strip():
                continue
            try:
                yield load_json(line)
            except ValueError as error:
                raise malformed_row_error(
                    f"{path} row {number}", "line", "invalid JSON", "one object"
                ) from error


def _is_shifted(path: Path) -> bool:
    """Return whether row t of ``target_*`` predicts token t + 1: the last row is always padding."""
    is_padded = False
    for row in _read_lines(path):
        try:
            values = row["target_logprobs"]
            if len(values) == len(row["input_ids"]) and values[-1]:
                if not all(value <= _PADDING for value in values[-1]):
                    return False
                is_padded = True
        except (LookupError, TypeError):
            continue  # the row has no targets, or is refused when it is read
    return is_padded


def _cut_targets(
    ids: npt.NDArray[np.int64], positions: npt.NDArray[np.int64], targets: list[_Target], k: int
) -> SparseLogprobs:
    pairs = np.asarray([target[:k] for target in targets], dtype=np.float64)
    return SparseLogprobs(ids, positions, pairs[..., 0].astype(np.int64), pairs[..., 1])


def _parse_record(
    row: Any, where: str, shift: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[_Target]]:
    """Return the token ids of a row, its counted positions, and their targets."""
    ids = row.get("input_ids") if isinstance(row, dict) else None
    if not isinstance(ids, list) or not all(isinstance(token, int) for token in ids):
        raise malformed_row_error(
            where, "input_ids", "not a list of integers", "the token ids that the targets belong to"
        )
    try:
        return _parse_row(row, where, shift)
    except DataError:
        raise
    except (LookupError, OverflowError, TypeError, ValueError) as error:
        expected = "lists of integers, numbers and marks, one for each position"
        raise malformed_row_error(where, "target", f"{error!s:.120}", expected) from error


def _parse_row(
    row: dict[str, Any], where: str, shift: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[_Target]]:
    ids = np.asarray(row["input_ids"], dtype=np.int64)
    tokens, logprobs, mask = _parse_targets(row, where)
    # axolotl pads on the left: the last target is the last token's
    skipped = len(ids) - len(tokens)
    if skipped < 0:
        raise malformed_row_error(
            where, "target_logprobs", f"{len(tokens)} rows", f"at most {len(ids)}"
        )
    if not skipped and "target_token_ids" in row:
        skipped = shift
    indices = [
        index
        for index in range(len(tokens))
        if mask[index] and 0 < index + skipped < len(ids) and tokens[index]
    ]
    if not indices:
        raise malformed_row_error(where, "target_mask", "no counted position", "at least one")
    targets = [
        _parse_position(tokens[index], logprobs[index], f"{where} position {index}")
        for index in indices
    ]
    return ids, np.asarray(indices, dtype=np.int64) + skipped - 1, targets


def _parse_targets(row: dict[str, Any], where: str) -> tuple[list[Any], list[Any], list[bool]]:
    """Return tokens and log-probabilities per position, and which positions count."""
    if "target_token_ids" in row:
        tokens, logprobs = row["target_token_ids"], row.get("target_logprobs")
        if not isinstance(logprobs, list) or len(logprobs) != len(tokens):
            raise malformed_row_error(
                where, "target_logprobs", "another length", f"{len(tokens)} rows"
            )
        mask = row.get("target_mask") or [[1]] * len(tokens)
        counts = [bool(any(entry) if isinstance(entry, list) else entry) for entry in mask]
        return tokens, logprobs, counts
    entries = row.get("logprobs")
    if not isinstance(entries, list):
        raise malformed_row_error(
            where, "target_token_ids", "missing", "target_token_ids, or logprobs"
        )
    try:
        tokens = [[int(str(e["token"]).split(":")[1]) for e in entry or ()] for entry in entries]
        logprobs = [[float(e["logprob"]) for e in entry or ()] for entry in entries]
    except (LookupError, ValueError, TypeError) as error:
        expected = 'entries {"token": "token_id:N", "logprob": X}'
        raise malformed_row_error(where, "logprobs", "other entries", expected) from error
    return tokens, logprobs, [bool(entry) for entry in tokens]


def _parse_position(tokens: Sequence[int], logprobs: Sequence[float], where: str) -> _Target:
    """Return the entries of a position without padding, by descending probability."""
    pairs = zip(map(int, tokens), map(float, logprobs), strict=True)
    named = dict(pair for pair in pairs if not pair[1] <= _PADDING)  # NaN stays
    if not named:
        raise malformed_row_error(
            where, "target_logprobs", "no number", "at least one log-probability"
        )
    return sorted(named.items(), key=lambda pair: -pair[1])
