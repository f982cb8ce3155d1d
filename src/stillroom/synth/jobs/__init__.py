"""Job kinds of the room."""
