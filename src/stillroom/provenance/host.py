"""The kind of machine that made an artifact, as far as results depend on it.

Sums of floating-point numbers depend on the width of the processor's vector instructions, on the
number of threads and on the libraries' versions; equal bytes are promised for the same kind only.
"""

from __future__ import annotations

from stillroom.provenance.artifact import Artifact, describe_host, list_installed_versions

__all__ = ["describe_machine_differences"]

_NUMERIC = ("torch", "numpy", "transformers", "xllamacpp", "stillroom")


def describe_machine_differences(artifact: Artifact) -> list[str]:
    """Return how this machine differs in kind from the one that made an artifact.

    Compared are the processor's instruction set, threads, and the versions of the packages whose
    numerics may matter. What an artifact of an earlier version does not say is not compared.
    """
    here = {**describe_host(), "versions": list_installed_versions()}
    differences = []
    for key, label in (("instructions", "instruction set"), ("threads", "threads")):
        made = artifact.host.get(key)
        if made is not None and made != here.get(key):
            found = here.get(key) or "the default"
            differences.append(f"{label}: made with {made or 'the default'}, replayed with {found}")
    for package in _NUMERIC:
        made, found = artifact.versions.get(package), here["versions"].get(package)
        if made != found:
            differences.append(f"{package}: made with {made}, replayed with {found}")
    return differences
