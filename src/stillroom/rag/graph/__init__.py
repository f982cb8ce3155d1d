"""Knowledge graphs derived from an index."""
