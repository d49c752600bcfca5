"""Write a trained run's top-K lists and embeddings, and print some users' lists. The run's own settings hold.

python launch/recommend.py run.dir=runs/shop
python launch/recommend.py run.dir=runs/shop recommend.top_k=50 --users U00001,U00002
"""

from bm3_dgl.jobs.cli import launch, run_command_line
from bm3_dgl.jobs.recommend import main

if __name__ == "__main__":
    launch("Write a trained run's top-K lists and embeddings.", main, parse=run_command_line)
