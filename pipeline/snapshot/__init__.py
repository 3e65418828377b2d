"""Snapshots: frozen training sets of an output's labels, their data card, and the torch Dataset that reads them."""
