"""Teachers of a job: local checkpoints, servers, and ensembles of both."""
