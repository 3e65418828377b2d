"""Object storage: one store, atomic publishing."""
