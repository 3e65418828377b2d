"""Pictures of a labelled video: overlay film, timeline, contact sheet."""
