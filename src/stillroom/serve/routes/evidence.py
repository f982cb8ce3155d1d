"""Evidence of an answer from documents: what it was made from, signed if the server has a key."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query, Request
from fastapi.concurrency import run_in_threadpool

from stillroom.serve.errors import ApiError
from stillroom.serve.evidence import MAX_KEPT_ANSWERS
from stillroom.serve.middleware.auth import CLIENT_KEY
from stillroom.serve.openapi import StrictModel
from stillroom.serve.routing import RouteTable, ServerContext

__all__ = ["EvidenceEnvelope", "add_routes"]


class _EnvelopeSignature(StrictModel):
    keyid: str
    sig: str


class EvidenceEnvelope(StrictModel):
    """DSSE envelope of the evidence, as a file for 'stillroom verify'."""

    payload: str
    payloadType: Literal["application/vnd.in-toto+json"]  # noqa: N815  # DSSE's name
    signatures: list[_EnvelopeSignature]


def add_routes(table: RouteTable, server: ServerContext) -> None:
    """Add the route."""

    @table.add("GET", "/v1/answers/{reply}/evidence", "models", reply=EvidenceEnvelope)
    async def evidence(
        reply: str, request: Request, choice: Annotated[int, Query(ge=0)] = 0
    ) -> dict[str, Any]:
        """Return the evidence of one of the last answers, to the client that received it."""
        client = request.scope.get(CLIENT_KEY)
        seal = server.models.evidence.seal
        envelope = await run_in_threadpool(seal, reply, choice, client)
        if envelope is None:
            raise ApiError(
                404,
                f"there is no evidence of {reply[:80]!r}: the last {MAX_KEPT_ANSWERS} answers from "
                "documents are kept, for the key that asked",
                code="no_evidence",
                param="reply",
            )
        return envelope
