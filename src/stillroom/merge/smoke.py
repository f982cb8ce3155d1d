"""Smoke: does what a merge wrote work at all, and is it far worse than what it was made of?

Every number finite; it loads in transformers; it gives a token; and, with records, its loss stands
beside its parents'. A merge far above every parent is said, not refused: somebody may have wanted
it. Says nothing of quality beyond that.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.header import FLOATS
from stillroom.errors import CheckpointError, DataError
from stillroom.merge.search_recipe import SmokeSettings

if TYPE_CHECKING:
    from stillroom.merge.scoring import Score
    from stillroom.merge.stream import Merge
    from stillroom.records import Record

__all__ = ["check_output"]

_CAUSAL = ("ForCausalLM", "LMHeadModel")
_BLOCK_BYTES = 4 << 20
_SHOWN = 5
_PROMPT = range(1, 9)


def check_output(
    folder: Path,
    parents: Mapping[str, Merge],
    settings: SmokeSettings | None = None,
    *,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Check a written checkpoint, and return what was found as JSON values.

    Args:
        folder: The checkpoint.
        parents: What it was made of, by name, each as a merge that copies it; looked at only where
            records are given.
        settings: Which records, and how many; default none.
        seed: Which records are drawn.
        say: Hears warnings, and what was not checked.

    Returns:
        ``tensors`` that are finite, whether it ``loads``, the ``token`` it gave, and with records
        the ``perplexity`` of the result and of every parent, and ``warning`` where it is far off.

    Raises:
        CheckpointError: If a number is not finite, or it does not load, or gives no finite logits.
        DataError: If the records have nothing to measure.
    """
    chosen = settings or SmokeSettings.model_validate({})
    checkpoint = Checkpoint.open(folder)
    found: dict[str, Any] = {"tensors": _check_finite(checkpoint), "loads": False}
    named = checkpoint.config.get("stillroom_backend")
    if named:
        found["not_loaded"] = f"it is read by backend '{named}'"
        say(f"checked for finite numbers only: {found['not_loaded']}")
        return found
    names = checkpoint.config.get("architectures") or ["an unnamed architecture"]
    if not str(names[0]).endswith(_CAUSAL):
        found["not_loaded"] = f"{names[0]} is no causal language model"
        say(f"checked for finite numbers only: {found['not_loaded']}")
        return found
    from stillroom.merge.scoring import Measure, Scorer
    from stillroom.models import load_causal_lm

    records = _draw(chosen, seed, say)
    model, tokenizer = load_causal_lm(checkpoint.folder, dtype="float32")
    found |= {"loads": True, "token": _draw_token(model, checkpoint.folder)}
    if records:
        bounds = Measure(max_tokens=chosen.max_tokens, batch_tokens=chosen.batch_tokens)
        with tempfile.TemporaryDirectory(prefix="stillroom-smoke-") as scratch:
            scorer = Scorer(bounds, Path(scratch) / "parent", say)
            ours = scorer.measure_model(model, tokenizer, records)
            del model
            theirs = {name: scorer.score(merge, records) for name, merge in parents.items()}
        found |= _compare(ours, theirs, chosen, seed)
        if found["warning"]:
            say(f"warning: {found['warning']}")
    return found


def _check_finite(checkpoint: Checkpoint) -> int:
    """Return how many tensors there are, all of them finite."""
    import numpy as np

    from stillroom.checkpoints.numbers import BIT_TYPES, has_not_finite

    guilty = []
    for name in checkpoint.names():
        entry = checkpoint.entry(name)
        step = max(1, _BLOCK_BYTES // max(entry.row_bytes, 1))
        if entry.dtype not in FLOATS:
            continue
        for start in range(0, entry.rows, step):
            data = checkpoint.read(name, start, min(start + step, entry.rows))
            if has_not_finite(np.frombuffer(data, BIT_TYPES[entry.dtype]), entry.dtype):
                guilty.append(name)
                break
    if guilty:
        more = f" and {len(guilty) - _SHOWN} more" if len(guilty) > _SHOWN else ""
        raise CheckpointError(
            f"the result holds numbers that are not finite, in {', '.join(guilty[:_SHOWN])}{more}",
            code="merge.smoke",
            where=str(checkpoint.folder),
            expected="finite numbers in every tensor",
            next="look for the model that has them: stillroom merge inspect MODEL...",
        )
    return len(checkpoint.names())


def _draw_token(model: Any, folder: Path) -> int:
    """Let it give one token."""
    import torch

    rows = int(model.get_input_embeddings().weight.shape[0])
    ids = torch.tensor([[at % rows for at in _PROMPT]], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, -1].float()
        drawn = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=1,
            do_sample=False,
            pad_token_id=0,
        )
    if not bool(torch.isfinite(logits).all()):
        raise CheckpointError(
            "the result loads, and its logits are not finite",
            code="merge.smoke",
            where=str(folder),
            expected="finite logits after eight tokens",
            next="store as bfloat16 or float32, or lower the weights",
        )
    return int(drawn[0, ids.shape[1]])


def _draw(settings: SmokeSettings, seed: int, say: Callable[[str], None]) -> list[Record]:
    from stillroom.merge.scoring import draw_records

    if settings.records is None:
        return []
    return draw_records(
        settings.records,
        split=settings.split,
        limit=settings.max_records,
        seed=seed,
        say=say,
        setting="smoke",
    )


def _compare(
    ours: Sequence[Score],
    theirs: Mapping[str, Sequence[Score]],
    settings: SmokeSettings,
    seed: int,
) -> dict[str, Any]:
    """Return perplexities of the result and its parents, and a warning where it is far above."""
    from stillroom.evaluate.loss import perplexity

    for name, losses in {"the result": ours, **theirs}.items():
        if not any(tokens for _, tokens in losses):
            raise DataError(
                f"none of {len(losses)} records has an assistant's token to measure {name} by",
                code="merge.no-records",
                where=str(settings.records),
                expected="conversations with an answer",
                next="choose other records, or raise smoke.max_tokens",
            )
    merge = perplexity(ours, name="merge", seed=seed)
    parents = {name: perplexity(losses, name=name, seed=seed) for name, losses in theirs.items()}
    warning = ""
    worst = max((metric.value for metric in parents.values()), default=math.inf)
    if math.log(merge.value) > math.log(worst) + settings.margin:
        warning = (
            f"the result's perplexity is {merge.value:.4g}, that of the worst parent {worst:.4g}: "
            "the models may not be related, or the weights too large"
        )
    return {
        "perplexity": merge.to_json(),
        "parents": {name: metric.to_json() for name, metric in parents.items()},
        "warning": warning,
    }
