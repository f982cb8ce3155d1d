"""Merge methods, one module each, in the arithmetic ``paper``.

A new method is a subclass of ``merge.interfaces.MergeMethod`` in a file here.

Trimming, sign election (TIES), random masks (DARE) and interpolation coefficients that several
share are in ``merge.tensors`` and ``merge.families``; mergekit's own arithmetic is in
``merge.mergekit``.
"""

REGISTRY = "methods that merge several checkpoints into one"
