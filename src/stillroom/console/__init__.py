"""Web pages that speak only to ``serve``.

The console is not built yet: its place in the layers is kept.
"""

__all__: list[str] = []
