"""The store: what is written is what is read, killed writers go on, damage is named.

Shape letters: N edits, D hidden width, F MLP width.
"""

import json
import shutil

import pytest
import torch
from datasets import load_from_disk

from data.store.manifest import fingerprint_of
from data.store.store import SCORE_COLUMNS, TEXT_COLUMNS, EditStore, find_store
from data.store.writer import StoreWriter

D, F = 6, 9
ASKED = {
    "host": {"id": "tiny", "revision": None, "dtype": "float32", "fingerprint": "0123456789ab"},
    "module": "model.layers.1.mlp.down_proj",
    "layer": 1,
    "base_sha256": "00",
    "editor": {"name": "rome", "settings": {"ridge": 0.01, "steps": 20}},
    "keys": {"tokens": 100},
    "facts": {"source": "test", "sha256": "11"},
    "terminator_id": 3,
    "seed": 0,
}


def columns(count: int, seed: int, mlp_size: int = F) -> dict:
    generator = torch.Generator().manual_seed(seed)
    texts = {name: [f"{name} {seed}-{i}" for i in range(count)] for name in TEXT_COLUMNS}
    scores = {name: torch.rand(count, generator=generator).tolist() for name in SCORE_COLUMNS}
    vectors = {"key": torch.randn(count, mlp_size, generator=generator), "value": torch.randn(count, D, generator=generator)}
    return (
        texts
        | scores
        | vectors
        | {"object_ids": [[seed + 1] * (1 + i % 3) for i in range(count)], "success": [i % 4 > 0 for i in range(count)]}
    )


SHARDS = [columns(5, 0), columns(7, 1), columns(2, 2)]


def write(path, shards=SHARDS, skipped=(), asked=ASKED) -> EditStore:
    writer = StoreWriter(path, asked, 256)
    for index, shard in enumerate(shards):
        writer.write_shard(index, shard, list(skipped) if index == 0 else [])
    return writer.finish(len(shards), writer.skipped(len(shards)))


def keys_of(store):
    return store.edits(torch.arange(len(store))).key_BF


@pytest.fixture()
def store(tmp_path):
    return write(tmp_path / "store", skipped=[["e9", "no token"]])


def test_values_are_read_bit_for_bit(store):
    edits = store.edits(torch.arange(len(store)))
    for name, found in (("key", edits.key_BF), ("value", edits.value_BD)):
        assert torch.equal(found, torch.cat([shard[name] for shard in SHARDS]))
    assert store.object_ids == [ids for shard in SHARDS for ids in shard["object_ids"]]
    table = store.table()
    assert len(store) == len(table) == 14 and "key" not in table
    for name in TEXT_COLUMNS:
        assert table[name].tolist() == [text for shard in SHARDS for text in shard[name]]
    for name in SCORE_COLUMNS:
        torch.testing.assert_close(
            torch.tensor(table[name].to_numpy()), torch.tensor([x for shard in SHARDS for x in shard[name]]), rtol=0, atol=0
        )
    assert table["success"].tolist() == [done for shard in SHARDS for done in shard["success"]]


def test_edits_of_rows(store):
    edits, (keys, values) = store.edits(torch.tensor([13, 0])), (torch.cat([shard[name] for shard in SHARDS]) for name in ("key", "value"))
    assert torch.equal(edits.key_BF, keys[[13, 0]]) and torch.equal(edits.value_BD, values[[13, 0]])


def test_datasets_opens_it(store):
    dataset = load_from_disk(str(store.path))
    assert dataset.num_rows == 14 and dataset[6]["edit_id"] == "edit_id 1-1"
    assert torch.equal(torch.tensor(dataset[6]["key"]), SHARDS[1]["key"][1])
    assert dataset.features["key"].length == F and dataset.features["value"].length == D


def test_manifest(store):
    manifest = json.loads((store.path / "manifest.json").read_text())
    assert {name: manifest[name] for name in ASKED} == ASKED
    assert manifest["format"] == 1
    assert manifest["counts"] == {"rows": 14, "success": 9, "skipped": 1} and manifest["skipped"] == [["e9", "no token"]]
    assert set(manifest["files"]) == {file.name for file in store.path.iterdir()} - {"manifest.json"}


def test_nothing_but_the_store_is_left(store):
    assert [path.name for path in store.path.parent.iterdir()] == ["store"]
    assert not [path for path in store.path.iterdir() if path.name.endswith(".tmp")]


def test_fingerprint_is_of_the_edits(store, tmp_path):
    assert write(tmp_path / "again").fingerprint == store.fingerprint
    assert write(tmp_path / "other", SHARDS[:2]).fingerprint != store.fingerprint


def test_killed_writer_goes_on_after_its_shards(tmp_path):
    killed = StoreWriter(tmp_path / "store", ASKED, 256)
    killed.write_shard(0, SHARDS[0], [["e9", "no token"]])
    killed.write_shard(1, SHARDS[1], [])
    assert not (tmp_path / "store").exists(), "nothing unfinished is seen in the store's place"
    writer = StoreWriter(tmp_path / "store", ASKED, 256)
    assert [writer.has_shard(index) for index in range(3)] == [True, True, False]
    writer.write_shard(2, SHARDS[2], [])
    store = writer.finish(3, writer.skipped(3))
    assert torch.equal(keys_of(store), torch.cat([shard["key"] for shard in SHARDS]))
    assert store.manifest["counts"]["skipped"] == 1


def test_half_written_shard_is_made_again(tmp_path):
    killed = StoreWriter(tmp_path / "store", ASKED, 256)
    killed.write_shard(0, SHARDS[0], [])
    whole, half = killed.partial / "shard-00000", killed.partial / "half-00001-killed"
    shutil.copytree(whole, half)
    (half / "skipped.json").rename(half / "half.json")
    writer = StoreWriter(tmp_path / "store", ASKED, 256)
    assert not writer.has_shard(1)
    writer.write_shard(1, SHARDS[1], [])
    assert writer.has_shard(1) and len(writer.finish(2, [])) == 12
    assert not writer.partial.exists(), "what a killed writer left goes with the shards"


def test_the_first_of_two_writers_of_a_shard_wins(tmp_path):
    first, second = StoreWriter(tmp_path / "store", ASKED, 256), StoreWriter(tmp_path / "store", ASKED, 256)
    first.write_shard(0, SHARDS[0], [])
    second.write_shard(0, SHARDS[1], [])
    assert sorted(file.name for file in first.partial.iterdir()) == ["asked.json", "shard-00000"]
    assert torch.equal(keys_of(second.finish(1, [])), SHARDS[0]["key"])


def test_killed_while_joining(tmp_path):
    killed = StoreWriter(tmp_path / "store", ASKED, 256)
    killed.write_shard(0, SHARDS[0], [])
    (killed.partial / "joined").mkdir()
    (killed.partial / "joined" / "data-00000-of-00001.arrow").write_bytes(b"half")
    assert len(StoreWriter(tmp_path / "store", ASKED, 256).finish(1, [])) == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, r"holds shards made with edits\.seed=0 \(here 1\)\. Give these settings, another store=, or remove the folder$"),
        ({"host": ASKED["host"] | {"dtype": "bfloat16"}}, r"host\.dtype=float32 \(here bfloat16\)"),
    ],
)
def test_shards_made_for_something_else_are_refused(tmp_path, change, words):
    StoreWriter(tmp_path / "store", ASKED, 256).write_shard(0, SHARDS[0], [])
    with pytest.raises(ValueError, match=words):
        StoreWriter(tmp_path / "store", ASKED | change, 256)
    assert StoreWriter(tmp_path / "store", ASKED, 256).has_shard(0), "the good shards are kept"


def test_check_names_the_field(store):
    store.check(ASKED)
    settings = {"name": "rome", "settings": {"ridge": 0.1, "steps": 20}}
    host = ASKED["host"]
    for change, words in (
        ({"layer": 2, "module": "model.layers.2.mlp.down_proj", "base_sha256": "01"}, "edits.layer=1 (here 2)"),
        ({"editor": settings, "seed": 2}, "edits.ridge=0.01 (here 0.1), edits.seed=0 (here 2)"),
        ({"editor": {"name": "memit", "settings": {}}}, "edits.editor=rome (here memit)"),
        ({"host": host | {"id": "big", "fingerprint": "ab"}, "base_sha256": "01"}, "host.name=tiny (here big)"),
        ({"host": host | {"fingerprint": "ab"}, "base_sha256": "01"}, "host's fingerprint=0123456789ab (here ab)"),
        ({"facts": {"source": "test", "sha256": "12" * 32}}, "sha256 of the facts=11 (here 121212121212)"),
        ({"keys": {"tokens": 100, "ridge": 0.1}}, "edits.ridge=null (here 0.1)"),
        ({"keys": {"tokens": 100, "text": "ab" * 32}}, "keys.text=the facts told (here a text of sha256 abababababab)"),
        ({"keys": {"tokens": 100, "sampled": {"top_k": 50}}}, "keys.text=the facts told (here self)"),
        ({"terminator_id": None}, "token of host.terminator=3 (here null)"),
        ({"rank": 2, "facts_per_host": 2}, "edits.facts_per_host=1 (here 2)"),
    ):
        with pytest.raises(ValueError) as refused:
            store.check(ASKED | change)
        assert str(refused.value) == f"store {store.path}: made with {words}. Give these settings, another store=, or make it anew"


def test_check_of_a_field_the_manifest_lacks(store):
    with pytest.raises(ValueError, match="number of edits planned by .*=null .here 3"):
        store.check(ASKED | {"requests": {"count": 3}})


def test_damaged_files_are_named(store):
    for name in store.manifest["files"]:
        file = store.path / name
        whole = file.read_bytes()
        for damaged in (whole[: len(whole) // 2], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match=f"{name} is cut short or changed"):
                EditStore(store.path)
        file.unlink()
        with pytest.raises(ValueError, match=f"{name} is missing"):
            EditStore(store.path)
        file.write_bytes(whole)
    EditStore(store.path)


def test_bad_manifests_are_refused(store):
    file = store.path / "manifest.json"
    whole = file.read_text()
    entries = json.loads(whole)
    for text, words in (
        (whole[:100], "not whole JSON"),
        (whole.replace('"format": 1', '"format": 99'), "format 99, this version reads 1"),
        ("[]", r"\[\] came, expected entries"),
        ('{"format": 1}', "it lacks host, editor, files"),
        (json.dumps({name: entry for name, entry in entries.items() if name != "layer"}), "it lacks layer"),
        (json.dumps(entries | {"layers": [1]}), r"layers is \[1\], expected list should have at least 2 items"),
        (json.dumps(entries | {"layer": "1"}), "layer is '1', expected a valid integer"),
        (json.dumps(entries | {"files": list(entries["files"])}), r"files is \[.*\], expected a valid dictionary"),
        (json.dumps(entries | {"editor": "rome"}), "editor is 'rome', expected a valid dictionary"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=rf"{file}.*{words}"):
            EditStore(store.path)
    file.unlink()
    with pytest.raises(ValueError, match="no manifest.json"):
        EditStore(store.path)


def test_find_store_by_fingerprint(tmp_path):
    first, second = (write(tmp_path / "stores" / name, SHARDS[:count]) for name, count in (("a", 1), ("b", 2)))
    assert find_store(str(tmp_path), second.fingerprint).path == second.path
    assert find_store(str(tmp_path), first.fingerprint).path == first.path
    # Another store's damage is not this one's.
    (first.path / "manifest.json").write_text('{"format": 1}')
    assert find_store(str(tmp_path), second.fingerprint).path == second.path
    with pytest.raises(ValueError, match="0000"):
        find_store(str(tmp_path), "0000")


def test_vectors_of_another_length_are_refused(tmp_path):
    with pytest.raises(ValueError):
        write(tmp_path / "store", [SHARDS[0], columns(3, 5, mlp_size=F + 1)])
    ragged = SHARDS[0] | {"value": torch.randn(4, D)}
    with pytest.raises(ValueError):
        write(tmp_path / "ragged", [ragged])
    assert not (tmp_path / "store").exists() and not (tmp_path / "ragged").exists()


def test_shard_of_which_all_was_skipped(tmp_path):
    store = write(tmp_path / "store", [SHARDS[0], columns(0, 1), SHARDS[2]], skipped=[["e1", "why"]])
    assert torch.equal(keys_of(store), torch.cat([SHARDS[0]["key"], SHARDS[2]["key"]])) and len(store) == 7


def test_whole_matrices_are_part_of_what_a_store_is_known_by():
    files = {"data-0.arrow": "a", "matrices-0.safetensors": "b", "state.json": "c"}
    assert fingerprint_of(files) != fingerprint_of(files | {"matrices-0.safetensors": "d"})
    assert fingerprint_of(files) == fingerprint_of(files | {"state.json": "d"})
