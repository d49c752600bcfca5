"""From raw interactions and item features to a checked dataset directory."""
