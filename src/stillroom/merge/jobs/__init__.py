"""Job kinds of the room: merges of weights, choices among them, mixtures and transplants."""
