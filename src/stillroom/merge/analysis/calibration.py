"""Calibration statistics of a model on records: Fisher information and Gram matrices.

Fisher information: squares of the gradient of each record's log-likelihood. Labels are sampled from
the model (cross terms between tokens then vanish in the mean, and the sum over tokens is unbiased)
or are the true tokens (the empirical Fisher, where cross terms remain). Gram matrices: x x^T over
the inputs of every linear layer, in float64; layers with the identical input tensor share one.
Records are processed one at a time; memory holds one model, its gradients and the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stillroom.errors import DataError
from stillroom.merge.interfaces import Array
from stillroom.merge.tensors.linear_algebra import solve_regmean, weighted_mean
from stillroom.merge.tensors.storage import ModelStatistics, write_statistics
from stillroom.merge.tensors.structure import locate_tensor
from stillroom.provenance import digest_json

if TYPE_CHECKING:
    import torch

    from stillroom.records import Record

__all__ = ["gather_fisher", "gather_gram_matrices", "gather_merged_gram_matrices", "unmask_padding"]

Labels = Literal["sampled", "true"]


def gather_fisher(
    model: Path,
    records: Sequence[Record],
    folder: Path,
    *,
    labels: Labels = "sampled",
    max_tokens: int = 512,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    on_record: Callable[[], None] | None = None,
) -> ModelStatistics:
    """Write a model's diagonal Fisher information on records, averaged over tokens.

    Args:
        model: Folder of a causal language model.
        records: Records of the model's training task; assistant tokens count.
        folder: Output folder of the statistics.
        labels: ``sampled`` from the model's distribution, or the ``true`` tokens.
        max_tokens: Maximum tokens read per record.
        seed: Random seed of the sampled labels, independent per record.
        device: Torch device of the model.
        overwrite: Replace an existing ``folder``.
        on_record: Called after each record.

    Raises:
        DataError: If no record has an assistant token, or ``folder`` exists.
        CheckpointError: If the model cannot be loaded.
    """
    import torch

    loaded, tokenizer = _load(model, device)
    sums = {name: torch.zeros_like(value) for name, value in loaded.named_parameters()}
    tokens = 0
    rng = torch.Generator(device="cpu")
    for number, (ids, targets) in enumerate(_encode(tokenizer, records, max_tokens)):
        logits = loaded(input_ids=ids.to(loaded.device)[None], use_cache=False).logits[0]
        picked = torch.log_softmax(logits[targets - 1].float(), dim=-1)  # (n, V)
        if labels == "sampled":
            rng.manual_seed((seed * 1_000_003 + number) % 2**63)
            labels_ids = torch.multinomial(picked.detach().exp().cpu(), 1, generator=rng)
        else:
            labels_ids = ids[targets][:, None]
        loaded.zero_grad(set_to_none=True)
        picked.gather(1, labels_ids.to(picked.device)).sum().backward()  # type: ignore[no-untyped-call]  # torch's own
        for name, value in loaded.named_parameters():
            if value.grad is not None:
                sums[name] += value.grad.square()
        tokens += len(targets)
        if on_record:
            on_record()
    _refuse_no_tokens(tokens)
    return write_statistics(
        folder,
        "fisher",
        {name: (value / tokens).cpu().numpy() for name, value in sums.items()},
        model=_fingerprint(model),
        tokens=tokens,
        records=_digest(records),
        details={"labels": labels, "seed": seed},
        overwrite=overwrite,
    )


def gather_gram_matrices(
    model: Path,
    records: Sequence[Record],
    folder: Path,
    *,
    max_tokens: int = 512,
    device: str = "auto",
    overwrite: bool = False,
    on_record: Callable[[], None] | None = None,
) -> ModelStatistics:
    """Write the mean of x x^T over the inputs of every linear layer, in float64.

    Args:
        model: Folder of a causal language model.
        records: Records of the model's training task; every token counts.
        folder: Output folder of the statistics.
        max_tokens: Maximum tokens read per record.
        device: Torch device of the model.
        overwrite: Replace an existing ``folder``.
        on_record: Called after each record.

    Raises:
        DataError: If no record has a token, or ``folder`` exists.
        CheckpointError: If the model cannot be loaded.
    """
    import torch

    loaded, tokenizer = _load(model, device)
    sums = _GramMatrices()
    with sums.watching(_list_linear_layers(loaded)), torch.inference_mode():
        for ids, _ in _encode(tokenizer, records, max_tokens):
            sums.forget()
            loaded(input_ids=ids.to(loaded.device)[None], use_cache=False)
            if on_record:
                on_record()
    return _write_gram_matrices(folder, sums, _fingerprint(model), records, {}, overwrite=overwrite)


def gather_merged_gram_matrices(
    models: Sequence[Path],
    records: Sequence[Sequence[Record]],
    folders: Sequence[Path],
    *,
    weights: Sequence[float] | None = None,
    alpha: float = 0.9,
    max_tokens: int = 512,
    device: str = "auto",
    overwrite: bool = False,
    on_layer: Callable[[], None] | None = None,
) -> list[ModelStatistics]:
    """Write the Gram matrices of RegMean++, whose layer inputs come from merged layers.

    Layer by layer, the records of every model run through the layers merged so far and then through
    that model's layer. This yields the layer's statistics, with which the layer is merged. All
    models are held in memory in float32; each record costs about half a forward pass per layer.
    Merge with ``regmean``, ``plus_plus`` and the same weights and alpha.

    Args:
        models: Causal language models of one architecture and tokenizer.
        records: Records of each model's task.
        folders: Output folder of each model's statistics.
        weights: One per model; default 1 each.
        alpha: The setting ``alpha`` of ``regmean``.
        max_tokens: Maximum tokens read per record.
        device: Torch device of the models.
        overwrite: Replace existing folders.
        on_layer: Called after each layer.

    Raises:
        DataError: If a model's records have no token, or a folder exists.
        CheckpointError: If a model cannot be loaded.
    """
    import torch

    weights = [1.0] * len(models) if weights is None else list(weights)
    loaded, tokenizer = _load(models[0], device)
    parameters = [
        _list_parameters(loaded),
        *(_list_parameters(_load(path, device)[0]) for path in models[1:]),
    ]
    encoded = [
        [ids for ids, _ in _encode(tokenizer, task_records, max_tokens)] for task_records in records
    ]
    sums = [_GramMatrices() for _ in models]
    linears = _list_linear_layers(loaded)
    for group in _in_layers(parameters[0]):
        inside = {name: linears[name] for name in group if name in linears}
        for parent, grams, ids_list in zip(parameters, sums, encoded, strict=True):
            _replace_parameters(loaded, {name: parent[name] for name in group})
            with grams.watching(inside, stop=True), torch.inference_mode():
                for ids in ids_list if inside else ():
                    grams.forget()
                    grams.run(loaded, ids)
        _replace_parameters(loaded, _merge_group(group, parameters, sums, weights, alpha))
        if on_layer:
            on_layer()
    return [
        _write_gram_matrices(
            folder,
            grams,
            _fingerprint(path),
            task_records,
            {"plus_plus": True, "alpha": alpha, "weights": weights},
            overwrite=overwrite,
        )
        for path, task_records, folder, grams in zip(models, records, folders, sums, strict=True)
    ]


class _AllInputsSeenError(Exception):
    """All watched layers have received their input; end the forward pass."""


class _GramMatrices:
    """Sums of x x^T by layer, filled by hooks while a model runs."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}
        self.same: dict[str, str] = {}
        self._seen: list[tuple[str, torch.Tensor]] = []
        self._wanted: set[str] = set()
        self._waiting: set[str] = set()

    def forget(self) -> None:
        """Start a record: drop the inputs of the previous one."""
        self._seen.clear()
        self._waiting = set(self._wanted)

    @contextmanager
    def watching(self, layers: Mapping[str, Any], *, stop: bool = False) -> Iterator[None]:
        """Accumulate the inputs of layers, keyed by the names of their weights.

        Args:
            layers: Modules by weight name.
            stop: End a forward pass once all layers have received their input; only within ``run``.
        """
        self._wanted = set(layers) if stop else set()

        def hook_of(name: str) -> Callable[[Any, Any], None]:
            def hook(_: Any, inputs: tuple[Any, ...]) -> None:
                self._take(name, inputs[0])
                self._waiting.discard(name)
                if stop and not self._waiting:
                    raise _AllInputsSeenError

            return hook

        hooks = [layer.register_forward_pre_hook(hook_of(name)) for name, layer in layers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def run(self, model: Any, ids: torch.Tensor) -> None:
        """Run a model until every watched layer has received its input."""
        try:
            model(input_ids=ids.to(model.device)[None], use_cache=False)
        except _AllInputsSeenError:
            return

    def mean(self, name: str) -> Array:
        """Return the mean of x x^T over a layer's inputs, (in, in)."""
        home = self.same.get(name, name)
        return (self.sums[home] / max(self.counts[home], 1)).cpu().numpy()

    def _take(self, name: str, inputs: torch.Tensor) -> None:
        shared = next((home for home, other_inputs in self._seen if other_inputs is inputs), "")
        if shared and name not in self.sums:
            self.same[name] = shared
            return
        self._seen.append((name, inputs))
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).double()
        product = rows.T @ rows
        self.sums[name] = self.sums[name] + product if name in self.sums else product
        self.counts[name] = self.counts.get(name, 0) + len(rows)


def _merge_group(
    group: Iterable[str],
    parents: Sequence[Mapping[str, torch.Tensor]],
    sums: Sequence[_GramMatrices],
    weights: Sequence[float],
    alpha: float,
) -> dict[str, torch.Tensor]:
    import torch

    merged = {}
    for name in group:
        arrays = [parent[name].cpu().numpy() for parent in parents]
        if all(name in {*grams.sums, *grams.same} for grams in sums):
            means = [grams.mean(name) for grams in sums]
            merged_array = solve_regmean(arrays, means, weights, alpha).astype(np.float32)
        else:
            merged_array = weighted_mean(arrays, weights)
        merged[name] = torch.from_numpy(np.ascontiguousarray(merged_array))
    return merged


def _in_layers(parameters: Mapping[str, Any]) -> list[list[str]]:
    """Group parameter names in forward order."""
    groups: dict[str, list[str]] = {}
    before: list[str] = []
    after: list[str] = []
    for name in parameters:
        layer, module = locate_tensor(name)
        if layer != module:
            groups.setdefault(layer, []).append(name)
        elif groups:
            after.append(name)
        else:
            before.append(name)
    ordered = [before, *groups.values(), *([name] for name in after)]
    return [group for group in ordered if group]


def _write_gram_matrices(
    folder: Path,
    grams: _GramMatrices,
    model: str,
    records: Sequence[Record],
    details: Mapping[str, Any],
    *,
    overwrite: bool,
) -> ModelStatistics:
    tokens = max(grams.counts.values(), default=0)
    _refuse_no_tokens(tokens)
    return write_statistics(
        folder,
        "gram",
        {name: grams.mean(name) for name in grams.sums},
        model=model,
        tokens=tokens,
        records=_digest(records),
        same=grams.same,
        details=details,
        overwrite=overwrite,
    )


def _load(path: Path, device: str) -> tuple[Any, Any]:
    from stillroom.models import load_causal_lm

    loaded, tokenizer = load_causal_lm(path, dtype="float32", device=device)
    unmask_padding(loaded)
    return loaded, tokenizer


def unmask_padding(model: Any) -> None:
    """Enable gradients for the padding token's embedding, which often also ends turns."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None


def _list_linear_layers(model: Any) -> dict[str, Any]:
    """Return the linear layers by weight name, without tied ones."""
    import torch

    parameters = dict(model.named_parameters())
    return {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and f"{name}.weight" in parameters
    }


def _list_parameters(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def _replace_parameters(model: Any, values: Mapping[str, torch.Tensor]) -> None:
    import torch

    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)


def _encode(
    tokenizer: Any, records: Sequence[Record], max_tokens: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield token ids and the positions of assistant tokens; skip records without any."""
    import torch

    from stillroom.models.tokenization.assistant_mask import encode_conversations

    for record in records:
        encoded = encode_conversations(tokenizer, [record], max_tokens=max_tokens)[0]
        if encoded.targets:
            yield torch.tensor(encoded.ids), torch.tensor(encoded.targets)


def _fingerprint(path: Path) -> str:
    from stillroom.checkpoints import Checkpoint

    return Checkpoint.open(path).fingerprint


def _digest(records: Sequence[Record]) -> str:
    return digest_json([record.to_json() for record in records])


def _refuse_no_tokens(tokens: int) -> None:
    if not tokens:
        raise DataError(
            "no record has a token to learn from",
            code="merge.no-records",
            expected="records with an assistant's turn",
            next="give other records",
        )
