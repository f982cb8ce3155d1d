"""Command line: Click commands that parse options, call one function and print its result.

``stillroom VERB`` is what is true of every room; ``stillroom NOUN VERB`` is one room's own. Results
go to standard output, talk to standard error. Commands are loaded when they are called, so that
``--help`` stays fast.
"""

from stillroom.cli.app import main, stillroom

__all__ = ["main", "stillroom"]
