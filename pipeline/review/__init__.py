"""Review: what waits for people as a queue, the page they answer on, and what becomes of their answers."""
