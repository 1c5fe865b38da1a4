from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ferdist.config import Config, differences, flatten, from_dict, load_config, read_yaml, to_dict
from ferdist.errors import ConfigError
from ferdist.models import Task, build_model, check_resolution, model_names
from tests.conftest import ROOT

CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_shipped_config_loads(path: Path) -> None:
    assert load_config(path).data.batch_size > 0


def test_every_network_builds_on_both_data_sets() -> None:
    """From a file of its own where it needs one, else from the data set's."""
    for data in ("fer2013", "ckplus"):
        folder = ROOT / "configs" / data
        base = load_config(folder / "base.yaml")
        for name in [name for name in model_names() if ":" not in name]:
            own = folder / f"{name}.yaml"
            config = load_config(own if own.exists() else folder / "base.yaml", [f"model.name={name}"])
            network = build_model(config.model, Task(1, 48, 48, 7))
            changed = {line.partition(":")[0] for line in differences(base, config)}
            optimizer = {"train.optimizer", "train.lr", "train.weight_decay"}
            assert changed <= {"model.name", "model.stem", "model.dropout", *optimizer}
            shares = [share for _, share in config.train.resolution]
            check_resolution(network, config.model, Task(1, 48, 48, 7), shares)


def test_overrides_win_over_file_over_base_over_defaults(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("seed: 1\ntrain: {epochs: 2, lr: 0.2}\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.yaml").write_text("base: ../base.yaml\ntrain: {epochs: 3}\n")
    config = load_config(tmp_path / "sub" / "x.yaml", ["train.weight_decay=0.5", "data.fold=4"])
    assert (config.seed, config.train.epochs, config.train.lr) == (1, 3, 0.2)
    assert (config.train.weight_decay, config.data.fold) == (0.5, 4)
    assert config.train.momentum == Config().train.momentum
    assert config.run_dir == "runs/sub/x-fold4"


@pytest.mark.parametrize("name", ["fer2013/base", "configs/fer2013/base.yaml"])
def test_shipped_configs_have_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(Path(name)) == load_config(ROOT / "configs" / "fer2013" / "base.yaml")
    with pytest.raises(ConfigError, match=r"fer2013/bass: no such config file; these ship: .*fer2013/base,"):
        load_config(Path("fer2013/bass"))


def test_a_config_survives_yaml(tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / "demo.yaml", ["augment.occlusion.area=[0.1,0.2]"])
    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(config))), tmp_path) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "unknown config key train.epoch: did you mean train.epochs?"),
        ("batch_size=3", "did you mean data.batch_size?"),
        ("train.epochs=many", "train.epochs is 'many': it must be an integer"),
        ("train.epochs=0", "train.epochs is 0: it must be at least 1"),
        ("train.log_every=51", "train.log_every is 51: it must be 1 to 50"),
        ("train.precision=int8", "train.precision is 'int8': it must be one of auto, bf16, fp16, fp32"),
        ("train.ema=1", "train.ema is 1.0: it must lie in [0, 1)"),
        ("train.resolution=[[0.5, 1]]", "train.resolution is [[0.5, 1.0]]: give pairs"),
        (
            "train.resolution=[[0, 0.5], [0, 1]]",
            "in ascending order from 0 to below 1, such as [[0, 0.67], [0.5, 1]]",
        ),
        ("train.resolution=[[0, 0.67], [30, 1]]", "in ascending order from 0 to below 1"),
        ("train.resolution=[[0, 0]]", "train.resolution is [[0.0, 0.0]]: give pairs"),
        ("train.tta=five", "train.tta is 'five': it must be one of none, flip, ten-crop"),
        ("model.width=0", "model.width is 0: it must be at least 1"),
        ("model.stem=7x7", "model.stem is '7x7': it must be one of imagenet, stride2, stride1"),
        ("model.dropout=1", "model.dropout is 1.0: it must lie in [0, 1)"),
        ("model.reduction=0", "model.reduction is 0: it must be at least 1"),
        ("data.batch_size=0", "data.batch_size is 0: it must be at least 1"),
        ("data.fold=-1", "data.fold is -1: it must be 0 or more, or null"),
        ("data.inner_fold=2", "data.inner_fold is 2 and data.fold is None: the inner fold must differ"),
        ("data.timeout=0", "data.timeout is 0.0: it must be more than 0 seconds"),
        ("seed=-1", "seed is -1: it must lie in 0..2147483647"),
        ("model=resnet", "model is a section with keys of its own"),
        ("train.epochs", "write key=value"),
        ("augment.geometry.scale=[0.8,", "invalid YAML: quote"),
        ("data.cache=ram", "data.cache is 'ram': it must be one of auto, none, device"),
        ("augment.occlusion.area=[0.5,0.1]", "augment.occlusion.area is [0.5, 0.1]"),
    ],
)
def test_a_wrong_override_names_the_key_and_the_remedy(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(ROOT / "configs" / "base.yaml", [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_epoch_is_picked_on_a_fold_that_is_scored() -> None:
    base = ROOT / "configs" / "base.yaml"
    with pytest.raises(ConfigError, match="would pick an epoch on the fold that is scored") as caught:
        load_config(base, ["data.fold=0", "train.select=best"])
    assert "\n" not in str(caught.value)
    chosen = load_config(base, ["data.fold=0", "data.inner_fold=1", "train.select=best"])
    assert chosen.run_dir == "runs/configs/base-fold0-inner1"
    with pytest.raises(ConfigError, match=r"data\.inner_fold is 1 and data.fold is 1"):
        load_config(base, ["data.fold=1", "data.inner_fold=1"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "invalid YAML"),
        ("- 1", "must hold keys and values, not a list"),
        ("base: x.yaml", "circular chain"),
        ("base: other.yaml", "other.yaml: no such config file"),
        ("trian: {epochs: 3}", "unknown config key trian.epochs: did you mean train.epochs?"),
        ("data: {timeout: .nan}", "data.timeout is '.nan': it must be a number"),
        ("data: {timeout: .inf}", "data.timeout is '.inf': it must be a number"),
        ("data: {timeout: 'nan'}", "data.timeout is nan: it must be a finite number"),
        ("train: {lr: 1.0e+400}", "train.lr is '1.0e+400': it must be a finite number"),
        (f"train: {{lr: {'1' * 5000}}}", "1': it must be a finite number"),
        (f"train: {{epochs: 1{'0' * 4000}}}", "train.epochs does not fit into 64 bits"),
        ("seed: 2020-13-45", "seed is '2020-13-45': it must be an integer"),
        ("seed: !!timestamp 2020-13-45", "anchors and tags are not allowed"),
        ("data: &a {path: *a}", "anchors and tags are not allowed"),
        ("seed: 1\nseed: 2", "a key stands there twice"),
        ("[" * 5000, "nested too deeply"),
        ("a: " + "[" * 30 + "]" * 30, "more than 20 levels"),
        ("a: [" + "1," * 20_000 + "]", "more than 10000 values"),
        ("#" * 2**20 + "\n", "larger than 1 MiB"),
        ("base: /dev/zero", "not a regular file"),
        ('base: "a\\0b"', "null byte"),
        ("? [a]\n: 1", "found unhashable key"),
        (b"\xff\xfe", "'utf-8' codec can't decode"),
    ],
    ids=lambda value: str(value[:30]),
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_chain_of_bases_is_short(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"{number}.yaml").write_text(f"base: {number + 1}.yaml")
    with pytest.raises(ConfigError, match="more than 10 `base` files"):
        load_config(tmp_path / "0.yaml")


def test_numbers_that_look_like_text_stay_text(tmp_path: Path) -> None:
    """What `yaml.safe_dump` leaves without quotes comes back as it was."""
    words = [
        "1e5",
        "089",
        "1_0",
        "0x1f",
        "1:30",
        "12e03",
        "+",
        "-",
        ".",
        ".nan",
        "2026-11-29",
        "=",
        "<<",
        "on",
    ]
    numbers = [0, -7, 1.5, 1e-7, 1e22, 1e-99, 10**17]
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"words": words, "numbers": numbers}))
    assert read_yaml(tmp_path / "x.yaml") == {"words": words, "numbers": numbers}


def test_differences_leave_out_what_does_not_change_the_result() -> None:
    old = load_config(ROOT / "configs" / "base.yaml", ["run_dir=a", "data.path=x", "train.epochs=3"])
    new = load_config(ROOT / "configs" / "base.yaml", ["run_dir=b", "data.path=y", "train.epochs=4"])
    assert differences(old, new) == ["train.epochs: 3 -> 4"]
    assert differences(old, old) == []


def test_the_contracts_keys_are_there() -> None:
    keys = flatten(to_dict(Config()))
    names = (
        "data.path data.fold data.batch_size model.name model.stem model.placement model.pretrained "
        "train.epochs train.lr train.compile train.precision train.resume seed run_dir"
    )
    assert set(names.split()) <= keys.keys()


def test_a_stored_config_from_before_a_key_means_what_it_computed(tmp_path: Path) -> None:
    """A card, and the config.yaml of a run; a config that a person writes gets the defaults."""
    values = to_dict(Config())
    del values["model"]["gate"], values["train"]["attention_decay"]
    for read in (from_dict(values, tmp_path), _read(tmp_path, values | {"environment": {"date": "2026"}})):
        assert (read.model.gate, read.train.attention_decay) == ("sigmoid", True)
    written = _read(tmp_path, values)
    assert (written.model.gate, written.train.attention_decay) == ("unit", False)


def _read(folder: Path, values: dict[str, object]) -> Config:
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return load_config(folder / "config.yaml")
