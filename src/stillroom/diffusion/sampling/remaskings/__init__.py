"""Remasking rules, one file each."""

REGISTRY = "remasking or editing of unmasked tokens"
