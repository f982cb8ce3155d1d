"""Which way of retrieving finds most: the two quickest judged sets, as part of ``make bench``.

``quality.py`` says what is measured and how, and measures all sets that are here; each is indexed
once with MiniLM and kept. STILLROOM_BENCH_SETS names others (``docs-qa,xquad,squad,chunking``),
STILLROOM_QUALITY_DATA the folder of the data. Names: ``rag/ndcg@10/SET/{keyword,dense,hybrid,
reranked,...}``.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from quality import DATA, READERS, WAYS, measure

SETS = os.environ.get("STILLROOM_BENCH_SETS", "docs-qa,xquad").split(",")
QUERIES = int(os.environ.get("STILLROOM_BENCH_QUERIES", "300"))


def main() -> None:
    """Print one line a set and way."""
    if not DATA.is_dir():
        print(f"no judged sets: {DATA} is no folder (STILLROOM_QUALITY_DATA)", file=sys.stderr)
        return
    for name in SETS:
        measure(READERS[name](), WAYS, QUERIES)


if __name__ == "__main__":
    main()
