"""Run a declared set of trainings, as many at a time as fit, and compare them. Called again, it goes on where it ended.

python launch/study.py --config configs/study_demo.yaml
python launch/study.py --config configs/study_modalities.yaml data.source=DIR
python launch/study.py --config configs/study_layers.yaml data.source=DIR study.seeds=[1] study.parallel=2
"""

from pathlib import Path

from bm3_dgl.jobs.cli import launch
from bm3_dgl.jobs.study import StudyJob
from bm3_dgl.study.declare import command_line

if __name__ == "__main__":
    launch("Run a declared set of trainings and compare them.", StudyJob(Path(__file__).parent).main, parse=command_line)
