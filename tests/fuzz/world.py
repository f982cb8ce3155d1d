"""The small world of files that the fuzzer's commands are pointed at, and which file fits where."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

__all__ = ["FITTING", "make_world", "place_recipe"]

_READER = "quote:reader=builtin:overlap,min_probability=0"
_QUESTION = "What did the mill of town 2 grind?"

FITTING: dict[str, tuple[str, ...]] = {
    "run": ("run", "index", "made"),
    "index": ("index", "run/steps/index"),
    "graph": ("graph",),
    "path": ("run", "index", "made", "merged", "evidence.json", "answer.md", "opened"),
    "what": ("run", "made", "merged", "answer.md", "evidence.json", "index", "model", "rag.index"),
    "within": ("index", "run"),
    "amount": ("1", "2", "0.5", "all"),
    "moved": ("documents=documents", "model=other"),
    "key": ("me.key",),
    "keys": ("me.pub",),
    "file": ("media/0.png", "out/new"),
    "files": ("media/0.png", "media/1.png", "answer.md"),
    "paths": ("media/0.png", "media", "answer.md"),
    "model": ("scripted:script.json", "model"),
    "teacher": ("model", "other"),
    "student": ("other", "model"),
    "base": ("model",),
    "models": ("model", "other"),
    "target": ("model", "gguf"),
    "finetuned": ("other",),
    "checkpoint": ("model", "merged", "other"),
    "tokenizer": ("model",),
    "adapters": ("adapter",),
    "folder": ("documents", "run", "made", "merged"),
    "documents": ("documents",),
    "records": ("records.jsonl", "made", "opened"),
    "question": (_QUESTION, "When did it burn down?"),
    "query": ("mill corn", "river north", '"sacks of corn"'),
    "questions": ("questions.jsonl",),
    "answers": ("questions.jsonl",),
    "queries": ("queries.tsv",),
    "qrels": ("qrels.txt",),
    "reports": ("report",),
    "pipeline": ("keyword", "dense", "convex", "hybrid", "keyword+mmr"),
    "measures": ("ndcg@10", "mrr@10"),
    "answering": (_READER, "quote", "extract", "generate"),
    "checker": ("overlap",),
    "recipe": ("merge.yaml", "made.yaml", "index.yaml", "logits.yaml"),
    "cache": ("answers.sqlite", "teacher"),
    "manifest": ("set/output/manifest.jsonl",),
    "corpus": ("corpus.jsonl",),
    "overrides": ("seed=1",),
    "entity": ("mill", "river"),
    "name": ("out/new", "a name"),
    "delete": ("missing",),
    "quote": ("21 sacks of corn",),
    "unmarked": ("media",),
    "where": ("path ~ '*.md'", "year >= 2020"),
    "snapshot": ("1",),
    "split": ("held_out", "train"),
    "evidence": ("out/new",),
    "html": ("out/new",),
}
"""Plausible values of arguments and options, by the parameter's name."""

_PLACES = {
    "documents": "documents",
    "index": "index",
    "questions": "questions.jsonl",
    "answers": "records.jsonl",
    "queries": "queries.tsv",
    "qrels": "qrels.txt",
    "human": "records.jsonl",
    "records": "records.jsonl",
    "manifest": "set/output/manifest.jsonl",
    "donor": "other",
    "student": "other",
    "images": "media",
    "media": "media",
}
_SMALL = {
    "steps": 1, "epochs": 1, "train": 1, "held_out": 1, "max_questions": 1, "count": 9,
    "image_size": 128, "face_size": 128, "seconds": 3.0, "max_new_tokens": 4, "generations": 1,
    "max_tokens": 64, "max_parameters": 0.9, "gate_mode": "random",
}  # fmt: skip


def make_world(folder: Path, call: Callable[..., tuple[int, str]]) -> None:
    """Write what commands may be pointed at: one small thing of each kind, and broken ones.

    Args:
        folder: New folder.
        call: Runs a command line in a folder; returns exit code and output.
    """
    _write_sources(folder)
    for argv in _list_steps():
        code, text = call(argv, folder, seconds=300)
        if code != 0:
            raise RuntimeError(f"the world's step {argv} failed: {text}")


def _write_sources(folder: Path) -> None:
    from stillroom.testing import tiny_checkpoint

    documents = folder / "documents"
    documents.mkdir(parents=True)
    facts = [f"The mill of town {n} ground {n * 7} sacks of corn in {1840 + n}." for n in range(6)]
    for number, fact in enumerate(facts):
        text = f"# Town {number}\n\n{fact}\n\nIts river rises in the north.\n"
        (documents / f"{number}.md").write_text(text, encoding="utf-8")
    (documents / "page.html").write_text("<h1>A</h1><p>One two.</p>", encoding="utf-8")
    (folder / "script.json").write_text(json.dumps({"*": " What did the mill grind?"}))
    rows, questions, corpus = [], [], []
    for n in range(12):
        asked, fact = f"What did mill {n} grind?", facts[n % 6]
        split = "held_out" if n % 4 == 0 else "train"
        messages = [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": fact},
        ]
        fields = {"split": split, "question": "q", "answer": "a"}
        rows.append({"messages": messages, "fields": fields})
        told = {"question": asked, "answer": f"{n % 6 * 7} sacks of corn", "evidence": fact}
        questions.append({"id": str(n), **told})
        corpus.append({"_id": str(n), "title": f"Town {n}", "text": fact})
    for name, values in (("records", rows), ("questions", questions), ("corpus", corpus)):
        text = "".join(json.dumps(value) + "\n" for value in values)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "queries.tsv").write_text("".join(f"{n}\tmill of town {n}\n" for n in range(6)))
    (folder / "qrels.txt").write_text("".join(f"{n} 0 {n}.md 1\n" for n in range(6)))
    (folder / "broken.jsonl").write_text('{"messages": [\n{"a": 1}\n\x00')
    (folder / "value.json").write_text("[1, 2]")
    (folder / "empty.txt").write_text("")
    (folder / "junk.bin").write_bytes(random.Random(0).randbytes(999))
    (folder / "empty").mkdir()
    (folder / "dangling").symlink_to("nowhere")
    _write_media(folder / "media")
    tiny_checkpoint(folder / "model", seed=1)
    tiny_checkpoint(folder / "other", seed=2)
    for name, text in _RECIPES.items():
        (folder / f"{name}.yaml").write_text(f"version: 1\n{text}", encoding="utf-8")


def _write_media(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


_RECIPES = {
    "merge": "kind: merge.weights\nmethod: {name: linear}\nmodels:\n"
    "  - {model: model}\n  - {model: other}\n",
    "index": "kind: rag.index\ndocuments: documents\nembedder: builtin:static\n"
    "origin: {kind: human, license: CC0-1.0}\n",
    "made": "kind: synth.records\nindex: index\nmodel: scripted:script.json\n"
    "pipeline: {generator: {name: grounded_qa, form: plain}, filters: []}\n",
    "flow": "kind: flow\ninputs: {writer: model}\nsteps:\n"
    "  index: {kind: rag.index, documents: documents, embedder: 'builtin:static',\n"
    "    origin: {kind: human, license: CC0-1.0}}\n"
    "  graph: {kind: rag.graph, index: {from: index},\n"
    "    extractor: {name: noun_phrases, min_count: 1}}\n"
    "answer: {index: index, model: inputs.writer}\n",
    "opened": "kind: rag.open_book\nindex: index\nquestions: [questions.jsonl]\n",
    "logits": "kind: distill.logits\nteacher: model\nstudent: other\nrecords: records.jsonl\n"
    "train: {steps: 1}\n",
    "set": "kind: forensics.image_set\nforgery: {name: sbi}\ncount: 6\nimage_size: 128\n",
}


def _list_steps() -> list[list[str]]:
    """Return the commands that make the rest, in order."""
    outputs = {"merge": "merged", "flow": "run"}
    jobs = [
        ["run", f"{name}.yaml", "--out", outputs.get(name, name)]
        for name in ("index", "merge", "made", "flow", "opened", "set")
    ]
    evidence = ["--evidence", "evidence.json", "--out", "answer.md", "--cache", "answers.sqlite"]
    return [
        ["keys", "new", "me"],
        *jobs,
        ["sign", "run", "--key", "me.key"],
        ["ask", "run", _QUESTION, "--answering", _READER, *evidence],
        ["judge", "run", "--right"],
        ["distill", "capture", "logits.yaml", "--out", "teacher"],
        ["merge", "extract", "other", "--base", "model", "--out", "adapter"],
        [
            *("run", "rag.graph", "index=index", "--out", "graph"),
            "extractor={name: noun_phrases, min_count: 1}",
        ],
        [
            *("run", "rag.retrieval_evaluation", "index=index", "queries=queries.tsv"),
            *("qrels=qrels.txt", "pipelines=[keyword]", "--out", "report"),
        ],
    ]


def place_recipe(value, key: str):
    """Return a recipe's tree with small sizes, and things of the world in place of others."""
    if isinstance(value, dict):
        return {str(name): place_recipe(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [place_recipe(item, key) for item in value]
    if isinstance(value, str) and value.startswith("path/to"):
        return next((place for word, place in _PLACES.items() if word in f"{key} {value}"), "model")
    if isinstance(value, str) and value.startswith("hub:"):
        return {"model": "scripted:script.json", "embedder": "builtin:static"}.get(key, "model")
    if key in _SMALL and type(value) is type(_SMALL[key]):
        return _SMALL[key]
    return value
