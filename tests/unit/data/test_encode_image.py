"""Pictures to vectors by a torchvision model with random weights. Needs the extra `[image]`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from bm3_dgl.config.schema import EncodeConfig
from bm3_dgl.data.encode_image import encode_image, image_settings
from bm3_dgl.data.mistakes import Mistakes
from bm3_dgl.errors import ConfigError, DataError
from tests.unit.data.test_encode import Items

FLOAT32 = np.dtype(np.float32)
IDS: list[str | None] = ["B01", "B02", "gone", "B03", "../B01", "B04"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from safetensors.torch import save_file

    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(torchvision.models.resnet18(weights=None).state_dict(), path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """B01 to B04, each of another format and colour mode."""
    directory = tmp_path / "pictures"
    directory.mkdir()
    pixels = np.random.default_rng(5).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for name, mode in {"B01.png": "RGB", "B02.JPG": "L", "B03.gif": "P", "B04.webp": "RGBA"}.items():
        Image.fromarray(np.roll(pixels, ord(name[2]) * 7, axis=0)).convert(mode).save(directory / name)
    Image.fromarray(pixels).save(tmp_path / "B01.png")  # outside: no item's, whatever its id
    return directory


def settings(weights: Path, pictures: Path, **changes: str) -> EncodeConfig:
    return EncodeConfig(**{"image": "resnet18", "image_weights": str(weights), "image_dir": str(pictures), **changes})


def by_hand(weights: Path, paths: list[Path]) -> np.ndarray:
    """What the average pooling of the model gives, caught by a hook, for one picture at a time."""
    from safetensors.torch import load_file

    model = torchvision.models.resnet18(weights=None)
    model.load_state_dict(load_file(weights))
    model.eval()
    caught: list[torch.Tensor] = []
    model.avgpool.register_forward_hook(lambda layer, inputs, output: caught.append(output.flatten()))
    scaled = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    for path in paths:
        with torch.no_grad():
            model(scaled(Image.open(path).convert("RGB"))[None])
    return torch.stack(caught).numpy()


def test_what_goes_into_the_classifier_and_the_mean_for_the_rest(weights: Path, pictures: Path, tmp_path: Path) -> None:
    target = tmp_path / "image.npy"
    found = encode_image(Items(IDS), target, settings(weights, pictures), FLOAT32, Mistakes(False))
    rows = np.load(target, allow_pickle=False)
    expected = by_hand(weights, [pictures / name for name in ("B01.png", "B02.JPG", "B03.gif", "B04.webp")])
    assert found.tolist() == [True, True, False, True, False, True]
    assert rows.shape == (6, 512)
    np.testing.assert_allclose(rows[found], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rows[~found], np.stack([expected.mean(axis=0)] * 2), rtol=1e-4, atol=1e-5)


def test_pictures_are_turned_upright(weights: Path, pictures: Path, tmp_path: Path) -> None:
    picture = Image.open(pictures / "B01.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees for viewing
    picture.transpose(Image.Transpose.ROTATE_90).save(pictures / "B05.png", exif=exif)
    encode_image(Items(["B01", "B05"]), tmp_path / "image.npy", settings(weights, pictures), FLOAT32, Mistakes(False))
    rows = np.load(tmp_path / "image.npy", allow_pickle=False)
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-4, atol=1e-5)


def test_weights_with_another_classifier_or_none_will_do(weights: Path, pictures: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(weights)
    save_file({**state, "fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)}, tmp_path / "seven.safetensors")
    save_file({key: value for key, value in state.items() if not key.startswith("fc.")}, tmp_path / "none.safetensors")
    rows = []
    for name in (weights, tmp_path / "seven.safetensors", tmp_path / "none.safetensors"):
        encode_image(
            Items(["B01", "B02"]),
            tmp_path / f"{name.stem}.npy",
            settings(name, pictures),
            np.dtype(np.float32),
            Mistakes(False),
        )
        rows.append(np.load(tmp_path / f"{name.stem}.npy", allow_pickle=False))
    assert (rows[0] == rows[1]).all() and (rows[0] == rows[2]).all()


def text_file(path: Path) -> None:
    path.write_text("no picture")


def cut_short(path: Path) -> None:
    path.write_bytes(path.with_name("B02.JPG").read_bytes()[:-200])


def bomb(path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(path)


@pytest.mark.parametrize(
    "damage, reason",
    [
        (text_file, "cannot identify image file"),
        (cut_short, "image file is truncated"),
        (bomb, "400000000 pixels|20000 x 20000"),
    ],
)
def test_pictures_that_cannot_be_read(weights: Path, pictures: Path, tmp_path: Path, damage: object, reason: str) -> None:
    damage(pictures / "B01.png")  # type: ignore[operator]
    config, dtype = settings(weights, pictures), np.dtype(np.float32)
    with pytest.raises(
        DataError, match=rf"B01.png: is no picture that can be read \(.*({reason}).*data.on_error=skip"
    ) as caught:
        encode_image(Items(IDS), tmp_path / "image.npy", config, dtype, Mistakes(False))
    assert "\n" not in str(caught.value)
    skipped = Mistakes(True)
    found = encode_image(Items(IDS), tmp_path / "image.npy", config, dtype, skipped)
    assert found.tolist() == [False, True, False, True, False, True]
    (listed,) = skipped.listed
    assert skipped.count == 1 and listed["item"] == 0 and listed["file"].endswith("B01.png")
    assert "is no picture that can be read" in listed["reason"]


def test_refuses_wrong_settings(weights: Path, pictures: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.save({"a": 1}, tmp_path / "pickled.pth")
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    wrong = [
        ({"image": "resnet81"}, r"encode.image=resnet81: torchvision has no such model; .*resnet18"),
        ({"image_weights": ""}, r"encode.image_weights is empty: encode.image=resnet18 needs a file with its weights"),
        ({"image_weights": "/no/such"}, r"encode.image_weights=/no/such: no such file"),
        ({"image_weights": str(tmp_path / "pickled.pth")}, r"pickled.pth: is no file of safetensors"),
        ({"image_weights": str(tmp_path / "other.safetensors")}, r"other.safetensors: are not of resnet18 \("),
        ({"image": "resnet50"}, r"are not of resnet50 \("),
        ({"image_dir": ""}, r"encode.image_dir=: no such directory"),
        ({"image_dir": "/no/such"}, r"encode.image_dir=/no/such: no such directory"),
    ]
    for changes, message in wrong:
        with pytest.raises(ConfigError, match=message) as caught:
            encode_image(
                Items(IDS),
                tmp_path / "image.npy",
                settings(weights, pictures, **changes),
                np.dtype(np.float32),
                Mistakes(False),
            )
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, width", [("vit_b_32", 768), ("mobilenet_v3_small", 1024), ("convnext_tiny", 768), ("alexnet", 4096)]
)
def test_other_families(pictures: Path, tmp_path: Path, name: str, width: int) -> None:
    from safetensors.torch import save_file

    save_file(torchvision.models.get_model(name, weights=None).state_dict(), tmp_path / "w.safetensors")
    config = settings(tmp_path / "w.safetensors", pictures, image=name)
    encode_image(Items(["B01"]), tmp_path / "image.npy", config, FLOAT32, Mistakes(False))
    assert np.load(tmp_path / "image.npy", allow_pickle=False).shape == (1, width)


def test_a_picture_with_damaged_notes_is_read_as_it_stands(weights: Path, pictures: Path, tmp_path: Path) -> None:
    with Image.open(pictures / "B01.png") as picture:
        plain = picture.convert("RGB")
    plain.save(pictures / "B05.png", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\x7f\x06")
    encode_image(Items(["B01", "B05"]), tmp_path / "image.npy", settings(weights, pictures), FLOAT32, Mistakes(False))
    rows = np.load(tmp_path / "image.npy", allow_pickle=False)
    np.testing.assert_allclose(rows[0], rows[1], rtol=1e-4, atol=1e-5)


def test_a_program_that_calls_itself_a_picture_is_refused(weights: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "B01.png").unlink()
    (pictures / "B01.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(DataError, match=r"B01.jpg: is no picture that can be read"):
        encode_image(Items(IDS), tmp_path / "image.npy", settings(weights, pictures), FLOAT32, Mistakes(False))


def test_settings_tell_weights_and_pictures(weights: Path, pictures: Path) -> None:
    config = settings(weights, pictures)
    before = image_settings(config)
    assert image_settings(config) == before
    (pictures / "B01.png").write_bytes((pictures / "B02.JPG").read_bytes())
    other_pictures = image_settings(config)
    assert other_pictures["encode.image_dir"] != before["encode.image_dir"]
    weights.write_bytes(weights.read_bytes() + b" ")
    assert image_settings(config)["encode.image_weights"] != before["encode.image_weights"]
