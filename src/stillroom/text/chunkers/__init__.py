"""Chunkers split documents into passages (chunks) of a token size with an overlap, one file each.

All count tokens once, never split a character, and cover all text that is not white space. They
differ in the boundaries that they prefer. ``heading`` is the default.
"""

REGISTRY = "cuts a Document into Passages"
