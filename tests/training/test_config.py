"""The configuration tree: every shipped file loads, and every mistake is named."""

from pathlib import Path

import pytest
import yaml

from training.config import Config, flat, known_keys, load_config, save_config

CONFIGS = sorted(Path("training/configs").glob("*.yaml"))
TRAINED = [path for path in CONFIGS if not path.name.startswith("accelerate")]
NEEDED = ["run=r", "data.manifest=m.jsonl"]


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_shipped_configurations_load(path):
    assert isinstance(load_config(path, NEEDED), Config)


def test_few_shot_goes_on_with_a_bank_of_the_released_shape():
    few, paper = (load_config(Path(f"training/configs/{name}.yaml"), NEEDED) for name in ("few_shot", "paper"))
    assert few.bank.start and few.data.hold_pairs == 2 and few.optimizer.lr < paper.optimizer.lr
    assert few.bank.resolve(768, "b", "e") == paper.bank.resolve(768, "b", "e")


def test_paper_yaml_is_the_recipe_of_the_method():
    config = load_config(Path("training/configs/paper.yaml"), NEEDED)
    bank, optimizer, train = config.bank, config.optimizer, config.train
    assert (bank.num_loras, bank.rank, bank.key_dim, bank.heads, bank.softmax, bank.mixing) == (
        32,
        4,
        128,
        1,
        True,
        "mean",
    )
    assert (train.steps, train.batch, train.precision) == (10_000, 6, "bf16")
    found = optimizer.name, optimizer.lr, optimizer.betas, optimizer.weight_decay, optimizer.eps
    assert found == ("adamw8bit", 1e-3, (0.9, 0.99), 0.05, 1e-6)
    assert (bank.init, bank.save_dtype, config.data.over, config.data.caption) == (
        "released", "float16", "analogies", "example",
    )  # fmt: skip
    assert (config.objective.weighting, config.objective.caption_dropout, config.objective.guidance) == (
        "bell",
        0.05,
        1.0,
    )
    assert config.data.canvas == 512 and config.base.quantise != "none" and config.base.gradient_checkpointing
    assert (optimizer.ema, config.objective.entropy, config.objective.balance, config.data.swap) == (0, 0, 0, 0)


def test_paper_yaml_comments_every_knob():
    text = Path("training/configs/paper.yaml").read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    shown = {f"{group}.{key}" for group, entries in document.items() if isinstance(entries, dict) for key in entries}
    shown |= {key for key, value in document.items() if not isinstance(value, dict)}
    leaves = {key for key in known_keys() if not any(other.startswith(key + ".") for other in known_keys())}
    assert shown == leaves
    bare = [line for line in text.splitlines() if line.startswith("  ") and ":" in line and "#" not in line]
    assert bare == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.step=5", "there is no key 'train.step'; did you mean 'train.steps'?"),
        ("bank.num_lora=5", "there is no key 'bank.num_lora'; did you mean 'bank.num_loras'?"),
        ("optimiser.lr=1", "there is no key 'optimiser'; did you mean 'optimizer'?"),
        ("train.steps=many", "train.steps: Value 'many' of type 'str' could not be converted to Integer"),
        ("train.steps=0", "train.steps is 0; expected at least 1"),
        ("optimizer.name=sgd", "optimizer.name is 'sgd'; expected one of adamw, adamw8bit, prodigy"),
        ("objective.caption_dropout=2", "objective.caption_dropout is 2.0; expected 0 to 1"),
        ("data.cache_latents=5", "set data.cache"),
        ("data.examples=3", "data.examples above 1 needs embeddings of images, or of example pairs: set data.cache"),
        ("steps", "write key=value"),
        ("data.hold_task_names=[sepia,", "data.hold_task_names=[sepia,: not valid YAML"),
        ("bank.heads=3", "heads is 3, which does not divide the key width 128"),
        ("bank.num_loras=0", "num_loras is 0; expected a whole number of at least 1"),
        ("bank.projection=conv", "bank.projection is 'conv'; expected one of linear, none"),
        ("validation.steps=0", "validation.steps is 0; expected at least 1"),
        ("optimizer.mixer_lr=-1", "optimizer.mixer_lr is -1.0; expected at least 0"),
        ("optimizer.lr=.nan", "optimizer.lr is nan; expected at least 0"),
        ("optimizer.lr=.inf", "optimizer.lr is inf; expected 0 to 1e+30"),
        ("optimizer.betas=[0.9,1]", "optimizer.betas is [0.9, 1.0]; expected two numbers from 0 to below 1"),
        ("optimizer.weight_decay=-0.1", "optimizer.weight_decay is -0.1; expected at least 0"),
        ("bank.alpha=0", "bank.alpha is 0.0; expected more than 0, or null for bank.rank"),
        ("bank.alpha=.nan", "bank.alpha is nan; expected more than 0"),
        ("bank.targets='('", "bank.targets is '(', which is no regular expression"),
        ("bank.num_loras=100000000", "bank.num_loras is 100000000; expected at most 65536"),
        ("data.cache_latents=10000000000000", "data.cache_latents is 10000000000000; expected 0 to 1e+08"),
        ("data.prompt_tokens=4096", "data.prompt_tokens is 4096; expected at most 512"),
        ("data.canvas=40", "data.canvas is 40; expected a multiple of 32"),
        ("train.seed=-1", "train.seed is -1; expected at least 0"),
        ("validation.guidance=.nan", "validation.guidance is nan"),
        ("run=''", "run is empty"),
        ("learning_rate=1e-4", "there is no key 'learning_rate'; did you mean 'optimizer.lr'?"),
        ("train.learning_rate=1e-4", "did you mean 'optimizer.lr'?"),
        ("lr=1e-4", "did you mean 'optimizer.lr'?"),
        ("rank=8", "did you mean 'bank.rank'?"),
        ("batch_size=2", "did you mean 'train.batch'?"),
        ("seeds=2", "did you mean 'train.seed'?"),
    ],
)
def test_mistakes_in_overrides_are_named(override, message):
    with pytest.raises(ValueError) as error:
        load_config(Path("training/configs/paper.yaml"), [*NEEDED, override])
    assert message in str(error.value)


@pytest.mark.parametrize("precision", ["no", '"no"', "false"])
def test_no_precision_is_what_yaml_reads_as_false(precision):
    assert (
        load_config(Path("training/configs/paper.yaml"), [*NEEDED, f"train.precision={precision}"]).train.precision
        == "no"
    )


def test_mistakes_in_files_name_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("run: r\nbank:\n  ranks: 4\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: there is no key 'bank\.ranks'; did you mean 'bank\.rank'\?"):
        load_config(path)
    path.write_text("run: [")
    with pytest.raises(ValueError, match=r"mine\.yaml: not valid YAML"):
        load_config(path)
    path.write_text("run: r\n")
    with pytest.raises(ValueError, match=r"no value for base\.path, data\.manifest"):
        load_config(path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")
    for text in (
        "a: &a [1]\nb: &b [*a, *a]\n",
        "[" * 50_000,
        "run: " + "9" * 5000,
        "run: [2026-01-01]",
        "- 1",
        "run: \ud800",
    ):
        path.write_bytes(text.encode(errors="surrogatepass"))
        with pytest.raises(ValueError, match=r"mine\.yaml: ") as error:
            load_config(path)
        assert len(str(error.value)) < 2000


def test_the_saved_configuration_loads_to_the_same(tmp_path):
    config = load_config(Path("training/configs/paper.yaml"), [*NEEDED, "optimizer.betas=[0.8,0.9]", "bank.alpha=2"])
    save_config(config, tmp_path / "config.yaml")
    again = load_config(tmp_path / "config.yaml")
    assert again == config and flat(again)["optimizer.betas"] == "(0.8, 0.9)"
