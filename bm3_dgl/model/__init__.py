"""The models: what one is to the job, and a file per model with its equations in pure torch, run without a cluster."""
