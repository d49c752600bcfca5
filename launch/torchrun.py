"""torchrun with the job's own exit code, and without a trace behind the job's last line; it takes torchrun's options.

python launch/torchrun.py --nproc_per_node=4 launch/train.py --config configs/shop.yaml
python launch/torchrun.py --nnodes=2 --node_rank=0 --master_addr=machine-0 --nproc_per_node=2 launch/train.py \
    --config configs/shop.yaml partition.parts=2
"""

import sys

from bm3_dgl.runtime.agent import main

if __name__ == "__main__":
    main(sys.argv[1:])
