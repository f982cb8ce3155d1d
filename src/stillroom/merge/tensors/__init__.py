"""Stored tensors: files, names of layers, and the linear algebra of task vectors."""
