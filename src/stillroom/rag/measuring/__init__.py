"""How well an index is searched and read: judged queries, questions, sweeps, fusion learned."""
