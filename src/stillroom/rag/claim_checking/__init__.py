"""Claim checker (fact checker): training and use of ``rag.checkers.trained``."""
