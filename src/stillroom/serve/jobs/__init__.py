"""Jobs of clients: routes, runner, worker processes and their isolation."""
