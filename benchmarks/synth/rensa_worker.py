"""rensa on a file of texts, in its own environment. Usage: rensa_worker.py TEXTS.json."""

import json
import sys
import time
from pathlib import Path

from rensa import RMinHash, RMinHashLSH

BANDS, PERMUTATIONS = 16, 128


def shingles(text: str) -> list[str]:
    """Return the word 5-grams."""
    words = text.split()
    return [" ".join(words[at : at + 5]) for at in range(max(1, len(words) - 4))]


def main() -> None:
    """Print the CPU seconds and which texts fell."""
    texts = json.loads(Path(sys.argv[1]).read_text())
    begun = time.process_time()
    signed = RMinHash.from_token_sets(list(map(shingles, texts)), num_perm=PERMUTATIONS, seed=42)
    index = RMinHashLSH(threshold=0.7, num_perm=PERMUTATIONS, num_bands=BANDS)
    index.insert_many(signed)
    parents = list(range(len(texts)))

    def root(at: int) -> int:
        while parents[at] != at:
            parents[at] = parents[parents[at]]
            at = parents[at]
        return at

    for at, others in enumerate(index.query_all(signed)):
        for other in others:
            one, two = root(at), root(other)
            parents[max(one, two)] = min(one, two)
    fell = [at for at in range(len(texts)) if root(at) != at]
    json.dump({"cpu_s": time.process_time() - begun, "fell": fell}, sys.stdout)


if __name__ == "__main__":
    main()
