"""From a file to frames: probe, decode, stream."""
