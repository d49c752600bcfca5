"""The modality `image`: one vector per item, made of its picture by a torchvision model. Needs the extra `[image]`.

    encode.image          name of one of torchvision's classification models, such as resnet50 (2048 columns)
    encode.image_weights  its weights as safetensors, under torchvision's own names; nothing is downloaded or unpickled
    encode.image_dir      <raw item id>.jpg, .jpeg, .png, .webp, .gif or .bmp, also in capitals

A vector is what goes into the model's last linear layer, the classifier, which is left out; the weights may hold it or
not. Pictures are scaled, cut and normalised as torchvision does for the model's newest weights.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bm3_dgl.config.schema import EncodeConfig, OnError
from bm3_dgl.data.dataset import file_hash
from bm3_dgl.data.encode import Column, write_rows
from bm3_dgl.errors import ConfigError, DataError
from bm3_dgl.log import logger

_SUFFIXES = [suffix for name in ("jpg", "jpeg", "png", "webp", "gif", "bmp") for suffix in (f".{name}", f".{name.upper()}")]
_FORWARD_BATCH = 32  # pictures


def encode_image(
    items: Column, target: Path, config: EncodeConfig, dtype: np.dtype, *, on_error: OnError = OnError.strict
) -> np.ndarray:
    """Write `target`, a .npy file (num_items, width), from the pictures of the items (see encode.py for resuming).

    Returns bool (num_items,): items with a picture. Raises ConfigError for a model, weights or directory that are not
    there, DataError when no item has a picture and, when strict, for a picture that cannot be read.
    """
    return write_rows(items, "raw_item_id", target, PictureEncoder(config, on_error), dtype)


class PictureEncoder:
    """A torchvision model without its classifier, over the pictures of a directory."""

    batch = _FORWARD_BATCH

    def __init__(self, config: EncodeConfig, on_error: OnError) -> None:
        if importlib.util.find_spec("torchvision") is None:
            raise ConfigError(
                f"encode.image={config.image}: needs the extra [image]: pip install -c constraints.txt -e '.[image]'"
            )
        self._directory, self._skips = Path(config.image_dir), on_error is OnError.skip
        if not config.image_dir or not self._directory.is_dir():
            raise ConfigError(f"encode.image_dir={config.image_dir}: no such directory; it holds one picture per item id")
        self._model, self._scaled = _load_model(config)
        with torch.inference_mode():
            self.width = int(self._model(torch.zeros(1, 3, 224, 224)).shape[1])
        self.identity = f"{config.image} {file_hash(Path(config.image_weights))[:16]}"

    def rows(self, inputs: list[str | None]) -> tuple[np.ndarray, np.ndarray]:
        """inputs: raw item ids. found, bool (n,), and the vectors of the pictures there, float32 (found.sum(), width)."""
        pictures = [self._picture(raw_item_id) for raw_item_id in inputs]
        found = np.array([picture is not None for picture in pictures], dtype=bool)
        there = [picture for picture in pictures if picture is not None]
        if not there:
            return found, np.empty((0, self.width), np.float32)
        with torch.inference_mode():
            return found, self._model(torch.stack(there)).float().numpy()

    def _picture(self, raw_item_id: str | None) -> Tensor | None:
        """The item's picture, scaled and normalised: float32 (3, height, width); None where there is none."""
        path = _find_picture(self._directory, raw_item_id)
        if path is None:
            return None
        try:
            return self._scaled(_read_picture(path))
        except (OSError, ValueError, SyntaxError) as error:  # what PIL raises for a damaged file
            reason = str(error).replace(f" {str(path)!r}", "") or type(error).__name__
            if not self._skips:
                raise DataError(
                    f"{path}: is no picture that can be read ({reason}); mend or remove it, or set data.on_error=skip"
                ) from None
            logger.warning("%s: is no picture that can be read (%s); the item goes without", path, reason)
            return None


def _load_model(config: EncodeConfig) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """The model with its weights, without its classifier, and what turns a picture into its input."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from torchvision import models

    names = models.list_models(module=models)
    if config.image not in names:
        raise ConfigError(f"encode.image={config.image}: torchvision has no such model; it has {', '.join(names)}")
    if not config.image_weights:
        raise ConfigError(
            f"encode.image_weights is empty: encode.image={config.image} needs a file with its weights, as safetensors"
        )
    try:
        state = load_file(config.image_weights)
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
    """A PIL image in RGB, turned upright. Raises OSError, ValueError or SyntaxError for what is none or is far too large."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from None
