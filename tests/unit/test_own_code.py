"""No command runs code that a folder brings along, or asks whether it may: the answer to any question would be yes."""

import io
import json

import pytest
import torch
from changed_decoders import FACTS, LAYER, changed_decoder
from edited import edited_folder, facts_file
from safetensors.torch import save_file

import evaluate
import train
from data.import_edits.__main__ import main as import_edits
from data.keys.__main__ import main as keys
from data.produce.__main__ import main as produce
from decoder.export.save import save_decoder
from decoder.host import Host

CLASSES = {"AutoConfig": "planted.PlantedConfig", "AutoModelForCausalLM": "planted.PlantedModel"}
TOKENIZER = {"AutoTokenizer": ["planted.PlantedTokenizer", None]}


@pytest.fixture
def planted(new_host, tmp_path):
    """A folder whose config and tokenizer want its own code, and where a sign is left if that is run."""
    folder, sign = tmp_path / "planted", tmp_path / "sign"
    edited_folder(new_host("llama"), folder)
    for name, fields in (
        ("config.json", {"model_type": "planted", "auto_map": CLASSES}),
        ("tokenizer_config.json", {"auto_map": TOKENIZER}),
    ):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | fields))
    code = f"open({str(sign)!r}, 'w')\nfrom transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
    for name, base in (("Config", "LlamaConfig"), ("Model", "LlamaForCausalLM"), ("Tokenizer", "PreTrainedTokenizerFast")):
        code += f"class Planted{name}({base}):\n    model_type = 'planted'\n"
    (folder / "planted.py").write_text(code)
    return folder, sign


@pytest.fixture
def decoder(new_host, tmp_path):
    host = new_host("llama")
    host.model.save_pretrained(tmp_path / "host")
    host.tokenizer.save_pretrained(tmp_path / "host")
    save_decoder(tmp_path / "decoder", changed_decoder(Host.load(tmp_path / "host", name="tiny", terminator=".")), FACTS)
    save_file({"w": host.weight_DF(LAYER) + 1e-3 * torch.ones(32, 48)}, tmp_path / "w.safetensors")
    return tmp_path / "decoder"


COMMANDS = {
    "train": (train.main, ["host.path={planted}", "host.name=x", "runs={top}/runs", "wandb.mode=disabled"]),
    "a grid": (train.main, ["-m", "host.path={planted}", "host.name=x", "runs={top}/runs", "wandb.mode=disabled", "seed=0,1"]),
    "edits": (produce, ["host.path={planted}", "host.name=x"]),
    "keys": (keys, ["host.path={planted}", "host.name=x", "keys.layers=[1]"]),
    "import, host": (import_edits, ["host.path={planted}", "host.name=x", "edited={top}/w.safetensors", "layer=1"]),
    "import, edited": (import_edits, ["host.path={top}/host", "host.name=x", "edited={planted}", "layer=1"]),
    "import, base": (import_edits, ["host.path={top}/host", "host.name=x", "edited={top}/w.safetensors", "base={planted}", "layer=1"]),
    "score, host": (evaluate.main, ["decoder={top}/decoder", "host={planted}"]),
    "audit, host": (evaluate.main, ["decoder={top}/decoder", "host={planted}", "suspect={top}/w.safetensors"]),
    "audit, suspect": (evaluate.main, ["decoder={top}/decoder", "suspect={planted}"]),
}


@pytest.mark.parametrize("known", [False, True], ids=["a family of its own", "a family that transformers has"])
@pytest.mark.parametrize("command", COMMANDS)
def test_code_of_a_folder_is_never_run(planted, decoder, tmp_path, command, known, monkeypatch, capsys):
    folder, sign = planted
    if known:
        config = json.loads((folder / "config.json").read_text()) | {"model_type": "llama"}
        (folder / "config.json").write_text(json.dumps(config))
    main, argv = COMMANDS[command]
    if main is import_edits:
        argv = [*argv, f"facts={facts_file(tmp_path, 1)}", f"store={tmp_path / 'store'}"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    if known and main in (train.main, produce, keys):
        pytest.skip("the host is good without its code, and making edits takes too long here")
    status = 0
    try:
        main([part.format(planted=folder, top=tmp_path) for part in argv] + [f"cache_dir={tmp_path / 'cache'}"])
    except SystemExit as stop:
        status = stop.code
    shown = capsys.readouterr()
    assert not sign.exists() and "[y/N]" not in shown.out + shown.err
    if not known and command not in ("import, edited", "import, base"):
        assert status in (1, 2) and "auto_map" in shown.err + shown.out
