"""What the clients of the load ask."""

QUESTION = "Tell me in a few sentences what a {} is, and where one is found."
THINGS = ("river", "mill", "still", "copper", "lemon", "compass", "harbour", "bakery", "orchard")
TOKENS = 16
