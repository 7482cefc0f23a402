"""Decoders of several edited layers: exported, opened again, and put before checkpoints that are edited in all of them.

Shape letters: D hidden width, F MLP width.
"""

import pytest
import torch
from changed_decoders import CARD, FACTS, IDS_BT, M, changed_decoder
from safetensors.torch import save_file

import evaluate
from decoder.audit.calibration import clean_edit, null_edits
from decoder.audit.decoded.answer import answer_for
from decoder.audit.suspect import Suspect
from decoder.config.commands import EvaluateConfig
from decoder.edit import LayerEdits
from decoder.export.collection import choose
from decoder.export.formats import layers_of
from decoder.export.opened import open_decoder
from decoder.export.save import read_config, save_decoder
from decoder.host import Host
from decoder.model import ObjectDecoder
from decoder.utils.errors import UserError
from decoder.utils.json_files import write_json

LAYERS = [1, 2]


@pytest.fixture(scope="module")
def saved(new_host, random_edits, tmp_path_factory):
    """A host in a cache, a decoder of two of its layers in a folder, edits of one host in both, and the checkpoint that has them."""
    top = tmp_path_factory.mktemp("saved")
    path = top / "cache" / "hosts" / "tiny-0123456789ab"
    built = new_host("llama")
    built.model.save_pretrained(path)
    built.tokenizer.save_pretrained(path)
    host = Host.load(path, name="tiny", terminator=".")
    torch.manual_seed(0)
    decoder = ObjectDecoder(host, edited_layers=LAYERS, trained_layers=[1], prompt_MD=torch.randn(M, 32))
    save_decoder(top / "decoder", decoder, FACTS)
    edits = LayerEdits({layer: random_edits(host, 1, seed=layer) for layer in LAYERS})
    for layer in LAYERS:
        built.weight_DF(layer).add_(edits.by_layer[layer].delta()[0])
    built.model.save_pretrained(top / "suspect")
    built.tokenizer.save_pretrained(top / "suspect")
    return top, decoder, edits


def config(top, **settings) -> EvaluateConfig:
    return EvaluateConfig(**{"decoder": str(top / "decoder"), "cache_dir": str(top / "cache"), "top": 3} | settings)


def test_it_is_opened_as_it_was(saved):
    top, decoder, edits = saved
    opened, found = open_decoder(config(top))
    assert opened.edited_layers == LAYERS == found["edited_layer"] == layers_of(found)
    assert found["module"] == [decoder.host.module_path(layer) for layer in LAYERS] and found["shape"] == [[32, 48]] * 2
    assert torch.equal(opened(edits, IDS_BT[:1]), decoder(edits, IDS_BT[:1]))
    card = (top / "decoder" / CARD).read_text()
    assert "edited layer 1, 2\n" in card and "`model.layers.1.mlp.down_proj`, `model.layers.2.mlp.down_proj`" in card
    assert open_decoder(config(top, layer=2))[0].edited_layers == LAYERS
    with pytest.raises(ValueError, match="layer=0: .* reads edited layer 1, 2. Leave layer= out"):
        open_decoder(config(top, layer=0))


def test_a_checkpoint_is_read_in_all_of_them(saved, capsys):
    top, decoder, edits = saved
    answer = answer_for(config(top), Suspect(top / "suspect"))
    beams = decoder.read(edits, **FACTS["search"])
    assert answer["layer"] == LAYERS and not answer["unedited"] and answer["surroundings"]["further_trained_count"] == 0
    assert [one["probability"] for one in answer["objects"]] == pytest.approx(
        beams.probability_BK[0, : len(answer["objects"])].tolist(), rel=1e-3
    )
    own = answer_for(config(top), Suspect(top / "cache" / "hosts" / "tiny-0123456789ab"))
    clean = decoder.read(clean_edit(decoder.host, LAYERS), **FACTS["search"])
    assert own["unedited"] and own["objects"][0]["probability"] == pytest.approx(float(clean.probability_BK[0, 0]), rel=1e-3)
    evaluate.main([f"decoder={top / 'decoder'}", f"suspect={top / 'suspect'}", f"cache_dir={top / 'cache'}"])
    assert "Planted in layer 1, 2 of tiny" in capsys.readouterr().out


def test_one_matrix_is_not_enough(saved, tmp_path):
    top, decoder, _ = saved
    save_file({"w": decoder.host.weight_DF(1).contiguous()}, str(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match="reads layers 1, 2 together, .*w.safetensors is one file. Give a whole checkpoint"):
        answer_for(config(top), Suspect(tmp_path / "w.safetensors"))


def test_in_a_collection_it_waits_for_its_layers(saved, tmp_path):
    """Beside a decoder of one of its layers, which sees that layer alone."""
    top, decoder, edits = saved
    single = changed_decoder(decoder.host)
    entries = []
    for name, one in (("both", decoder), ("one", single)):
        save_decoder(tmp_path / name, one, FACTS)
        kept = read_config(tmp_path / name)
        entries.append(
            {key: kept[key] for key in ("host", "module", "edited_layer", "trained_layer", "shape", "base_sha256", "editors", "seed")}
        )
        entries[-1] |= {"folder": name, "validation": 0.5, "scores": {}, "run": name}
    write_json(tmp_path / "index.json", {"format": 1, "decoders": entries})
    found = evaluate.audit(config(top, decoder=str(tmp_path), suspect=str(top / "suspect")))
    by_layer = {str(one["layer"]): one for one in found["ranking"]}
    assert set(by_layer) == {"1", "[1, 2]"} and found["refused"] == []
    for layer, one, read in (("[1, 2]", decoder, edits), ("1", single, edits.by_layer[1])):
        expected = one.read(read, **FACTS["search"]).probability_BK[0, 0]
        assert by_layer[layer]["objects"][0]["probability"] == pytest.approx(float(expected), rel=1e-3)
    assert choose(tmp_path, layer=2)[0].name == "both"
    with pytest.raises(UserError, match=r"2 decoders fit layer=1: tiny layer 1, 2 \(32×48\), tiny layer 1 \(32×48\)"):
        choose(tmp_path, layer=1)


def test_nulls_are_of_every_layer(saved):
    _, _, edits = saved
    nulls = null_edits(edits, 5, seed=0)
    assert nulls.layers == LAYERS and len(nulls) == 5
    for layer in LAYERS:
        own = edits.by_layer[layer]
        assert torch.equal(nulls.by_layer[layer].key_BF, own.key_BF.expand(5, -1))
        torch.testing.assert_close(nulls.by_layer[layer].norm(), own.norm().expand(5))
