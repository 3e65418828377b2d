"""Videos with exact truth, and the embedded models trained on them."""
