"""WUDI: move the summed task vectors until they interfere least with each single one.

Source: Cheng et al. 2025, arXiv:2503.08099: of each linear layer, Adam from the sum on
sum_i |(tau - delta_i) delta_i^T|^2 / |delta_i|^2. Embeddings, output heads and tensors that are not
matrices are averaged. Differs: the gradient is taken from two matrices made once, which is the same
number for a fraction of the work; ``solver`` exact goes to the minimum at once, to the one that is
nearest to the sum. Nothing is drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.merge.families import MatrixMethod
from stillroom.merge.interfaces import Array

__all__ = ["Wudi"]

_MOMENTS, _TINY = (0.9, 0.999), 1e-8


class Wudi(MatrixMethod):
    """A layer of n inputs and m outputs costs 2 m n**2 operations a step; it is in memory whole.

    On one core 300 steps of (1536, 576) take 5 s, of (8192, 2048) 8 minutes; ``solver`` exact costs
    a decomposition of n by n instead.
    """

    paper: ClassVar[str] = "arXiv:2503.08099"

    solver: Literal["adam", "exact"] = Field(
        "adam", description="the paper's steps, or where they lead to in the end"
    )
    steps: int = Field(300, ge=0, le=100_000, description="steps of Adam")
    lr: float = Field(1e-5, gt=0, description="size of a step of Adam")

    @override
    def merge_matrices(self, vectors: Sequence[Array]) -> Array:
        from stillroom.merge.tensors.task_vectors import weighted_sum

        start = weighted_sum(vectors, [1.0] * len(vectors))
        inner, target = _quadratic(vectors)
        if self.solver == "exact":
            import numpy as np

            least = len(inner) * float(np.finfo(inner.dtype).eps)
            inverse = np.linalg.pinv(inner, rcond=least, hermitian=True)
            exact: Array = start - (start @ inner - target) @ inverse
            return exact
        return self._descend(start, inner, target)

    def _descend(self, point: Array, inner: Array, target: Array) -> Array:
        """Return where Adam comes to from a point; gradient 2 (point inner - target)."""
        import numpy as np

        mean, square = np.zeros_like(point), np.zeros_like(point)
        one, two = _MOMENTS
        for step in range(1, self.steps + 1):
            slope = point @ inner
            slope -= target
            slope *= 2
            mean *= one
            mean += (1 - one) * slope
            slope *= slope
            square *= two
            slope *= 1 - two
            square += slope
            root = np.sqrt(square, out=slope)
            root /= (1 - two**step) ** 0.5
            root += _TINY
            np.divide(mean, root, out=root)
            root *= self.lr / (1 - one**step)
            point -= root
        return point


def _quadratic(vectors: Sequence[Array]) -> tuple[Array, Array]:
    """Return the sums of d^T d / |d|^2 and of d d^T d / |d|^2 over the task vectors d."""
    import numpy as np

    width = vectors[0].shape[1]
    inner = np.zeros((width, width), vectors[0].dtype)
    target = np.zeros_like(vectors[0])
    for vector in vectors:
        size = float(np.einsum("ij,ij->", vector, vector, dtype=np.float64))
        if size > 0:
            own = vector.T @ vector
            own /= own.dtype.type(size)
            inner += own
            target += vector @ own
    return inner, target
