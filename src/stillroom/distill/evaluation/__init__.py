"""Fidelity of a student to its teachers on held-out records, and its report."""
