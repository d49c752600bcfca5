"""Judge a trained run again, from its checkpoint. The run's own settings hold; only key=value changes them.

python launch/evaluate.py run.dir=runs/shop
torchrun --nproc_per_node=4 launch/evaluate.py run.dir=runs/shop evaluate.cutoffs=[5,50]
"""

from bm3_dgl.jobs.cli import launch_ranks, run_command_line
from bm3_dgl.jobs.evaluate import main

if __name__ == "__main__":
    launch_ranks("Judge a trained run again, from its checkpoint.", main, parse=run_command_line)
