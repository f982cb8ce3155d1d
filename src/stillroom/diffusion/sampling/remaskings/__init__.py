"""Remasking rules, one file each. LLaDA's ``low_confidence`` is ``unmask_orders.confidence``."""

REGISTRY = "remasking or editing of unmasked tokens"
