"""Files of other projects' test suites: none may crash, hang, or lead a passage to wrong bytes.

Reads every file below the folders that are named (unpacked sources of parsers' own tests, say),
cuts what was read by three chunkers, and holds every passage against the bytes that it names:
ranges lie within the file, what is called exact decodes to the passage, nothing that is not white
space is left uncut. Prints one JSON line an outcome, and one a fault with the file's name; ends
with 1 if there is a fault.

    python benchmarks/rag/odd_files.py ./pypdf/resources ./tidy-html5/regression_testing
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from stillroom.errors import StillroomError
from stillroom.records import Document, Passage
from stillroom.text.interfaces import CHUNKERS, Chunker, ParseLimits
from stillroom.text.parser_process import ParserProcess
from stillroom.text.reader import parse_file, scan_folder

CUTTERS = ({"name": "heading"}, {"name": "recursive", "size": 60})
LIMITS = ParseLimits(ocr="never", timeout_s=30)
SLOW_S = 25.0


def find_faults(document: Document, data: bytes, cutter: Chunker) -> Iterator[str]:
    """Yield what is wrong with the passages that a chunker cuts."""
    cut = bytearray(len(document.text))
    for passage in cutter.chunk(document):
        if document.text[passage.start : passage.end] != passage.text or not passage.text.strip():
            yield f"{cutter.method_name()}: a passage is not its span"
        fault = find_misplaced(passage, data, str(document.metadata.get("encoding", "utf-8")))
        if fault:
            yield f"{cutter.method_name()}: {fault}"
        cut[passage.start : passage.end] = b"\1" * (passage.end - passage.start)
    if any(not done and not document.text[at].isspace() for at, done in enumerate(cut)):
        yield f"{cutter.method_name()}: text is left uncut"


def find_misplaced(passage: Passage, data: bytes, encoding: str) -> str:
    """Return what is wrong with the bytes that a passage names, or nothing."""
    place = passage.location
    if not 0 <= place.byte_start <= place.byte_end <= len(data):
        return f"bytes {place.byte_start}-{place.byte_end} of {len(data)}"
    if not place.is_exact or place.label:
        return ""
    try:
        is_same = data[place.byte_start : place.byte_end].decode(encoding) == passage.text
    except UnicodeDecodeError:
        is_same = False
    return "" if is_same else f"{place} is called exact and is not the passage"


def examine(path: Path, root: Path, worker: ParserProcess) -> tuple[str, list[str]]:
    """Return the outcome of one file and its faults."""
    begun = time.monotonic()
    try:
        document = parse_file(path, root=root, limits=LIMITS, worker=worker)
    except StillroomError as error:
        return error.problems[0].code, []
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the finding
        return "crash", [f"{type(error).__name__}: {error}"]
    taken = time.monotonic() - begun
    faults = [f"took {taken:.1f} s"] if taken > SLOW_S else []
    data = path.read_bytes()
    for one in CUTTERS:
        faults += list(find_faults(document, data, CHUNKERS.build(one)))[:3]
    return "read", faults


def main() -> None:
    """Examine every file below the folders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    outcomes: Counter[str] = Counter()
    faulty = 0
    with ParserProcess() as worker:
        for folder in parser.parse_args().folders:
            for path in scan_folder(folder).files:
                outcome, faults = examine(path, folder, worker)
                outcomes[outcome] += 1
                faulty += bool(faults)
                for fault in faults:
                    print(json.dumps({"file": str(path), "fault": fault}), flush=True)
    for name, count in sorted(outcomes.items()):
        print(json.dumps({"what": f"rag/odd_files/{name}", "value": count}))
    print(json.dumps({"what": "rag/odd_files/faulty", "value": faulty, "n": outcomes.total()}))
    sys.exit(bool(faulty))


if __name__ == "__main__":
    main()
