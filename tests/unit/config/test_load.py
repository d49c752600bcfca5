"""The configuration door: what it lets in, and the one line with which it turns away everything else."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from bm3_dgl.config import JobConfig, load_config, save_config
from bm3_dgl.config.fields import describe, walk, words
from bm3_dgl.config.load import check, command_line, parser_with_keys
from bm3_dgl.config.schema import Engine, Features, LossTerm, Objective
from bm3_dgl.errors import ConfigError

CONFIGS = Path(__file__).parents[3] / "configs"

# Launchers, manifests and documents use these spellings: renaming one breaks them.
PUBLIC_KEYS = """
run.dir data.dir train.seed train.resume train.device train.epochs train.batch_size train.learning_rate train.patience
model.embedding_dim model.layers model.dropout model.reg_weight model.cl_weight model.objective propagation.engine
propagation.fanouts model.features data.modalities data.features data.source evaluate.cutoffs
""".split()


def refusal(*overrides: str, file: Path | None = None) -> str:
    """The message with which the door refuses; always one line of a length that one can read."""
    with pytest.raises(ConfigError) as caught:
        load_config(None if file is None else str(file), overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def get(config: JobConfig, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value


# What is let in


def test_without_file_and_overrides_the_defaults_stand() -> None:
    assert load_config() == JobConfig()


def test_file_overrides_defaults_and_command_line_overrides_file(tmp_path: Path) -> None:
    file = written(tmp_path, "train:\n  epochs: 7\n  patience: 3\n")
    config = load_config(str(file), ["train.epochs=9"])
    assert (config.train.epochs, config.train.patience, config.train.batch_size) == (9, 3, JobConfig().train.batch_size)


def test_the_last_of_two_overrides_counts() -> None:
    assert load_config(None, ["train.epochs=1", "train.epochs=2"]).train.epochs == 2


@pytest.mark.parametrize("text", ["", "# nothing\n", "train:\n", "train:\n  # epochs: 3\nmodel:\n"])
def test_empty_files_and_sections_change_nothing(tmp_path: Path, text: str) -> None:
    assert load_config(str(written(tmp_path, text))) == JobConfig()


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.resume=true", True),
        ("train.resume=False", False),
        ("train.epochs=12", 12),
        ("train.learning_rate=1e-3", 1e-3),
        ("train.learning_rate=.5", 0.5),
        ("train.learning_rate=1", 1.0),
        ("model.objective=paper", Objective.paper),
        ("model.features=trainable", Features.trainable),
        ("model.losses=[masking,reconstruction]", [LossTerm.masking, LossTerm.reconstruction]),
        ("propagation.fanouts=[10,10,-1]", [10, 10, -1]),
        ("evaluate.monitor=10", 10),
        ("evaluate.monitor=null", None),
        ("data.modalities=null", None),
        ("data.modalities=[]", []),
        ("data.modalities=[text]", ["text"]),
        ("data.features={text: a.npy}", {"text": "a.npy"}),
        ("data.features.text=a.npy", "a.npy"),
        ("data.source=", ""),
        ("data.source=a: b # c", "a: b # c"),
        ("data.source=x=y", "x=y"),
        ("data.dir=2024", "2024"),
        ("recommend.users=[0012,no,1e3,'null']", ["0012", "no", "1e3", "null"]),
        ("run.dir=runs/layers-${model.layers}", "runs/layers-1"),
    ],
)
def test_a_value_is_read_as_the_type_of_its_setting(override: str, value: Any) -> None:
    read = get(load_config(None, [override]), override.partition("=")[0])
    assert read == value
    assert type(read) is type(value)


def test_a_file_reads_text_as_text_where_yaml_would_guess(tmp_path: Path) -> None:
    file = written(tmp_path, "data: {dir: 2024-01-01, source: no}\nrecommend: {users: [007, 1:30, on]}\n")
    config = load_config(str(file))
    assert (config.data.dir, config.data.source, config.recommend.users) == ("2024-01-01", "no", ["007", "1:30", "on"])


def test_names_are_added_to_a_mapping_and_lists_are_replaced(tmp_path: Path) -> None:
    file = written(tmp_path, "data: {features: {visual: v.npy}}\nevaluate: {cutoffs: [5, 20]}\n")
    config = load_config(str(file), ["data.features.text=t.npy", "evaluate.cutoffs=[50]"])
    assert config.data.features == {"visual": "v.npy", "text": "t.npy"}
    assert config.evaluate.cutoffs == [50]


def test_two_configs_share_no_list() -> None:
    first = load_config()
    first.evaluate.cutoffs.append(50)
    assert load_config().evaluate.cutoffs == [10, 20]


# Unknown keys


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("train.epoch=3", "did you mean train.epochs?"),
        ("train.layers=2", "did you mean model.layers?"),
        ("layers=2", "did you mean model.layers?"),
        ("trian.seed=2", "did you mean train?"),
        ("seed=3", "did you mean shop.seed or partition.seed or train.seed?"),
        ("train..epochs=3", "unknown key train."),
        ("zzz=3", "unknown key zzz (allowed at the top: debug, run, data,"),
        ("train.zzz=3", "(allowed here: seed, resume,"),
    ],
)
def test_unknown_key_names_what_was_meant_and_what_is_allowed(override: str, meant: str) -> None:
    message = refusal(override)
    assert message.startswith("command line: unknown key ")
    assert meant in message
    assert "(allowed " in message


def test_unknown_key_in_a_file_names_file_and_line(tmp_path: Path) -> None:
    file = written(tmp_path, "train:\n  epochs: 3\n  layers: 2\n")
    assert f"--config {file}, line 3: unknown key train.layers; did you mean model.layers?" in refusal(file=file)


# Wrong types


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs=3.5", "train.epochs=3.5: expected a whole number."),
        ("train.epochs=1e3", "expected a whole number."),
        ("train.epochs=ten", "expected a whole number."),
        ("train.epochs=true", "expected a whole number."),
        ("train.epochs=null", "train.epochs=null: expected a whole number."),
        ("train.epochs=", "train.epochs=: expected a whole number."),
        ("train.epochs=[3]", "train.epochs=[3]: expected a whole number."),
        ("train.epochs=" + "9" * 5000, "expected a whole number."),
        ("train.epochs.x=3", "train.epochs={x: 3}: expected a whole number."),
        ("train.learning_rate=fast", "expected a number."),
        ("train.learning_rate=nan", "train.learning_rate=nan: expected a number."),
        ("train.learning_rate=.inf", "expected a number."),
        ("train.resume=yes", "train.resume=yes: expected true or false."),
        ("train.resume=1", "expected true or false."),
        ("run.dir=null", "run.dir=null: expected text."),
        ("run.dir=???", "run.dir=???: expected text."),
        ("model.objective=Paper", "model.objective=Paper: expected one of reference, paper."),
        ("model.losses=[reg]", "expected a list of elements out of reconstruction, alignment, masking."),
        ("model.losses=null", "model.losses=null: expected a list of"),
        ("evaluate.cutoffs=10", "evaluate.cutoffs=10: expected a list of whole numbers."),
        ("evaluate.cutoffs=4,8", "evaluate.cutoffs=4,8: expected a list of whole numbers."),
        ("evaluate.cutoffs=[10,x]", "evaluate.cutoffs=[10,x]: expected a list of whole numbers."),
        ("evaluate.cutoffs=[[10]]", "expected a list of whole numbers."),
        ("evaluate.monitor=[10]", "expected a whole number, or null."),
        ("data.modalities=text", "data.modalities=text: expected a list of texts, or null."),
        ("data.modalities=[null]", "data.modalities=[null]: expected a list of texts, or null."),
        ("data.features=[a]", "data.features=[a]: expected texts by name, such as {name: text}."),
        ("data.features=null", "data.features=null: expected texts by name"),
        ("data.features={a: x, a: y}", "expected texts by name"),
        ("data.features.a.b=x", "expected texts by name"),
        ("train=3", "train is a section; set one of its keys, such as train.seed"),
        ("train=null", "train is a section"),
    ],
)
def test_a_wrong_type_is_told_in_words(override: str, expected: str) -> None:
    message = refusal(override)
    assert message.startswith("command line: ")
    assert expected in message
    told, _, _ = message.partition(". ")  # the setting's help follows
    assert not re.search(r"\b(list\[|dict|Optional|str|int|float|bool|NoneType|Enum)\b", told)


def test_a_wrong_type_in_a_file_names_the_line(tmp_path: Path) -> None:
    file = written(tmp_path, "model:\n  layers: 1\n  dropout: half\n")
    assert f"--config {file}, line 3: model.dropout=half: expected a number. " in refusal(file=file)


def test_a_message_repeats_a_bounded_part_of_the_value_on_one_line() -> None:
    assert "train.epochs=a b: expected" in refusal("train.epochs='a\nb'")
    assert "..." in refusal("train.epochs=" + "x" * 10_000)


# Ranges and rules


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.epochs=0"], "train.epochs=0: expected at least 1 epochs"),
        (["train.learning_rate=-1"], "train.learning_rate=-1.0: expected 1e-12 to 10.0"),
        (["train.learning_rate=1e999"], "train.learning_rate=inf: expected"),
        (["model.reg_weight=1e999"], "model.reg_weight=inf: expected at least 0.0"),
        (["model.dropout=1"], "model.dropout=1.0: expected 0.0 to 0.99"),
        (["train.seed=4294967296"], "train.seed=4294967296: expected 0 to 4294967295"),
        (["evaluate.cutoffs=[10,0]"], "evaluate.cutoffs=0: expected 1 to 10000"),
        (["evaluate.cutoffs=[10,10]"], "evaluate.cutoffs=[10,10]: 10 stands in it twice"),
        (["evaluate.cutoffs=[]"], "evaluate.cutoffs=[]: at least one cutoff K"),
        (["evaluate.monitor=15"], "evaluate.monitor=15: expected one of evaluate.cutoffs=[10,20], or null"),
        (["model.losses=[masking,masking]"], "model.losses=[masking,masking]: masking stands in it twice"),
        (["model.losses=[]"], "model.losses=[]: at least one loss term"),
        (["data.modalities=[text,text]"], "data.modalities=[text,text]: text stands in it twice"),
        (["data.modalities=['']"], "data.modalities: it may not be empty."),
        (["data.features.text="], "data.features.text: it may not be empty."),
        (["data.features={../x: y}"], "data.features: '../x' is no name; use letters, digits, - and _"),
        (["data.features.=x"], "data.features: '' is no name"),
        (["run.dir="], "run.dir: it may not be empty."),
        (["data.dir= "], "data.dir: it may not be empty."),
        (["train.device=tpu"], "train.device=tpu: expected cpu, cuda or cuda:N"),
        (["train.device=cuda:"], "train.device=cuda:: expected cpu, cuda or cuda:N"),
        (["propagation.fanouts=[0,10]"], "propagation.fanouts=[0,10]: a fanout is at least 1, or -1"),
        (["propagation.fanouts=[-2]"], "propagation.fanouts=-2: expected at least -1"),
        (["propagation.engine=sampled"], "propagation.fanouts=[10,10]: model.layers=1 needs 1 of them"),
        (["debug=true", "partition.parts=2"], "partition.parts=2; set it to 1"),
        (["run.dir=${nothing}"], "bad ${...} reference in run.dir: Interpolation key 'nothing' not found"),
        (["run.dir=${"], "bad ${...} reference in run.dir"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_its_key(overrides: list[str], expected: str) -> None:
    assert expected in refusal(*overrides)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices(device: str) -> None:
    assert load_config(None, [f"train.device={device}"]).train.device == device


def test_equal_fanouts_are_allowed_and_match_the_layers() -> None:
    config = load_config(None, ["propagation.engine=sampled", "model.layers=3", "propagation.fanouts=[5,5,5]"])
    assert config.propagation.engine is Engine.sampled
    assert config.propagation.fanouts == [5, 5, 5]


def test_check_refuses_a_config_built_by_hand() -> None:
    config = JobConfig()
    config.train.learning_rate = float("nan")
    with pytest.raises(ConfigError, match=r"train\.learning_rate=nan: expected 1e-12 to 10\.0"):
        check(config)


# Files that cannot be read


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train:\n  epochs: [1\n", ", line 3: not valid YAML ("),
        ("train:\n\tepochs: 1\n", ", line 2: not valid YAML ("),
        ("train: {}\n---\nmodel: {}\n", ", line 2: not valid YAML ("),
        ("train: \x00\n", ": not valid YAML ("),
        ("[" * 20_000, ": not valid YAML ("),
        ("- train\n", ", line 1: expected sections of settings, such as `train:`"),
        ("just text\n", ", line 1: expected sections of settings"),
        ("train:\n  - epochs\n", ", line 2: train is a section"),
        ("train: null\n", ", line 1: train is a section"),
        ("train:\n  epochs: 1\n  seed: 1\n  epochs: 2\n", ", line 4: train.epochs is set twice"),
        ("train: {seed: 1}\ntrain: {epochs: 1}\n", ", line 2: train is set twice"),
        ("data:\n  source:\n", ", line 2: data.source=null: expected text."),
        ("? [a, b]\n: 1\n", "unknown key [a,b]"),
        ("train: &t\n  epochs: *t\n", "train.epochs={epochs: {epochs: ...}}: expected a whole number."),
    ],
)
def test_a_broken_file_is_told_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    file = written(tmp_path, text)
    message = refusal(file=file)
    assert message.startswith(f"--config {file}")
    assert expected in message


def test_a_missing_file_a_directory_and_a_binary_file(tmp_path: Path) -> None:
    assert f"--config {tmp_path}/no.yaml: cannot be read (No such file or directory)" in refusal(file=tmp_path / "no.yaml")
    assert f"--config {tmp_path}: cannot be read (Is a directory)" in refusal(file=tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert f"--config {tmp_path}/binary: not a text file in UTF-8" in refusal(file=tmp_path / "binary")


@pytest.mark.parametrize("override", ["train.epochs", "=3", " =3", ""])
def test_an_override_needs_key_and_value(override: str) -> None:
    assert "is not of the form key=value, for example train.epochs=10" in refusal(override)


def test_a_broken_value_on_the_command_line() -> None:
    assert "command line: not valid YAML" in refusal("evaluate.cutoffs=[10")


# Saving


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.objective=paper", "model.losses=[masking]", "propagation.engine=sampled", "propagation.fanouts=[-1]"],
        ["data.features={visual: v.npy, text: t.npy}", "data.modalities=[text]", "evaluate.monitor=10"],
        ["data.modalities=[]", "train.learning_rate=3e-7", "train.seed=4294967295"],
        ["run.dir=runs/${model.layers}: a # b", "recommend.users=[007,no,'null',~x,'a: b',ä]", "data.source=1e3"],
    ],
)
def test_a_saved_config_loads_to_an_equal_one(tmp_path: Path, overrides: list[str]) -> None:
    config = load_config(None, overrides)
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(str(tmp_path / "saved.yaml")) == config


JOBS = sorted(set(CONFIGS.rglob("*.y*ml")) - set(CONFIGS.rglob("study_*.yaml")))  # tests/unit/study has the studies


@pytest.mark.parametrize("file", JOBS, ids=lambda file: str(file.relative_to(CONFIGS)))
def test_every_shipped_config_loads(file: Path) -> None:
    assert isinstance(load_config(str(file)), JobConfig)


# Keys and help


def test_public_keys_are_spelled_as_documented() -> None:
    assert set(PUBLIC_KEYS) <= {key for key, _, _ in walk(JobConfig())}


def test_every_setting_has_help_a_type_in_words_and_a_default_that_passes() -> None:
    check(JobConfig())
    for key, field, _ in walk(JobConfig()):
        assert field.metadata["help"].endswith("."), key
        assert field.metadata["help"] in describe(field), key
        assert "\n" not in describe(field), key
        assert words(field.type), key


def test_describe_gives_choices_unit_and_range() -> None:
    fields = {key: field for key, field, _ in walk(JobConfig())}
    assert describe(fields["propagation.engine"]).endswith("[exact | sampled]")
    assert describe(fields["train.batch_size"]) == "Positive pairs per rank and step. [pairs] [at least 1]"
    assert describe(fields["model.losses"]).endswith("[reconstruction | alignment | masking]")


def test_help_lists_every_key_with_its_default() -> None:
    text = parser_with_keys("Train.").format_help()
    for key, _, _ in walk(JobConfig()):
        assert f"  {key}=" in text
    assert "  evaluate.cutoffs=[10,20]\n" in text
    assert "  data.modalities=null\n" in text
    assert "  train.resume=false\n" in text


def test_no_section_is_without_a_place_in_the_job() -> None:
    assert all(dataclasses.is_dataclass(getattr(JobConfig(), field.name)) for field in dataclasses.fields(JobConfig)[1:])


# The command line


def test_command_line_takes_file_and_overrides_in_any_order(tmp_path: Path) -> None:
    file = written(tmp_path, "train: {epochs: 7, patience: 3}\n")
    config = command_line("Train.", ["train.epochs=9", "--config", str(file), "train.seed=5"])
    assert (config.train.epochs, config.train.patience, config.train.seed) == (9, 3, 5)


@pytest.mark.parametrize("argv", [["--epochs=3"], ["--conf", "x.yaml"], ["--config"]])
def test_a_wrong_option_is_one_line(argv: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"^command line: .*; --help lists every key$"):
        command_line("Train.", argv)
