"""Unmasking orders, one file each.

An order scores the masked positions; ``sampler.DiffusionSampler`` unmasks the first ones of it, as
many as the method of ``unmask_rules`` takes.
"""

REGISTRY = "ranking of masked positions for unmasking"
