"""Divergences of next-token distributions, forms of teacher targets, and the chunked LM head.

``divergence`` evaluates an objective of ``distill.methods`` (forward KL, reverse KL, JSD, ...) at
each token; ``targets`` holds the teacher's logits, top-k log-probabilities or samples; ``lm_head``
computes the student's logits chunk by chunk.
"""
