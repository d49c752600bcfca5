"""Results with the raw user and item ids back on them."""
