"""Stillroom turns your documents into a small model you own, and proves what made it.

Six rooms share a set of common packages: ``synth``, ``distill``, ``rag``, ``diffusion``, ``merge``
and ``forensics``. Imports only go down; data passes through files that carry their origin. This
module imports nothing that takes time, so that the command line starts at once.
"""

import os

# MKL, which torch multiplies matrices by, rounds a product by where its operands happen to lie in
# memory, unless this is set before its first call: a run that is resumed would end with other bits.
os.environ.setdefault("MKL_CBWR", "AUTO")

__version__ = "0.1.0"

__all__ = ["__version__"]
