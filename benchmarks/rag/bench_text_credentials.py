"""Content credentials in text: what one costs, and whether any is lost or seen where none is.

A thousand marked texts go through an index of their own, with as many unmarked ones between them.
The unmarked texts are lines of every text file under FILES (default the shared data), a tenth of
them with variation selectors of their own.
"""

import itertools
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from stillroom.jobs import Job
from stillroom.models import open_embedder
from stillroom.provenance.text_marks import mark_text
from stillroom.rag.index.searcher import Index
from stillroom.rag.jobs.index import IndexRecipe, run
from stillroom.records import Document
from stillroom.records.text_credentials import Disclosure, read_credentials
from stillroom.records.text_credentials.cose import ClaimSigner
from stillroom.text.credentials import take_credentials

ROOT = Path(__file__).resolve().parents[2]
FILES = Path(os.environ.get("FILES", ROOT.parent / "shared/data"))
MARKED, UNMARKED = 1_000, 100_000
SAID = Disclosure(model_name="SmolLM2-135M-Instruct", model_identifier="gguf:" + "ab" * 32)
SIGNERS = {
    "ed25519": ClaimSigner(ed25519.Ed25519PrivateKey.generate(), name="key 0123456789abcdef"),
    "p256": ClaimSigner(ec.generate_private_key(ec.SECP256R1()), name="key 0123456789abcdef"),
}
TYPES = (("txt", "text/plain"), ("md", "text/markdown"), ("md", "text/plain"))


def tell(what: str, value: float, **more: object) -> None:
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(json.dumps({"what": what, "value": value, **more, "machine": machine}), flush=True)


def read_lines() -> list[str]:
    """Return distinct lines of the text files, the shortest left out."""
    paths = [path for path in FILES.rglob("*") if path.suffix in {".txt", ".md", ".json", ".jsonl"}]
    lines: dict[str, None] = {}
    for path in sorted(paths):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            for piece in range(0, min(len(line), 200_000), 200):
                part = line[piece : piece + 200].strip()
                if len(part) > 20:
                    lines.setdefault(part)
    return list(lines)


def measure_cost(lines: list[str]) -> None:
    for name, signer in SIGNERS.items():
        signed, read, sizes = [], [], []
        for text in lines[:1_000]:
            begun = time.process_time()
            marked = mark_text(text, SAID, signer)
            done = time.process_time()
            (found,) = read_credentials(marked)
            read.append(time.process_time() - done)
            signed.append(done - begun)
            sizes.append(len(marked.encode()) - len(text.encode()))
            assert found.state == "valid"
        p95 = statistics.quantiles(signed, n=20)[-1]
        tell(f"text_credentials/sign_cpu_ms/{name}", statistics.median(signed) * 1e3, p95=p95 * 1e3)
        tell(f"text_credentials/read_cpu_ms/{name}", statistics.median(read) * 1e3)
        tell(f"text_credentials/bytes/{name}", max(sizes), median=statistics.median(sizes))


def measure_index(lines: list[str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "documents"
        folder.mkdir()
        for number, text in enumerate(lines[:MARKED]):
            suffix, kind = TYPES[number % 3]
            marked = mark_text(text, SAID, SIGNERS["p256"], kind)
            (folder / f"m{number}.{suffix}").write_bytes(marked.encode())
            (folder / f"h{number}.txt").write_bytes(lines[-number - 1].encode())
        recipe = IndexRecipe(documents=str(folder), embedder="static")
        job = Job.start(Path(place) / "index", "recipe\n")
        begun = time.perf_counter()
        run(recipe, job, embedder=open_embedder("static"))
        job.close()
        seconds = time.perf_counter() - begun
        with Index.open(Path(place) / "index") as index:
            found = [index.passage_at(row) for row in range(len(index))]
        kept = {one.location.path for one in found if one.origin.kind == "synthetic"}
        marked_paths = {path.name for path in folder.iterdir() if path.name[0] == "m"}
        tell("text_credentials/lost", len(marked_paths - kept), n=MARKED, seconds=round(seconds, 1))
        tell("text_credentials/false_in_index", len(kept - marked_paths), n=MARKED)


def measure_false(lines: list[str]) -> None:
    rng, false, count = random.Random(0), 0, 0
    for text in itertools.islice(itertools.cycle(lines), UNMARKED):
        count += 1
        if count % 10 == 0 or count > len(lines):
            spot = rng.randrange(len(text))
            run_of = "".join(chr(0xE0100 + rng.randrange(240)) for _ in range(rng.randrange(1, 40)))
            text = f"{text[:spot]}\ufeff{run_of}\ufe0f{text[spot:]}"
        document = Document("a.txt", "", "text/plain", text)
        false += take_credentials(document, text.encode()) != document
    tell("text_credentials/false", false, n=count, distinct=min(len(lines), count))


def main() -> None:
    lines = read_lines()
    if len(lines) < 2 * MARKED:
        print(f"too few texts under {FILES}: set FILES", file=sys.stderr)
        return
    random.Random(1).shuffle(lines)
    measure_cost(lines)
    measure_index(lines)
    measure_false(lines)


if __name__ == "__main__":
    main()
