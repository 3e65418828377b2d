"""masksieve: from raw video drops to pseudo-labels that can be trusted."""
