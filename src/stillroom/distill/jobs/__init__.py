"""Kinds of distillation jobs: one module declares each, with its recipe."""
