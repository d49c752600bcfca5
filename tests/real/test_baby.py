"""Amazon Baby with the published split, read from outside of this project.

Collected only where the directory in BM3_REAL_DATA, or shared/data beside the repository, has it. The same reading of a
made-up source is in tests/unit/data/test_mmrec.py and test_prepare.py.
"""

from __future__ import annotations

import os
from pathlib import Path

from bm3_dgl.config.load import load_config
from bm3_dgl.data.prepare import prepare
from bm3_dgl.types import Split

REPOSITORY = Path(__file__).resolve().parents[2]
BABY = Path(os.environ.get("BM3_REAL_DATA") or REPOSITORY.parent / "shared" / "data") / "baby"

if BABY.is_dir():

    def test_real_baby_has_the_published_counts(tmp_path: Path) -> None:
        config = load_config(
            str(REPOSITORY / "configs" / "amazon_baby_standin.yaml"), [f"data.source={BABY}", f"data.dir={tmp_path / 'baby'}"]
        )
        dataset = prepare(config)
        assert dataset.manifest["counts"] == {
            "users": 19445, "items": 7050, "interactions": 160792, "train": 118551, "valid": 20559, "test": 21682,
        }  # fmt: skip
        assert dataset.feature("visual").shape == dataset.feature("text").shape == (7050, 128)
        assert dataset.raw_item_ids()[:2] == ["097293751X", "9729375011"]
        assert dataset.raw_user_ids()[0] == "A1HK2FQW6KXQB2"
        assert sum(title is not None for title in dataset.titles()) == 3416
        assert dataset.titles()[0] == "Baby Tracker® - Daily Childcare Journal, Schedule Log"
        users, items = dataset.interactions(Split.train)
        assert (users[:3].tolist(), items[:3].tolist()) == ([0, 0, 0], [1587, 1879, 0])

    def test_preparing_baby_from_its_interactions_gives_the_published_counts(tmp_path: Path) -> None:
        """The published k-core is a fixed point, and its users' item lists split into the published sizes."""
        source = tmp_path / "source"
        source.mkdir()
        (source / "log.tsv").write_bytes((BABY / "baby.inter").read_bytes())
        (source / "items.jsonl").write_bytes((BABY / "items.jsonl").read_bytes())
        keys = ["data.format=tables", "data.interactions=log.tsv", "tables.user=userID", "tables.item=itemID"]
        keys += ["tables.items=items.jsonl", "tables.title=title", "tables.text=[title,description]", "tables.image=imUrl"]
        dataset = prepare(load_config(None, [*keys, f"data.source={source}", f"data.dir={tmp_path / 'baby'}"]))
        assert dataset.manifest["counts"] == {
            "users": 19445, "items": 7050, "interactions": 160792, "train": 118551, "valid": 20559, "test": 21682,
        }  # fmt: skip
        steps = {step["step"]: step for step in dataset.manifest["steps"]}
        assert steps["k-core"]["rounds"] == 0
        assert sum(title is not None for title in dataset.titles()) == 3416
