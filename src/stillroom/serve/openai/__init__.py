"""OpenAI-compatible API: request bodies, replies, streams and handlers."""
