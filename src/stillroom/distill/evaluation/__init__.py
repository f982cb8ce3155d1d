"""Fidelity of a student to its teachers on held-out records, and the report of it."""
