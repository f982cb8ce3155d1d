"""Training: corruption of examples, loss, preference optimization and reinforcement learning.

``masked`` draws the masking time t and masks the texts of a step, with the masking ratio of one of
``schedules`` and the mask and token weight (1/t) of one of ``corruptions``; ``stages`` decides
whether prompts are learned too (pretraining) or answers only (SFT); ``loss`` is the weighted
cross-entropy at masked tokens; ``preferences`` is VRPO and ``rollouts`` is diffu-GRPO; ``data``
makes the batches.
"""
