"""Agreement of a model's forms (export parity): adapter, merged checkpoint, GGUF files.

The merged checkpoint in transformers (float32) is the reference. The adapter is merged into its
base in memory and rounded to the types of the checkpoint's weights, so that a form is a set of
weights, not an order of sums: applied beside its base instead, an adapter's sums differ from the
rounded weights' by 5e-6 nats, which turns one greedy answer in sixty where two tokens are all but
equally likely. On every question, each form must
give the same greedy answer, token by token, and its next-token distribution is compared at some
positions along the reference's answer: the Kullback-Leibler divergence (Kullback and Leibler 1951)
of the form from the reference, exactly, over the whole vocabulary. The adapter and the GGUF file of
full precision must agree within ``MIN_EQUAL_ANSWERS`` and ``MAX_KL_NATS``; what quantization costs
is reported, and bounded by nothing.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.config_file import open_config
from stillroom.errors import CheckpointError, DataError, MissingExtraError
from stillroom.models.gguf.comparison import open_engine
from stillroom.models.gguf.export import GgufType, export_gguf
from stillroom.models.hub import resolve_checkpoint
from stillroom.models.local.causal_lm import find_end_tokens, load_causal_lm, load_model_only
from stillroom.models.tokenization.chat_template import render_prompt
from stillroom.records import Message, Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.models.backends.llamacpp import LlamacppModel

__all__ = [
    "KL_QUESTIONS",
    "MAX_KL_NATS",
    "MAX_NEW_TOKENS",
    "MIN_EQUAL_ANSWERS",
    "POSITIONS",
    "FormAgreement",
    "FormComparison",
    "compare_export",
    "compare_forms",
    "find_adapter",
]

MIN_EQUAL_ANSWERS, MAX_KL_NATS = 0.99, 1e-3
MAX_NEW_TOKENS, POSITIONS = 24, 2
KL_QUESTIONS = 50
"""Questions whose distributions are compared, which takes thrice the time of their answers."""
_ADAPTER, _WEIGHTS, _CONFIG = "adapter", "adapter_model.safetensors", "adapter_config.json"
_FULL_PRECISION: tuple[GgufType, ...] = ("f32", "bf16", "f16")
_NAMES_OF_CONFIG = {"_name_or_path", "architectures", "dtype", "transformers_version"}
_SPARE_TOKENS, _LEAST_CONTEXT = 8, 512
_LEAST_LOGPROB = -104.0
"""The engine computes probabilities in float32; below the smallest one it states the lowest number
in place of a logarithm."""


@dataclass(frozen=True, slots=True)
class FormAgreement:
    """Agreement of one form with the merged checkpoint.

    ``kl`` is the mean over ``positions``, ``largest_kl`` the largest, in nats; ``alike_prompts`` is
    the number of prompts whose token ids are equal.
    """

    form: str
    questions: int
    alike_prompts: int
    equal_answers: int
    positions: int
    kl: float
    largest_kl: float
    size_bytes: int
    is_gated: bool

    @property
    def is_equal(self) -> bool:
        """Whether answers and distributions agree within the bounds; a NaN is not."""
        return self.equal_answers >= MIN_EQUAL_ANSWERS * self.questions and self.kl <= MAX_KL_NATS

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object; numbers that are not finite become null."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }

    def __str__(self) -> str:
        """Return the figures in words."""
        return (
            f"{self.equal_answers} of {self.questions} greedy answers the same, mean KL "
            f"{self.kl:.2g} nats over {self.positions} positions"
        )


@dataclass(frozen=True, slots=True)
class FormComparison:
    """Agreement of every form with the merged checkpoint of ``size_bytes``.

    ``start_bytes`` is the size of the model that it was made from, 0 if unknown; ``notes`` are
    forms that could not be compared, with the reason.
    """

    forms: tuple[FormAgreement, ...]
    size_bytes: int
    start_bytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Whether every form that is gated agrees within the bounds."""
        return all(form.is_equal for form in self.forms if form.is_gated)

    def describe(self, name: str) -> str:
        """Return one line: whether the export ``name`` is equal, and what quantization costs."""
        gated = [f"{form.form}: {form}" for form in self.forms if form.is_gated]
        bounds = f"{MIN_EQUAL_ANSWERS:.0%} of the answers, {MAX_KL_NATS:g} nats"
        verdict = (
            f"{name} is equal to its checkpoint (bounds: {bounds})"
            if self.is_equal
            else f"Not shipped: {name} is not equal to its checkpoint (bounds: {bounds})"
        )
        costs = [f" {form.form} costs: {form}." for form in self.forms if not form.is_gated]
        sizes = [f"checkpoint {self.size_bytes / 1e6:.1f} MB"]
        sizes += [f"{form.form} {form.size_bytes / 1e6:.1f} MB" for form in self.forms]
        if self.start_bytes:
            sizes.append(f"it was made from {self.start_bytes / 1e6:.1f} MB")
        notes = "".join(f" {note[:1].upper()}{note[1:]}." for note in self.notes)
        return f"{verdict}; {'; '.join(gated)}.{''.join(costs)} On disk: {', '.join(sizes)}.{notes}"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        forms = [form.to_json() for form in self.forms]
        return {"is_equal": self.is_equal, **asdict(self), "forms": forms}

    def require_equal(self, out: Path) -> None:
        """Raise unless every gated form is equal.

        Raises:
            CheckpointError: ``checkpoint.export-unequal``.
        """
        if not self.is_equal:
            raise CheckpointError(
                self.describe(out.name),
                code="checkpoint.export-unequal",
                where=str(out),
                expected=f"at least {MIN_EQUAL_ANSWERS:.0%} equal greedy answers, and a mean KL of "
                f"at most {MAX_KL_NATS:g} nats",
                next="serve the folder instead; an adapter that differs belongs to other weights, "
                "or to another base: name it with --base",
            )


@dataclass(frozen=True, slots=True)
class _Answered:
    """A question with the reference's greedy answer, and its log-probabilities at any positions.

    ``chances`` are those of the tokens after ``prompt`` and ``answer[:start]``, and of the next:
    (positions, V).
    """

    question: Prompt
    prompt: list[int]
    answer: list[int]
    start: int
    chances: Tensor


class _Tally:
    """Counts and divergences of one form."""

    def __init__(self) -> None:
        self.alike = self.equal = 0
        self.divergences: list[float] = []

    @classmethod
    def of_the_same(cls, answered: Sequence[_Answered]) -> _Tally:
        """Return the tally of the reference's own weights, for which nothing is computed."""
        tally = cls()
        tally.alike = tally.equal = len(answered)
        tally.divergences = [0.0 for one in answered for _ in one.chances]
        return tally

    def finish(self, form: str, questions: int, size: int, *, is_gated: bool) -> FormAgreement:
        found = self.divergences
        is_number = bool(found) and not any(map(math.isnan, found))
        return FormAgreement(
            form,
            questions,
            self.alike,
            self.equal,
            len(found),
            statistics.fmean(found) if is_number else math.nan,
            max(found) if is_number else math.nan,
            size,
            is_gated,
        )


def find_adapter(folder: Path, base: str = "") -> tuple[Path | None, Path | None, str]:
    """Return the adapter that a training kept beside its merged weights, its base, and a note.

    Args:
        folder: Folder of the merged checkpoint.
        base: Reference of the base; by default the one that the adapter names.

    Returns:
        Adapter and base, or neither and why not; without an adapter there is no reason.

    Raises:
        CheckpointError: If ``base`` is given and is no checkpoint, or not here.
    """
    adapter = folder / _ADAPTER
    if not (adapter / _CONFIG).is_file():
        return None, None, ""
    config = open_config(adapter / _CONFIG)
    if base:
        return adapter, resolve_checkpoint(base), ""
    named = str(config.get("base_model_name_or_path") or "")
    try:
        return adapter, resolve_checkpoint(named), ""
    except CheckpointError:
        return None, None, f"the adapter was not compared: its base {named!r} is not here"


def compare_export(
    folder: Path, path: Path, type: GgufType, questions: Sequence[str], **settings: Any
) -> FormComparison:
    """Compare all forms of a checkpoint: its adapter, a GGUF file, and for q8_0 one of float16.

    The latter is written beside the file and removed again.

    Raises:
        CheckpointError: If the checkpoint cannot be exported or loaded.
        DataError: If there is no question.
        MissingExtraError: If gguf, xllamacpp or, with an adapter, peft is not installed.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".forms-") as scratch:
        files: dict[GgufType, Path] = {}
        if type not in _FULL_PRECISION:
            files["f16"] = Path(scratch) / "f16.gguf"
            export_gguf(folder, files["f16"], type="f16")
        return compare_forms(folder, {**files, type: path}, questions, **settings)


def compare_forms(
    folder: Path,
    files: Mapping[GgufType, Path],
    questions: Sequence[str],
    *,
    base: str = "",
    start_bytes: int = 0,
    max_new_tokens: int = MAX_NEW_TOKENS,
    positions: int = POSITIONS,
    check_cancelled: Callable[[], None] = lambda: None,
) -> FormComparison:
    """Compare an adapter and GGUF files with the merged checkpoint.

    Args:
        folder: Hugging Face folder of the merged checkpoint, or a GGUF file.
        files: GGUF files by type; the first drafts the answers that the reference verifies.
        questions: What the forms are asked, as a user's message if there is a chat template.
        base: Base of the adapter; default: the one that it names.
        start_bytes: Size of the model that it was made from, for the comparison's sentence.
        max_new_tokens: Maximum tokens of an answer.
        positions: Positions of an answer whose distributions are compared, in ``KL_QUESTIONS``
            questions at most, evenly spread. They start at another depth in each of these, so that
            together they cover the answers.
        check_cancelled: Called between questions.

    Raises:
        CheckpointError: If a model cannot be loaded.
        DataError: If there is no question.
        MissingExtraError: If xllamacpp or, with an adapter, peft is not installed.
    """
    if not questions:
        raise DataError(
            "there is no question to compare answers to",
            code="data.no-questions",
            expected="at least one",
            next="give records, or questions of people",
        )
    model, tokenizer = load_causal_lm(folder, dtype="float32", device="cpu")
    prompts = [_make_prompt(tokenizer, text) for text in questions]
    encoded = [_encode(tokenizer, prompt) for prompt in prompts]
    longest = max(map(len, encoded)) + max_new_tokens + _SPARE_TOKENS
    context = max(longest, _LEAST_CONTEXT)
    ends = find_end_tokens(model, tokenizer)
    measured = min(len(prompts), KL_QUESTIONS)
    forms: list[FormAgreement] = []
    answered: list[_Answered] = []
    for kind, path in files.items():
        tally = _Tally()
        with open_engine(path, context) as engine:
            for number, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True)):
                check_cancelled()
                given = engine.encode_prompt(prompt)
                draft = _cut(engine.continue_tokens(given, max_new_tokens, 0), ends)
                if number == len(answered):
                    before, after = (at * measured // len(prompts) for at in (number, number + 1))
                    count = positions * (after - before)
                    found = _answer(model, prompt, ids, draft, max_new_tokens, count, before, ends)
                    answered.append(found)
                tally.alike += given == ids
                tally.equal += given == ids and draft == answered[number].answer
                tally.divergences += _compare_engine(engine, answered[number])
        is_gated = kind in _FULL_PRECISION
        size = path.stat().st_size
        forms.append(tally.finish(kind, len(prompts), size, is_gated=is_gated))
    config = _describe_config(model)
    del model
    adapter, found_base, note = find_adapter(folder, base)
    if adapter is not None and found_base is not None:
        adapted, is_same = _merge_adapter(found_base, adapter, Checkpoint.open(folder))
        tally = (
            _Tally.of_the_same(answered)
            if is_same and _describe_config(adapted) == config
            else _compare_adapter(adapted, answered, max_new_tokens, ends, check_cancelled)
        )
        size = (adapter / _WEIGHTS).stat().st_size
        forms.insert(0, tally.finish(_ADAPTER, len(prompts), size, is_gated=True))
    weights = [folder] if folder.is_file() else folder.glob("*.safetensors")
    size = sum(path.stat().st_size for path in weights)
    return FormComparison(tuple(forms), size, start_bytes, (note,) if note else ())


def _make_prompt(tokenizer: Any, question: str) -> Prompt:
    """Return a question as a chat; as plain text for a model without a chat template."""
    if getattr(tokenizer, "chat_template", None):
        return Prompt((Message("user", question),))
    return Prompt(text=question)


def _encode(tokenizer: Any, prompt: Prompt) -> list[int]:
    text = render_prompt(tokenizer, prompt)
    return list(tokenizer(text, add_special_tokens=not prompt.messages)["input_ids"])


def _cut(steps: Sequence[tuple[int, object]], ends: frozenset[int]) -> list[int]:
    """Return the tokens before the first end token."""
    tokens = [token for token, _ in steps]
    return tokens[: next((place for place, token in enumerate(tokens) if token in ends), None)]


def _score(model: Any, ids: Sequence[int], answer: Sequence[int]) -> tuple[list[int], Tensor]:
    """Return the most likely tokens along an answer and after it, and the logits, (T + 1, V)."""
    import torch

    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*ids, *answer]])).logits[0, len(ids) - 1 :].float()
    return logits.argmax(dim=-1).tolist(), logits


def _answer(
    model: Any,
    question: Prompt,
    ids: list[int],
    draft: Sequence[int],
    count: int,
    positions: int,
    number: int,
    ends: frozenset[int],
) -> _Answered:
    """Return the reference's greedy answer: the draft as far as it holds, continued where not.

    A draft that holds costs one forward pass. Source: speculative decoding (Leviathan et al. 2023,
    arXiv:2211.17192), greedy.
    """
    import torch

    answer = list(draft)
    while True:
        picks, logits = _score(model, ids, answer)
        differing = (at for at, token in enumerate(answer) if token != picks[at])
        kept = next(differing, len(answer))
        answer = answer[:kept]
        if kept == count or picks[kept] in ends:
            break
        answer.append(picks[kept])
    start = number * positions % (kept + 1)
    chosen = logits[start : min(start + positions, kept + 1)]
    return _Answered(
        question, ids, answer, start, torch.log_softmax(chosen.double(), dim=-1).float()
    )


def _compare_engine(engine: LlamacppModel, one: _Answered) -> Iterator[float]:
    """Yield the divergence of llama.cpp's distributions, as long as it follows the answer.

    Positions for which the engine has no log-probabilities (parts of a character) are left out.
    """
    import torch

    count, vocabulary = one.chances.shape
    if not count:
        return
    given = [*one.prompt, *one.answer[: one.start]]
    for at, (token, likely) in enumerate(engine.continue_tokens(given, count, vocabulary)):
        chances = torch.full((vocabulary,), -math.inf, dtype=torch.float64)
        known = torch.tensor(list(likely))
        stated = torch.tensor(list(likely.values()), dtype=torch.float64)
        chances[known] = stated.clamp(min=_LEAST_LOGPROB)
        yield _divergence(one.chances[at], chances)
        if one.answer[one.start + at : one.start + at + 1] != [token]:
            return


def _divergence(reference: Tensor, other: Tensor) -> float:
    """Return KL(reference || other) in nats; both are normalized in float64 first.

    The engine sums 49,152 float32 probabilities to 1.0002, a fifth of the bound.
    """
    import torch

    expected = torch.log_softmax(reference.double(), dim=-1)
    found = torch.log_softmax(other.double(), dim=-1)
    return max(float((expected.exp() * (expected - found)).sum()), 0.0)


def _compare_adapter(
    model: Any,
    answered: Sequence[_Answered],
    count: int,
    ends: frozenset[int],
    check_cancelled: Callable[[], None],
) -> _Tally:
    """Compare the adapter, merged into its base to other weights than the reference's."""
    tally = _Tally()
    for one in answered:
        check_cancelled()
        picks, logits = _score(model, one.prompt, one.answer)
        is_ended = len(one.answer) == count or picks[-1] in ends
        tally.alike += 1
        tally.equal += picks[: len(one.answer)] == one.answer and is_ended
        places = logits[one.start : one.start + len(one.chances)]
        tally.divergences += [
            _divergence(expected, found)
            for expected, found in zip(one.chances, places, strict=True)
        ]
    return tally


def _merge_adapter(base: Path, adapter: Path, merged: Checkpoint) -> tuple[Any, bool]:
    """Merge an adapter into its base, rounded as the weights of ``merged`` are stored.

    Returns:
        The model in float32, and whether all its weights are those of ``merged``, bit for bit.
    """
    import torch

    try:
        import peft
    except ImportError as error:
        raise MissingExtraError.of("peft", "train", "comparing an adapter") from error
    model = load_model_only(base, dtype="float32", device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses a deprecated transformers call
        model = peft.PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    weights = dict(model.named_parameters(remove_duplicate=False))  # tied ones by all their names
    names = [name for name in merged.names() if name in weights]
    is_same = len(names) == len(merged.names())
    is_same &= {id(weights[name]) for name in names} == set(map(id, weights.values()))
    with torch.no_grad():
        for name in names:
            tensor = merged.tensor(name)
            weights[name].copy_(weights[name].to(tensor.dtype))
            is_same &= torch.equal(weights[name], tensor.float())
    return model.eval(), is_same


def _describe_config(model: Any) -> dict[str, Any]:
    """Return what a model computes with its weights."""
    config: dict[str, Any] = model.config.to_dict()
    return {name: value for name, value in config.items() if name not in _NAMES_OF_CONFIG}
