"""Alignment of two tokenizations, and batches and loss of cross-tokenizer distillation.

``alignment`` finds the common chunks of teacher and student tokens; ``spans`` the bytes of each
token; ``data`` makes aligned micro-batches; ``loss`` evaluates one of the losses in
``distill.cross_tokenizer_losses`` on them; ``report`` says how well two tokenizers align.
"""
