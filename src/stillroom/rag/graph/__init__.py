"""Knowledge graphs and summary trees derived from an index."""
