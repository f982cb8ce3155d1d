"""One reader in a process of its own: files in, Markdown, processor seconds and memory out.

Runs in the reader's own environment: ``python parsing_worker.py READER FILE...`` prints one line of
JSON a file. The first file is read once before, so that loading libraries does not count.
"""

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path


def stillroom() -> Callable[[Path], str]:
    """Read with Stillroom, in this process."""
    from stillroom.text.interfaces import ParseLimits, SourceFile
    from stillroom.text.reader import detect_parser

    limits = ParseLimits(ocr="auto" if os.environ.get("STILLROOM_BENCH_OCR") else "never")

    def convert(path: Path) -> str:
        data = path.read_bytes()
        parser = detect_parser(path.name, data)
        return parser.parse(data, SourceFile(path.name, "0" * 64, limits=limits)).text

    return convert


def markitdown() -> Callable[[Path], str]:
    """Read with markitdown."""
    from markitdown import MarkItDown

    reader = MarkItDown(enable_plugins=False)
    return lambda path: str(reader.convert(str(path)).markdown)


def docling() -> Callable[[Path], str]:
    """Read with docling's backends that need no model (its converter alone imports torch)."""
    from docling.backend.csv_backend import CsvDocumentBackend
    from docling.backend.html_backend import HTMLDocumentBackend
    from docling.backend.md_backend import MarkdownDocumentBackend
    from docling.backend.msexcel_backend import MsExcelDocumentBackend
    from docling.backend.mspowerpoint_backend import MsPowerpointDocumentBackend
    from docling.backend.msword_backend import MsWordDocumentBackend
    from docling.datamodel.base_models import InputFormat
    from docling.datamodel.document import InputDocument

    backends = {
        "docx": MsWordDocumentBackend,
        "pptx": MsPowerpointDocumentBackend,
        "xlsx": MsExcelDocumentBackend,
        "html": HTMLDocumentBackend,
        "csv": CsvDocumentBackend,
        "md": MarkdownDocumentBackend,
    }

    def convert(path: Path) -> str:
        kind = path.suffix[1:]
        if kind not in backends:
            raise ValueError("no reader without models")
        document = InputDocument(
            path_or_stream=path,
            format=InputFormat(kind),
            backend=backends[kind],
            filename=path.name,
        )
        return str(document._backend.convert().export_to_markdown())

    return convert


def main() -> None:
    """Convert the files and say what each cost."""
    reader = {"stillroom": stillroom, "markitdown": markitdown, "docling": docling}[sys.argv[1]]()
    paths = [Path(name) for name in sys.argv[2:]]
    with contextlib.redirect_stdout(sys.stderr):
        for path in paths[:3]:
            with contextlib.suppress(Exception):
                reader(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in paths:
        start, text, error = time.process_time(), "", ""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                text = reader(path)
        except Exception as problem:  # noqa: BLE001  # a reader's failure is a result
            error = f"{type(problem).__name__}: {problem}"[:200]
        spent = time.process_time() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        told = {"path": str(path), "text": text, "error": error, "cpu": spent}
        print(json.dumps({**told, "before_kb": before, "peak_kb": peak}), flush=True)


if __name__ == "__main__":
    main()
