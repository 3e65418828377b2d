"""Prefect flows: they schedule the pipeline's functions and hold no logic of their own."""
