"""Opening the endpoint that a recipe's teacher stands behind.

A key goes only where nobody on the way can read it.
"""

from __future__ import annotations

from stillroom.distill.teacher_settings import ServerTeacher
from stillroom.errors import RecipeError
from stillroom.models.addresses import is_safe_for_keys
from stillroom.models.endpoint import Endpoint, Patience

__all__ = ["open_endpoint", "refuse_open_key"]


def refuse_open_key(settings: ServerTeacher) -> None:
    """Refuse to send a key where others could read it.

    Raises:
        RecipeError: If there is a key, and the address is plain http on another machine.
    """
    if settings.api_key is not None and not is_safe_for_keys(settings.endpoint):
        raise RecipeError(
            f"{settings.endpoint} is plain http to another machine: a key would be read on the way",
            code="distill.server-key",
            where="teacher.api_key",
            expected="https, or this machine",
            next="use https, or leave api_key out",
        )


def open_endpoint(settings: ServerTeacher) -> Endpoint:
    """Open the connections to a teacher's server, with the recipe's patience.

    Raises:
        RecipeError: If the key would go over plain http to another machine.
    """
    refuse_open_key(settings)
    return Endpoint(
        settings.endpoint,
        api_key=settings.api_key.reveal() if settings.api_key else "",
        patience=Patience(
            tries=settings.tries,
            read_timeout_s=settings.timeout,
            max_wait_s=settings.max_wait,
            concurrency=settings.concurrency,
        ),
    )
