"""What is derived of an index: a graph of what it speaks of, and a tree of summaries."""
