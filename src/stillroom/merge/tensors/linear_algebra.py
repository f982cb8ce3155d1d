"""Linear algebra of merging: SVD, spherical means and the closed form of RegMean.

Whether a tensor is a matrix is decided by shape and name: two dimensions, both over 1, and, unless
configured, not an embedding or output head, whose rows are tokens rather than directions. All other
tensors are averaged, as in the papers' code.

Cost: LAPACK's decomposition of an (m, n) matrix, m >= n, takes about 6 m n**2 + 20 n**3 operations;
on one core in float32 0.2 s at (1536, 576) and 12 s at (8192, 2048). LAPACK is limited to one
thread: the last bits depend on their number.

Elementwise methods run on the CPU: for averages, importing torch costs more than a GPU saves below
about a billion parameters, and sign election and ranking have no GPU version (see
docs/explanation/merging.md). Decompositions of matrices and mergekit's arithmetic on whole tensors
benefit. A GPU rounds differently, so the device is part of the recipe and never chosen silently; a
recipe whose device is unused gets a warning.

Every point that spherical methods visit is a combination of the models' vectors, so they only need
a tensor's Gram matrix: one reading pass, arithmetic on a few numbers, then one elementwise pass. A
vector of length zero has no direction; it only counts in lengths.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias

import numpy as np

from stillroom.errors import RecipeError, ResourceError
from stillroom.merge.interfaces import Array, MergeMethod, RowBlock, TensorBlocks
from stillroom.merge.tensors.task_vectors import cosine, gram_matrix, plain_sum

__all__ = [
    "Device",
    "MixCoefficients",
    "check_positive_weights",
    "combine_parents",
    "decompose",
    "device_context",
    "is_matrix",
    "karcher_coefficients",
    "multislerp_coefficients",
    "normalize_weights",
    "orthogonalize",
    "parent_gram_matrix",
    "plain_mean",
    "slerp_coefficients",
    "slerp_weight",
    "solve_regmean",
    "svd",
    "svd_with_torch",
    "warn_unused_device",
    "weighted_mean",
]

_EMBEDDING_NAMES = re.compile(r"embed|lm_head|\bwte\b|\bwpe\b|\bshared\.weight$|\bhead\.weight$")


def is_matrix(name: str, shape: tuple[int, ...], *, embeddings: bool = False) -> bool:
    """Return whether a tensor is merged as a matrix.

    Args:
        name: Name of the tensor.
        shape: Its shape.
        embeddings: Whether embeddings and output heads are matrices, too.
    """
    if len(shape) != 2 or min(shape) < 2:
        return False
    return embeddings or not _EMBEDDING_NAMES.search(name)


def plain_mean(vectors: Sequence[Array]) -> Array:
    """Return the unweighted mean, added in the given order."""
    total = plain_sum(vectors)
    total /= len(vectors)
    return total


def decompose(matrix: Array) -> tuple[Array, Array, Array]:
    """Return left singular vectors, singular values (descending) and right singular vectors.

    If LAPACK does not converge in float32, which is rare, float64 is used.
    """
    try:
        left, values, right = svd(matrix)
    except np.linalg.LinAlgError:
        if matrix.dtype == np.float64:
            raise
        left, values, right = (
            part.astype(matrix.dtype) for part in decompose(matrix.astype(np.float64))
        )
    return left, values, right


def orthogonalize(directions: Array, parts: tuple[Array, Array, Array] | None = None) -> Array:
    """Return the nearest matrix with orthonormal columns or rows: the polar factor.

    Directions missing in the matrix stay zero; the decomposition would choose arbitrary ones.

    Args:
        directions: The matrix.
        parts: Its decomposition, if available.
    """
    left, values, right = parts or decompose(directions)
    largest = float(values[0]) if len(values) else 0.0
    limit = max(directions.shape) * float(np.finfo(directions.dtype).eps) * largest
    rank = int(np.count_nonzero(values > limit))
    polar: Array = left[:, :rank] @ right[:rank]
    return polar


Device: TypeAlias = Literal["cpu", "cuda"]
_device_stack: list[str] = []


def warn_unused_device(device: str, method: object, arithmetic: str) -> list[str]:
    """Return a warning if the requested device is not used by a merge."""
    if device == "cpu" or arithmetic == "mergekit":
        return []
    if not isinstance(method, MergeMethod) or method.decomposes:
        return []
    return [
        f"device {device} is not used: {method.method_name()} decomposes no matrices, "
        "and its row blocks are combined on the CPU; omit 'device'"
    ]


@contextmanager
def device_context(device: str) -> Iterator[None]:
    """Run heavy arithmetic in the body on a device.

    Raises:
        ResourceError: If the device is not available.
    """
    if device != "cpu":
        import torch

        if not torch.cuda.is_available():
            raise ResourceError(
                "no CUDA device is available",
                code="merge.device",
                where="device",
                expected="a GPU supported by torch, or cpu",
                next="omit 'device', or install torch for CUDA",
            )
    _device_stack.append(device)
    try:
        yield
    finally:
        _device_stack.pop()


def svd(matrix: Array) -> tuple[Array, Array, Array]:
    """Return the thin singular value decomposition: left, values (descending), right.

    Raises:
        numpy.linalg.LinAlgError: If LAPACK does not converge.
    """
    if not _device_stack or _device_stack[-1] == "cpu":
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        return left, values, right
    return svd_with_torch(matrix, _device_stack[-1])


def svd_with_torch(matrix: Array, device: str) -> tuple[Array, Array, Array]:
    """Return the decomposition computed by torch on a device."""
    import torch

    parts = torch.linalg.svd(torch.from_numpy(matrix).to(device), full_matrices=False)
    left, values, right = (part.cpu().numpy() for part in parts)
    return left, values, right


MixCoefficients = tuple[list[float], float]
"""A coefficient for each model, and their sum minus 1."""

_FLAT = 1e-12
_TINY = 1e-150


def normalize_weights(weights: Sequence[float], method: str) -> list[float]:
    """Return the weights of a spherical method (NuSLERP, Karcher, ...) divided by their sum.

    Other methods normalize in ``task_vectors.combine_weighted``.

    Raises:
        RecipeError: If they add up to zero.
    """
    total = math.fsum(weights)
    if abs(total) < 1e-9:
        raise RecipeError(
            f"the weights of {method} add up to zero",
            code="merge.weights",
            where="models",
            expected="weights with a sum other than 0",
            next="change a weight",
        )
    return [weight / total for weight in weights]


def slerp_weight(weights: Sequence[float], method: str) -> float:
    """Return the interpolation share of the second of two models from their weights.

    Raises:
        RecipeError: If the weights add up to zero.
    """
    return normalize_weights(weights, method)[1]


def parent_gram_matrix(blocks: TensorBlocks) -> Array:
    """Return the Gram matrix of the models, or of their task vectors if there is a base."""

    def vectors_of(block: RowBlock) -> Sequence[Array]:
        if block.base is None:
            return block.parents
        return [parent - block.base for parent in block.parents]

    return gram_matrix(blocks, vectors_of)


def combine_parents(
    base: Array | None, parents: Sequence[Array], coefficients_and_extra: MixCoefficients
) -> Array:
    """Return the combination of the models, or of their task vectors added to the base.

    Computed as the first model plus differences from it, so that equal models are reproduced bit
    for bit if the coefficients add up to exactly 1.
    """
    first, *tail = parents
    coefficients, extra = coefficients_and_extra
    total = first.copy()
    for parent, coefficient in zip(tail, coefficients[1:], strict=True):
        step = parent - first
        step *= step.dtype.type(coefficient)
        total += step
    if extra:
        total += (first if base is None else first - base) * first.dtype.type(extra)
    return total


def slerp_coefficients(gram: Array, share: float) -> MixCoefficients:
    """Return the coefficients of spherical interpolation from the first vector to the second.

    Vectors of length zero, and collinear ones (parallel or opposite), are interpolated linearly.
    """
    cosine_value = cosine(gram, 0, 1) if len(gram) else 1.0
    if 1 - cosine_value * cosine_value <= _FLAT or not gram[0, 0] * gram[1, 1]:
        return [1 - share, share], 0.0
    angle = math.acos(cosine_value)
    first = math.sin((1 - share) * angle) / math.sin(angle)
    second = math.sin(share * angle) / math.sin(angle)
    return [first, second], first + second - 1


def multislerp_coefficients(gram: Array, weights: Sequence[float], total: float) -> MixCoefficients:
    """Return the tangent-space mean: log map at the normalized mean, weighted sum, exp map.

    Args:
        gram: Gram matrix of the vectors.
        weights: One per vector.
        total: Sum of the weights; exactly 1 if they were normalized.

    Returns:
        The mean, with the weighted sum of the lengths as length; the weighted sum of the vectors if
        the directions cancel out.
    """
    lengths, units = _normalize(gram)
    shares = np.asarray(weights, np.float64)
    line: MixCoefficients = list(weights), total - 1
    if _are_equal(gram):
        return line
    start = shares * (lengths > 0)
    norm = _length(start, units)
    if norm < _FLAT:
        return line
    start /= norm
    tangent = shares * (lengths > 0)
    tangent = tangent - float(tangent @ (units @ start)) * start
    step = _length(tangent, units)
    point = math.cos(step) * start
    if step > _TINY:
        point = point + math.sin(step) / step * tangent
    return _to_mix(point * float(shares @ lengths), lengths)


def karcher_coefficients(
    gram: Array, shares: Sequence[float], most: int, tolerance: float
) -> MixCoefficients:
    """Return the Karcher mean of the directions, with the weighted mean of the lengths as length.

    Args:
        gram: Gram matrix of the vectors.
        shares: Weights with sum 1.
        most: Maximum number of steps.
        tolerance: Stop when a step is shorter than this.

    Returns:
        The mean; the weighted mean of the vectors if all are equal or zero.
    """
    lengths, units = _normalize(gram)
    line: MixCoefficients = list(shares), 0.0
    if _are_equal(gram) or not lengths.any():
        return line
    weights = np.asarray(shares, np.float64)
    alive = np.where(lengths > 0, weights, 0.0)
    alive /= alive.sum() or 1.0
    point = alive.copy()
    norm = _length(point, units)
    if norm < _FLAT:
        point = np.zeros_like(point)
        point[int(np.argmax(lengths > 0))] = norm = 1.0
    point /= norm
    for _ in range(most):
        step = _tangent(point, alive, units)
        size = _length(step, units)
        if size < tolerance:
            break
        point = math.cos(size) * point + math.sin(size) / size * step
        point /= _length(point, units)
    return _to_mix(point * float(weights @ lengths), lengths)


def _tangent(point: Array, shares: Array, units: Array) -> Array:
    """Return the weighted sum of the log maps at a point, in coefficients of the directions."""
    step = np.zeros_like(point)
    for number, cosine_value in enumerate(np.clip(units @ point, -1, 1).tolist()):
        angle = math.acos(cosine_value)
        sine = math.sqrt(max(0.0, 1 - cosine_value * cosine_value))
        if sine < _FLAT:
            continue
        factor = float(shares[number]) * angle / sine
        step -= factor * cosine_value * point
        step[number] += factor
    return step


def _normalize(gram: Array) -> tuple[Array, Array]:
    """Return the vectors' lengths and cosines; cosines with a zero vector are 0."""
    lengths = np.sqrt(np.diag(gram))
    scale = np.outer(lengths, lengths)
    return lengths, np.divide(gram, scale, out=np.zeros_like(gram), where=scale > 0)


def _length(coefficients: Array, units: Array) -> float:
    return math.sqrt(max(0.0, float(coefficients @ units @ coefficients)))


def _are_equal(gram: Array) -> bool:
    """Return whether all vectors are equal, which holds exactly if all products are."""
    return not gram.size or bool((gram == gram[0, 0]).all())


def _to_mix(point: Array, lengths: Array) -> MixCoefficients:
    """Convert coefficients of directions to coefficients of vectors."""
    scaled = np.divide(point, lengths, out=np.zeros_like(point), where=lengths > 0)
    coefficients = [float(value) for value in scaled]
    return coefficients, math.fsum(coefficients) - 1


_JITTER = 1e-9


def check_positive_weights(weights: Sequence[float], method: str) -> None:
    """Raise an error unless all weights are positive.

    Raises:
        RecipeError: If a weight is zero or negative.
    """
    if not all(weight > 0 for weight in weights):
        raise RecipeError(
            f"{method} cannot use the weights {', '.join(f'{weight:g}' for weight in weights)}",
            code="merge.weights",
            where="models",
            expected="weights above zero",
            next="remove the model instead of setting its weight to zero",
        )


def solve_regmean(
    parents: Sequence[Array], grams: Sequence[Array], weights: Sequence[float], share: float
) -> Array:
    """Return W that minimizes the weighted squared distances of outputs, (out, in), float64.

    Solved as a change from the first parent, so that equal parents give exactly that parent. For
    inputs that no parent received, the weighted mean is used.

    Args:
        parents: Matrices of the parents, (out, in).
        grams: Mean of x x^T over each parent's inputs, (in, in).
        weights: Weights of the parents' outputs.
        share: Factor of off-diagonal products (alpha); 1 keeps the Gram matrix.
    """
    first = np.asarray(parents[0], dtype=np.float64)
    scaled = []
    for gram, weight in zip(grams, weights, strict=True):
        shrunk = gram * (share * weight)
        np.fill_diagonal(shrunk, np.diagonal(gram) * weight)
        scaled.append(shrunk)
    total = np.sum(scaled, axis=0)
    jitter = _JITTER * float(np.trace(total)) / len(total) or 1.0
    mass = sum(weights)
    change = np.zeros_like(first)
    for parent, shrunk, weight in zip(parents[1:], scaled[1:], weights[1:], strict=True):
        vector = np.asarray(parent, dtype=np.float64) - first
        change += vector @ shrunk + (jitter * weight / mass) * vector
    total[np.diag_indices_from(total)] += jitter
    # total is symmetric, so W total = change is total W^T = change^T.
    return first + np.linalg.solve(total, change.T).T


def weighted_mean(parents: Sequence[Array], weights: Sequence[float]) -> Array:
    """Return the weighted mean as a change from the first parent, exact for equal parents."""
    mass = sum(weights)
    result = parents[0].copy()
    for parent, weight in zip(parents[1:], weights[1:], strict=True):
        result += (parent - parents[0]) * parents[0].dtype.type(weight / mass)
    return result
