"""Command line: Click commands that parse options, call one function and print its result.

``stillroom VERB`` works on every kind of artifact or recipe; ``stillroom NOUN VERB`` belongs to one
room. Results go to standard output, messages to standard error. Commands are imported when they are
called, so that ``--help`` stays fast.
"""

from stillroom.cli.app import main, stillroom

__all__ = ["main", "stillroom"]
