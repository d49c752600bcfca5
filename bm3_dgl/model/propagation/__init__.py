"""LightGCN propagation and its gradient, by either engine."""
