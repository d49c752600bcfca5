"""bm3_dgl: distributed training of BM3, the bootstrapped multi-modal recommender, on DGL's graph store."""

__version__ = "0.1.0"
