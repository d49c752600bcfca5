"""The modality `image`: one vector per item, made of its picture by a torchvision model. Needs the extra `[image]`.

    encode.image          name of one of torchvision's classification models, such as resnet50 (2048 columns)
    encode.image_weights  its weights as safetensors, under torchvision's own names; nothing is downloaded or unpickled
    encode.image_dir      <raw item id>.jpg, .jpeg, .png, .webp, .gif or .bmp, also in capitals

A vector is what goes into the model's last linear layer, the classifier, which is left out; the weights may hold it or
not. Pictures are scaled, cut and normalised as torchvision does for the model's newest weights.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bm3_dgl.config.schema import EncodeConfig
from bm3_dgl.data.dataset import file_hash
from bm3_dgl.data.encode import Column, write_rows
from bm3_dgl.data.mistakes import Mistake, Mistakes
from bm3_dgl.errors import ConfigError, DataError

_SUFFIXES = [suffix for name in ("jpg", "jpeg", "png", "webp", "gif", "bmp") for suffix in (f".{name}", f".{name.upper()}")]
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_FORWARD_BATCH = 32  # pictures


def encode_image(items: Column, target: Path, config: EncodeConfig, dtype: np.dtype, mistakes: Mistakes) -> np.ndarray:
    """Write `target`, a .npy file (num_items, width), from the pictures of the items (see encode.py for resuming).

    Returns bool (num_items,): items with a picture. Raises ConfigError for a model, weights or directory that are not
    there, DataError when no item has a picture and, when strict, for a picture that cannot be read.
    """
    encoder = PictureEncoder(config, skip=mistakes.skip)
    found = write_rows(items, "raw_item_id", target, encoder, dtype)
    encoder.list_unreadable(items, found, mistakes)
    return found


def image_settings(config: EncodeConfig) -> dict[str, str]:
    """Key -> value of what decides about the rows. Raises ConfigError for weights or a directory that are not there."""
    weights, directory = _weights_file(config), _picture_directory(config)
    digest = hashlib.sha256()
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        stat = entry.stat()
        digest.update(f"{entry.name} {stat.st_size} {stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return {
        "encode.image": config.image,
        "encode.image_weights": file_hash(weights)[:16],
        "encode.image_dir": digest.hexdigest()[:16],
    }


class PictureEncoder:
    """A torchvision model without its classifier, over the pictures of a directory."""

    batch = _FORWARD_BATCH

    def __init__(self, config: EncodeConfig, *, skip: bool) -> None:
        """skip: an item whose picture cannot be read goes without."""
        if importlib.util.find_spec("torchvision") is None:
            raise ConfigError(
                f"encode.image={config.image}: needs the extra [image]: pip install -c constraints.txt -e '.[image]'"
            )
        self._directory, self._skips = _picture_directory(config), skip
        self._model, self._scaled = _load_model(config)
        with torch.inference_mode():
            self.width = int(self._model(torch.zeros(1, 3, 224, 224)).shape[1])
        self.identity = " ".join(image_settings(config).values())

    def rows(self, inputs: list[str | None]) -> tuple[np.ndarray, np.ndarray]:
        """inputs: raw item ids. found, bool (n,), and the vectors of the pictures there, float32 (found.sum(), width)."""
        pictures = [self._picture(raw_item_id) for raw_item_id in inputs]
        found = np.array([picture is not None for picture in pictures], dtype=bool)
        there = [picture for picture in pictures if picture is not None]
        if not there:
            return found, np.empty((0, self.width), np.float32)
        with torch.inference_mode():
            return found, self._model(torch.stack(there)).float().numpy()

    def list_unreadable(self, items: Column, found: np.ndarray, mistakes: Mistakes) -> None:
        """Tell `mistakes` of pictures that are there and were left out, in this call or in one that was interrupted.

        found: bool (num_items,), items with a row.
        """
        index = 0
        for batch in items.batches("raw_item_id"):
            for raw_item_id in batch:
                path = None if found[index] else _find_picture(self._directory, raw_item_id)
                if path is not None:
                    mistakes.at(path, "item", index, str(_read_picture(path)))
                index += 1

    def _picture(self, raw_item_id: str | None) -> Tensor | None:
        """The item's picture, scaled and normalised: float32 (3, height, width); None where there is none."""
        path = _find_picture(self._directory, raw_item_id)
        if path is None:
            return None
        picture = _read_picture(path)
        if isinstance(picture, Mistake):
            if not self._skips:
                raise DataError(f"{path}: {picture}; mend or remove it, or set data.on_error=skip")
            return None
        return self._scaled(picture)


def _load_model(config: EncodeConfig) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """The model with its weights, without its classifier, and what turns a picture into its input."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from torchvision import models

    names = models.list_models(module=models)
    if config.image not in names:
        raise ConfigError(f"encode.image={config.image}: torchvision has no such model; it has {', '.join(names)}")
    try:
        state = load_file(_weights_file(config))
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"encode.image_weights={config.image_weights}: is no file of safetensors ({error})") from None
    model = models.get_model(config.image, weights=None)
    classifier = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)][-1]
    parent, _, name = classifier.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.Identity())
    try:
        model.load_state_dict({key: value for key, value in state.items() if not key.startswith(f"{classifier}.")})
    except RuntimeError as error:
        first = " ".join(str(error).splitlines()[1].split())
        raise ConfigError(f"encode.image_weights={config.image_weights}: are not of {config.image} ({first[:200]})") from None
    return model.eval(), models.get_model_weights(config.image).DEFAULT.transforms()


def _find_picture(directory: Path, raw_item_id: str | None) -> Path | None:
    if not raw_item_id or os.sep in raw_item_id or "\0" in raw_item_id:
        return None  # an id that cannot name a file in the directory
    candidates = (directory / f"{raw_item_id}{suffix}" for suffix in _SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def _read_picture(path: Path) -> Any:
    """A PIL image in RGB, turned upright where it says how, or a Mistake for what is no picture or is far too large."""
    from PIL import Image, ImageOps

    try:
        # Some formats that PIL knows are programs, which it hands to an interpreter.
        with Image.open(path, formats=_FORMATS) as picture:
            try:
                upright = ImageOps.exif_transpose(picture)
            except Exception:  # notes that are damaged, in a picture that need not be
                upright = picture
            return upright.convert("RGB")
    except Exception as error:  # whatever a damaged file makes PIL raise
        reason = str(error).replace(f" {str(path)!r}", "") or type(error).__name__
        return Mistake(f"is no picture that can be read ({reason})")


def _weights_file(config: EncodeConfig) -> Path:
    if not config.image_weights:
        raise ConfigError(
            f"encode.image_weights is empty: encode.image={config.image} needs a file with its weights, as safetensors"
        )
    if not Path(config.image_weights).is_file():
        raise ConfigError(f"encode.image_weights={config.image_weights}: no such file; it holds the weights as safetensors")
    return Path(config.image_weights)


def _picture_directory(config: EncodeConfig) -> Path:
    if not config.image_dir or not Path(config.image_dir).is_dir():
        raise ConfigError(f"encode.image_dir={config.image_dir}: no such directory; it holds one picture per item id")
    return Path(config.image_dir)
