"""Remasking rules, one file each. LLaDA's ``low_confidence`` is in ``sampling.sampler``."""

REGISTRY = "remasking or editing of unmasked tokens"
