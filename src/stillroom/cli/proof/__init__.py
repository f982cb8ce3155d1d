"""Proof of what made a run: ``stillroom attest`` and ``keys``, evidence and replay."""

__all__: list[str] = []
