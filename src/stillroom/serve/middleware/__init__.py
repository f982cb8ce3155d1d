"""Middleware and request admission: authentication, metrics and concurrency limits."""
