"""Latent semantic vectors of passages and queries, by scikit-learn in an environment of its own.

Run as ``python lsa_worker.py FOLDER``: TF-IDF, then a truncated SVD to 384 dimensions, normalized.
The few passages without any known word get a unit vector, since a vector of zeros has no cosine.
"""

import json
import sys
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils.extmath import randomized_svd

WIDTH = 384


def normalize(vectors: np.ndarray) -> np.ndarray:
    """Return unit vectors, float32."""
    sizes = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[sizes[:, 0] < 1e-6, 0] = 1
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)).astype("f4")


def main() -> None:
    """Write vectors.npy and query-vectors.npy into the folder."""
    folder = Path(sys.argv[1])
    texts = json.loads((folder / "passages-50000.json").read_text(encoding="utf-8"))
    asked = json.loads((folder / "queries.json").read_text(encoding="utf-8"))
    counter = TfidfVectorizer(
        sublinear_tf=True, min_df=3, max_df=0.3, stop_words="english", max_features=60_000
    )
    counts = counter.fit_transform(texts).astype(np.float32)
    axes = randomized_svd(counts, WIDTH, n_oversamples=16, n_iter=2, random_state=0)[2].T
    found = {"vectors.npy": counts @ axes, "query-vectors.npy": counter.transform(asked) @ axes}
    for name, vectors in found.items():
        np.save(folder / name, normalize(np.asarray(vectors, dtype=np.float32)))


if __name__ == "__main__":
    main()
