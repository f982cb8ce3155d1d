"""Processes inside the sandbox: bare interpreters with the standard library only.

``start`` is run by path. It enters new namespaces and forks the processes of one check: the program
written by a model (``program``), and the tests of its task (``checker``), which communicate over
pipes (``wire``, ``peer``). Each confines itself (``confinement``) before it compiles a line of its
input. The job's side is ``stillroom.evaluate.sandbox``.
"""
