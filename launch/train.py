"""Train BM3. Prepares and partitions the data where that has not been done.

torchrun --nproc_per_node=4 launch/train.py --config configs/shop.yaml
torchrun --nproc_per_node=4 launch/train.py --config configs/amazon_baby.yaml data.source=DIR
python launch/train.py --config configs/shop.yaml debug=true
"""

from bm3_dgl.jobs.cli import launch_ranks
from bm3_dgl.jobs.train import main

if __name__ == "__main__":
    launch_ranks("Train BM3, or another model (model.name).", main)
