"""Stillroom turns your documents into a small model you own, and proves what made it.

Six rooms stand over a shared floor: ``synth``, ``distill``, ``rag``, ``diffusion``, ``merge`` and
``forensics``. Imports only go down; data goes round through files that carry their origin. This
module itself imports nothing, so that the command line starts at once.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
