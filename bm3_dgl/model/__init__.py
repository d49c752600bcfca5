"""The equations of BM3: pure torch, run without a cluster."""
