"""USAM: how wrong each SAM2 mask probably is, and why (Kaiser et al., ICML 2025)."""
