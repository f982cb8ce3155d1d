"""Chunkers: one method a file.

All count tokens once, never tear a character, and cover all text that is not white space. They
differ in where they would rather cut. ``heading`` is the default.
"""

SEAM = "cuts a Document into Passages"
