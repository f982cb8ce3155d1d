"""Processes inside the sandbox: bare interpreters with the standard library alone.

``start`` is run by path. It enters namespaces of its own (``view``) and forks the processes of one
check: the program that a model wrote (``program``), and the tests of its task (``examiner``), which
speak over pipes (``wire``, ``peer``). Each closes its doors (``doors``, ``system_calls``) before it
compiles a line that it was given. The job's side is ``stillroom.evaluate.sandbox``.
"""
