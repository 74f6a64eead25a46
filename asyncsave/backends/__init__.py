"""Who does the background work."""
