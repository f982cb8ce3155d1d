"""Addresses of endpoints: their parts, who on the way may read a key, and the proxy."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from stillroom.errors import BackendError

__all__ = ["is_safe_for_keys", "proxy_for", "split_address"]


def split_address(reference: str) -> tuple[str, str]:
    """Return address and model name of ``http://host/v1#name``.

    Raises:
        BackendError: If the address has no host, or carries a user or password.
    """
    address, _, model = reference.partition("#")
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc:
        raise BackendError(
            f"{parts.scheme}://{parts.hostname or ''} is not an endpoint's address",
            code="backend.address",
            expected="http://host:port/v1#model, without user or password",
            next="correct the address; keys go into the environment (api_key_env)",
        )
    return address.rstrip("/"), model


@lru_cache(maxsize=64)
def is_safe_for_keys(address: str) -> bool:
    """Whether nobody on the way can read a key: https, or this very machine."""
    parts = urlsplit(address)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def proxy_for(url: str) -> str | None:
    """Return the environment's proxy for an address; none for plain HTTP on this machine."""
    parts = urlsplit(url)
    if is_safe_for_keys(url) and parts.scheme == "http":
        return None
    if proxy_bypass(parts.hostname or ""):
        return None
    return getproxies().get(parts.scheme)
