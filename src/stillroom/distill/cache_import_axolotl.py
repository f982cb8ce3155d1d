"""axolotl's log-probabilities, read for a teacher cache.

JSON lines of its knowledge distillation plugin: ``input_ids`` and, a position each,
``target_token_ids``, ``target_logprobs`` and ``target_mask``; or ``logprobs`` as lists of
``{"token": "token_id:N", "logprob": X}``, as vLLM gave them. Row t predicts token t: axolotl
shifts when it trains, so that a target of position t belongs to our position t - 1. Fewer rows than
tokens belong to the last tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.distill.cache_import_rows import Sparse, odd_row
from stillroom.errors import DataError

__all__ = ["read_axolotl"]

_PADDING = -1e8  # axolotl fills places without a token with -1e9


def read_axolotl(path: Path) -> tuple[Iterator[Sparse], int]:
    """Return the records of a JSON lines file, and their k: that of the first position.

    Raises:
        DataError: If the file holds no row; later, if a row is not as documented.
    """
    first = next(_lines(path), None)
    if first is None:
        raise odd_row(str(path), "file", "no row", "JSON lines with input_ids and logprobs")
    k = _record_of(first, 0, f"{path} row 0").tokens.shape[1]
    rows = (_record_of(row, k, f"{path} row {at}") for at, row in enumerate(_lines(path)))
    return rows, k


def _lines(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise DataError(
            f"{path} is not a file",
            code="data.missing",
            expected="the JSON lines that axolotl wrote",
            next="check the path",
        )
    with path.open(encoding="utf-8", errors="replace") as file:  # no JSON is told by its row
        for number, line in enumerate(file):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except ValueError as error:
                raise odd_row(f"{path} row {number}", "line", "no JSON", "one object") from error


def _record_of(row: Any, k: int, where: str) -> Sparse:
    if not isinstance(row, dict) or not isinstance(row.get("input_ids"), list):
        raise odd_row(where, "input_ids", "no list", "the token ids that the targets belong to")
    ids = np.asarray(row["input_ids"], dtype=np.int64)
    tokens, logprobs, mask = _targets_of(row, where)
    skipped = len(ids) - len(
        tokens
    )  # axolotl pads on the left: the last target is the last token's
    if skipped < 0:
        raise odd_row(where, "target_logprobs", f"{len(tokens)} rows", f"at most {len(ids)}")
    kept = [at for at in range(len(tokens)) if mask[at] and at + skipped > 0 and tokens[at]]
    width = k or max((len(tokens[at]) for at in kept), default=0)
    if not kept or not width:
        raise odd_row(where, "target_mask", "no position that counts", "at least one")
    filled = [_row(tokens[at], logprobs[at], width, f"{where} position {at}") for at in kept]
    return Sparse(
        ids,
        np.asarray(kept, dtype=np.int64) + skipped - 1,
        np.asarray([one for one, _ in filled], dtype=np.int64),
        np.asarray([one for _, one in filled], dtype=np.float64),
    )


def _targets_of(row: dict[str, Any], where: str) -> tuple[list[Any], list[Any], list[bool]]:
    """Return tokens and log-probabilities a position, and which positions count."""
    if "target_token_ids" in row:
        tokens, logprobs = row["target_token_ids"], row.get("target_logprobs")
        if not isinstance(logprobs, list) or len(logprobs) != len(tokens):
            raise odd_row(where, "target_logprobs", "another length", f"{len(tokens)} rows")
        mask = row.get("target_mask") or [[1]] * len(tokens)
        counts = [bool(any(one) if isinstance(one, list) else one) for one in mask]
        return tokens, logprobs, counts
    entries = row.get("logprobs")
    if not isinstance(entries, list):
        raise odd_row(where, "target_token_ids", "missing", "target_token_ids, or logprobs")
    try:
        tokens = [[int(str(e["token"]).split(":")[1]) for e in one or ()] for one in entries]
        logprobs = [[float(e["logprob"]) for e in one or ()] for one in entries]
    except (KeyError, IndexError, ValueError, TypeError) as error:
        expected = 'entries {"token": "token_id:N", "logprob": X}'
        raise odd_row(where, "logprobs", "other entries", expected) from error
    return tokens, logprobs, [bool(one) for one in tokens]


def _row(
    tokens: Sequence[int], logprobs: Sequence[float], k: int, where: str
) -> tuple[list[int], list[float]]:
    """Return the k likeliest by falling probability; places without a token hold -inf."""
    named = dict(zip(map(int, tokens), map(float, logprobs), strict=True))
    held = [(token, value) for token, value in named.items() if not value <= _PADDING]  # NaN stays
    pairs = sorted(held, key=lambda pair: -pair[1])[:k]
    if not pairs:
        raise odd_row(where, "target_logprobs", "no number", "at least one log-probability")
    used = {token for token, _ in pairs}
    spare = (token for token in range(2 * k + 1) if token not in used)
    pairs += [(next(spare), -math.inf) for _ in range(k - len(pairs))]
    return [token for token, _ in pairs], [value for _, value in pairs]
