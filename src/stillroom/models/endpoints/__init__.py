"""OpenAI-compatible HTTP endpoints: client, transport, reranking, load balancing."""
