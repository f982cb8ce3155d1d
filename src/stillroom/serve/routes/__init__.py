"""Routes: a file of each holds what it takes, what it replies, and its handler.

``ROUTES`` lists them in the order of the OpenAPI description.
"""

from stillroom.serve.routes import (
    chat_completions,
    completions,
    embeddings,
    forensics_check,
    job_events,
    job_files,
    jobs,
    judgments,
    models,
    recipe_check,
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
    judgments,
    recipes,
    recipe_check,
    workspace,
    jobs,
    job_events,
    job_files,
    forensics_check,
)
