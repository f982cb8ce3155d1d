"""Trainers by kind of teacher: local, offline, on-policy and cross-tokenizer."""
