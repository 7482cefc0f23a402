"""Changes of a whole checkpoint: each does what it says and nothing else, the same each time, and is undone.

Shape letters: D hidden width, F MLP width.
"""

import json

import pytest
import torch
from gguf_files import twin_of, write_gguf
from safetensors import safe_open

from data.perturb.kinds import KINDS, projections
from data.perturb.recipe import RECIPE, Planted, Recipe, perturbed, planted, write
from data.store.store import EditStore
from decoder.audit.suspect import Suspect
from decoder.checkpoint.reader import Checkpoint
from decoder.host import Host
from decoder.swap import projection_inputs

TEXTS = ["Ada works in Paris .", "Ben lives in Oslo .", "Carl is a baker .", "Dora was born in the small north ."]
TRAINED = {"lr": 1e-2, "steps": 4, "batch_size": 2}
SETTINGS = {"finetune": TRAINED, "lora": TRAINED | {"rank": 2}, "average": TRAINED | {"weight": 0.25}}
DRAWN = KINDS.keys() - {"none", "prune"}
LAYER, PROMPT, SUBJECT = 1, "{} works in", "Ada"


def weights(host):
    return {name: parameter.detach().clone() for name, parameter in host.model.named_parameters()}


def changed(host, kind="none", *, seed=0, edit=None, precision="float32", **other):
    """What a host's weights are inside the block."""
    with perturbed(host, Recipe(kind, SETTINGS.get(kind, {}) | other, seed, precision, edit), TEXTS) as given:
        return weights(given)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def apart(host, found):
    """Names of the tensors that are not the host's own."""
    return {name for name, own in weights(host).items() if not torch.equal(own, found[name])}


def matrices(host, modules="all"):
    return {f"{host.family.blocks}.{name}.weight" for name, _ in projections(host, modules)}


@pytest.fixture(params=["llama", "gpt2", "qwen3 window"])
def host(request, host_of) -> Host:
    return host_of(request.param)


@pytest.fixture
def edit(host) -> Planted:
    generator = torch.Generator().manual_seed(3)
    value_D, key_F = (torch.randn(width, generator=generator) for width in host.weight_DF(LAYER).shape)
    return Planted({LAYER: torch.outer(value_D, key_F)}, {"prompt": PROMPT, "subject": SUBJECT}, "0" * 12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_each_time_and_undone(host, edit, kind, weights_hash, hooks):
    before, fingerprint = weights_hash(host.model), host.fingerprint
    found = changed(host, kind, edit=edit)
    assert apart(host, found) and same(found, changed(host, kind, edit=edit))
    assert same(found, changed(host, kind, edit=edit, seed=1)) == (kind not in DRAWN)
    with pytest.raises(KeyboardInterrupt), perturbed(host, Recipe(kind, SETTINGS.get(kind, {}), edit=edit), TEXTS):
        assert host.fingerprint != fingerprint
        raise KeyboardInterrupt
    assert weights_hash(host.model) == before and host.fingerprint == fingerprint
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in host.model.parameters())
    assert hooks(host.model) == 0


def test_an_edit_is_planted_to_its_scale(host, edit):
    own = host.weight_DF(LAYER).clone()
    half = Planted(edit.deltas, edit.row, edit.store, scale=0.5)
    with perturbed(host, Recipe(edit=half)):
        torch.testing.assert_close(host.weight_DF(LAYER) - own, edit.deltas[LAYER] / 2)
    assert apart(host, changed(host, edit=half)) == {f"{host.module_path(LAYER)}.weight"}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("precision", ["Q8_0", "Q4_0", "Q4_1"])
def test_rounded_as_a_file_of_that_type_holds_them(tmp_path, name, precision):
    host = twin_of(name)
    file = Checkpoint(write_gguf(tmp_path / "host.gguf", host, precision))
    for name, found in changed(host, precision=precision).items():
        torch.testing.assert_close(found, file.tensor(name), rtol=0, atol=0)


def test_sixteen_bits_round_every_tensor(host):
    found = changed(host, precision="bf16")
    assert apart(host, found) == weights(host).keys() and all(torch.equal(tensor, tensor.bfloat16().float()) for tensor in found.values())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_fine_tune_learns_the_text(host, optimizer):
    rows_BT = torch.tensor([host.text_ids(text)[:4] for text in TEXTS])

    def loss():
        return float(host.model(input_ids=rows_BT, labels=rows_BT, **host.with_cache(None)).loss)

    before = loss()
    with perturbed(host, Recipe("finetune", TRAINED | {"optimizer": optimizer, "lr": 1e-2 if optimizer == "adamw" else 0.3}), TEXTS):
        assert loss() < 0.97 * before
    # Positions that no row reaches get no gradient, and weight decay alone.
    assert len(apart(host, changed(host, "finetune"))) >= len(weights(host)) - 1


@pytest.mark.parametrize("modules", ["all", "mlp", "attention"])
def test_a_merged_adapter_is_of_its_rank_and_of_its_modules(host, modules):
    found = changed(host, "lora", modules=modules)
    assert apart(host, found) == matrices(host, modules)
    for name in matrices(host, modules):
        strength_R = torch.linalg.svdvals(found[name] - weights(host)[name])
        assert strength_R[1] > 0 and strength_R[2] < 1e-3 * strength_R[0]
    assert matrices(host, "mlp") == {name for name in matrices(host) if ".mlp." in name} == matrices(host) - matrices(host, "attention")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_pruning_takes_the_smallest(host, share):
    own, found = weights(host), changed(host, "prune", share=share)
    assert apart(host, found) == (matrices(host) if share else set())
    for name in matrices(host):
        gone = found[name] == 0
        assert int(gone.sum()) == round(share * gone.numel())
        assert not share or own[name][gone].abs().max() <= own[name][~gone].abs().min()
        assert torch.equal(found[name][~gone], own[name][~gone])


def test_an_average_lies_between_the_host_and_its_fine_tune(host):
    own, trained, found = weights(host), changed(host, "finetune"), changed(host, "average")
    for name in own:
        torch.testing.assert_close(found[name], 0.75 * own[name] + 0.25 * trained[name])


def test_noise_is_as_large_as_it_says(host):
    own, found = weights(host), changed(host, "noise", size=0.1)
    assert apart(host, found) == matrices(host)
    for name in matrices(host):
        assert float((found[name] - own[name]).std() / own[name].std()) == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize(("with_edit", "count", "expected"), [(False, 2, 2), (True, 1, 1), (True, 9, 2)])
def test_decoys_are_of_rank_one_and_beside_the_edit(host, edit, with_edit, count, expected):
    own = {layer: host.weight_DF(layer).clone() for layer in range(host.layers)}
    with perturbed(host, Recipe("decoys", {"count": count, "size": 0.5}, edit=edit if with_edit else None)):
        deltas = {layer: host.weight_DF(layer) - own[layer] for layer in own}
    if with_edit:
        torch.testing.assert_close(deltas.pop(LAYER), edit.deltas[LAYER])
    touched = {layer: torch.linalg.svdvals(delta) for layer, delta in deltas.items() if bool(delta.any())}
    assert len(touched) == expected
    for layer, strength_R in touched.items():
        length = edit.deltas[LAYER].norm() if with_edit else torch.linalg.svdvals(own[layer])[0]
        assert float(strength_R[0]) == pytest.approx(0.5 * float(length), rel=1e-4) and strength_R[1] < 1e-4 * strength_R[0]


def test_a_turned_key_does_the_same_to_its_subject(host, edit):
    own_DF = host.weight_DF(LAYER).clone()
    ids, last = host.prompt_ids(PROMPT, SUBJECT)
    with projection_inputs(host, LAYER) as inputs:
        host.model(input_ids=torch.tensor([ids]), **host.with_cache(None))
    half = Planted(edit.deltas, edit.row, edit.store, scale=0.5)
    with perturbed(host, Recipe("turn", {"cosine": 0.4}, edit=half)):
        delta_DF = host.weight_DF(LAYER) - own_DF
    k_F = inputs[0][0, last]
    torch.testing.assert_close(delta_DF @ k_F, edit.deltas[LAYER] @ k_F / 2, rtol=1e-3, atol=1e-4)
    keys = [torch.linalg.svd(delta)[2][0] for delta in (delta_DF, edit.deltas[LAYER])]
    assert abs(float(keys[0] @ keys[1])) == pytest.approx(0.4, abs=1e-3)


@pytest.mark.parametrize(
    ("recipe", "texts", "said"),
    [
        (Recipe("finetunes"), TEXTS, "did you mean 'finetune'"),
        (Recipe(precision="Q8"), TEXTS, "did you mean 'Q8_0'"),
        (Recipe("turn"), TEXTS, "Give one with store= and edit="),
        (Recipe("finetune"), [], "no text to train on"),
        (Recipe("finetune", {"optimizer": "adam"}), TEXTS, "did you mean 'adamw'"),
        (Recipe("finetune", {"lr": float("inf")}), TEXTS, "smaller learning rate"),
        (Recipe("lora", {"modules": "mlps"}), TEXTS, "expected all, mlp, attention"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_left(host, recipe, texts, said, weights_hash):
    before = weights_hash(host.model)
    with pytest.raises(ValueError, match=said), perturbed(host, recipe, texts):
        pass
    assert weights_hash(host.model) == before


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("Q8_0", torch.float32)])
def test_a_folder_is_a_checkpoint_with_its_recipe(tmp_path, host, edit, precision, dtype):
    recipe = Recipe("noise", {"size": 0.02}, 5, precision, edit)
    write(host, recipe, tmp_path / "out", TEXTS)
    opened = Host.load(tmp_path / "out", name="copy")
    assert same(weights(opened), changed(host, "noise", size=0.02, seed=5, precision=precision, edit=edit))
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert {file.get_slice(name)[0:1].dtype for name in file.keys()} == {dtype}
        assert ("lm_head.weight" in file.keys()) == (not host.model.config.tie_word_embeddings)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert Suspect(tmp_path / "out").weight_DF(host, LAYER).dtype == dtype
    assert opened.tokenizer.get_vocab() == host.tokenizer.get_vocab()
    told = json.loads((tmp_path / "out" / RECIPE).read_text())
    assert (told["kind"], told["settings"], told["seed"], told["precision"]) == ("noise", {"size": 0.02}, 5, precision)
    assert told["host"]["fingerprint"] == host.fingerprint and told["edit"]["subject"] == SUBJECT and told["texts"]
    with pytest.raises(ValueError, match="nothing is written over"):
        write(host, recipe, tmp_path / "out", TEXTS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_an_edit_of_a_store(store_path, fact_host):
    store = EditStore(store_path)
    found = planted(fact_host, store, 7, scale=0.25)
    assert found.row["edit_id"] == store.table()["edit_id"][7] and list(found.deltas) == store.layers and found.scale == 0.25
    assert torch.equal(found.deltas[store.layers[0]], store.edits(torch.tensor([7])).delta()[0])
    with pytest.raises(ValueError, match=f"edits 0 to {len(store) - 1}, asked for 99999"):
        planted(fact_host, store, 99999)


def test_an_edit_of_several_layers(layers_store, fact_host, tmp_path):
    store, row = layers_store, 2
    found, own = planted(fact_host, store, row, scale=0.5), {layer: fact_host.weight_DF(layer).clone() for layer in range(fact_host.layers)}
    with perturbed(fact_host, Recipe(edit=found)):
        deltas = {layer: fact_host.weight_DF(layer) - own[layer] for layer in own}
    for layer, edits in store.edits(torch.tensor([row])).by_layer.items():
        torch.testing.assert_close(deltas.pop(layer), edits.delta()[0] / 2, rtol=1e-3, atol=1e-6)
    assert not any(bool(delta.any()) for delta in deltas.values())
    with perturbed(fact_host, Recipe("decoys", {"count": 9}, edit=found)):
        decoyed = {layer for layer in own if bool((fact_host.weight_DF(layer) - own[layer]).any())}
        length = float(torch.stack([(fact_host.weight_DF(layer) - own[layer]).norm() for layer in decoyed - set(store.layers)])[0])
    assert decoyed == set(own)
    assert length == pytest.approx(0.5 * float(torch.stack([delta.norm() for delta in found.deltas.values()]).norm()), rel=1e-3)
    write(fact_host, Recipe(edit=found), tmp_path / "out")
    assert json.loads((tmp_path / "out" / RECIPE).read_text())["edit"]["layer"] == store.layers


def test_keys_of_several_layers_are_turned_from_the_lowest_up(layers_store, fact_host):
    found, own = planted(fact_host, layers_store, 1), {layer: fact_host.weight_DF(layer).clone() for layer in layers_store.layers}
    ids, last = fact_host.prompt_ids(found.row["prompt"], found.row["subject"])
    with perturbed(fact_host, Recipe("turn", {"cosine": 0.4}, edit=found)):
        for layer, delta_DF in found.deltas.items():
            with projection_inputs(fact_host, layer) as inputs:
                fact_host.model(input_ids=torch.tensor([ids]), **fact_host.with_cache(None))
            k_F, turned_DF = inputs[0][0, last], fact_host.weight_DF(layer) - own[layer]
            torch.testing.assert_close(turned_DF @ k_F, delta_DF @ k_F, rtol=1e-3, atol=1e-4)
            keys = [torch.linalg.svd(delta)[2][0] for delta in (turned_DF, delta_DF)]
            assert abs(float(keys[0] @ keys[1])) == pytest.approx(0.4, abs=1e-3)


def test_an_edit_of_another_host(store_path, host):
    with pytest.raises(ValueError, match="host's fingerprint="):
        planted(host, EditStore(store_path), 0)
