"""One job per file: wiring only. `launch/` calls them."""
