"""Published data sets in their published layouts, as frames with masks, read lazily and video by video."""
