"""Routes: a file of each holds what it takes, what it replies, and its handler.

``ROUTES`` lists them in the order of the OpenAPI description.
"""

from stillroom.serve.routes import (
    answers,
    chat_completions,
    completions,
    embeddings,
    forensics_check,
    job_events,
    job_files,
    jobs,
    judgments,
    models,
    recipes,
    rerank,
    responses,
    status,
    workspace,
)

__all__ = ["ROUTES"]

ROUTES = (
    status,
    models,
    chat_completions,
    responses,
    completions,
    embeddings,
    rerank,
    answers,
    judgments,
    recipes,
    workspace,
    jobs,
    job_events,
    job_files,
    forensics_check,
)
