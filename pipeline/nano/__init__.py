"""Videos with exact truth, and the embedded model trained on them."""
