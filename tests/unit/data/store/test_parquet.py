"""A store streamed from Parquet files gives what the mapped store gives, a file at a time.

Shape letters: B edits, N edits of a split.
"""

import shutil
import threading
from itertools import islice

import numpy as np
import pytest
import torch
from datasets import load_dataset
from lightning import Trainer

import data.store.parquet
from data.batches import padded_objects
from data.store.parquet import EditStream, write_parquet
from data.store.store import EditStore
from data.stream_loader import StreamLoader, ahead, shuffled
from decoder.training.module import DecoderModule

pytestmark = pytest.mark.usefixtures("drawn_edits", "alive")


@pytest.fixture(scope="module")
def parquet(store_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parquet") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.store.parquet, "FILE_ROWS", 700)
        patch.setattr(data.store.parquet, "CHUNK", 100)
        write_parquet(EditStore(store_path), folder)
    return folder


@pytest.fixture()
def streamed(opened, parquet):
    return lambda **settings: opened(parquet, streaming=True, **settings)


def rows_of(loader) -> list[list[int]]:
    return [batch.row_B.tolist() for batch in loader]


def test_it_is_the_store(parquet, store_path):
    stream, store = EditStream(str(parquet)), EditStore(store_path)
    assert len(list(parquet.glob("*.parquet"))) == 3 and len(stream) == len(store)
    assert stream.table().equals(store.table()) and stream.object_ids == store.object_ids and stream.fingerprint == store.fingerprint
    # Made anew for each edit that asks, it would take minutes for 100,000.
    assert stream.object_ids is stream.object_ids
    rows = torch.tensor([1500, 3, 701, 699, 0])
    assert torch.equal(stream.edits(rows).key_BF, store.edits(rows).key_BF)
    assert torch.equal(stream.edits(rows).value_BD, store.edits(rows).value_BD)


def test_datasets_opens_it(parquet, store_path):
    found = load_dataset("parquet", data_files=[str(file) for file in sorted(parquet.glob("*.parquet"))], split="train", streaming=True)
    assert found.features == EditStore(store_path).dataset.features


def test_evaluation_batches_are_those_of_the_mapped_store(opened, streamed):
    for ours, theirs in zip(opened(eval_batch_size=60).test_dataloader(), streamed(eval_batch_size=60).test_dataloader(), strict=True):
        assert len(ours) == len(theirs)
        for mapped, read in zip(ours, theirs, strict=True):
            assert torch.equal(mapped.edits.key_BF, read.edits.key_BF) and torch.equal(mapped.edits.value_BD, read.edits.value_BD)
            assert torch.equal(mapped.object_ids_BT, read.object_ids_BT) and torch.equal(mapped.row_B, read.row_B)


def test_scores_are_those_of_the_mapped_store(opened, streamed, fact_host):
    """The same decoder, tested by Lightning on both."""
    readings = []
    for edits in (opened(), streamed()):
        edits.cfg.decoder.prompt_length, edits.cfg.trainer.accelerator = 4, "cpu"
        module = DecoderModule(edits.cfg, fact_host)
        Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False).test(module, edits, verbose=False)
        readings.append(module.readings)
    assert readings[0] == readings[1] and len(readings[0]["id"]) > 100


def test_training_rows_come_once_an_epoch_in_another_order(streamed):
    def order(epoch: int, **settings) -> list[list[int]]:
        edits = streamed(shuffle_buffer=200, **settings)
        loader = edits.train_dataloader()
        loader.sampler.set_epoch(epoch)
        found = rows_of(loader)
        assert len(found) == len(loader) and sorted(sum(found, [])) == sorted(edits.rows["train"])
        return found

    first, second = order(0), order(1)
    assert order(1) == second and first != second, "an epoch has its order whatever came before, as a resumed fit needs it"
    assert {len(batch) for batch in first[:-1]} == {32}
    rows = np.array(sum(first, []))
    assert np.abs(np.diff(rows)).mean() > 60, "neighbours in the files are not neighbours in training"


def test_labels_and_objects_follow_their_edits_through_the_shuffle(streamed, opened):
    planted = {row: ids for batch in opened().train_dataloader() for row, ids in zip(batch.row_B.tolist(), unpadded(batch), strict=True)}
    edits = streamed(shuffle_buffer=100)
    for batch in edits.train_dataloader():
        mapped = opened().store.edits(batch.row_B)
        assert torch.equal(batch.edits.key_BF, mapped.key_BF) and torch.equal(batch.edits.value_BD, mapped.value_BD)
        assert unpadded(batch) == [planted[row] for row in batch.row_B.tolist()]


def unpadded(batch) -> list[list[int]]:
    return [[token for token in ids if token >= 0] for ids in batch.object_ids_BT.tolist()]


def test_two_processes_share_the_batches_of_one(streamed):
    whole = rows_of(streamed().train_dataloader())
    loaders = [streamed().train_dataloader() for _ in range(2)]
    for rank, loader in enumerate(loaders):
        loader.rank, loader.world = rank, 2
    for batch, first, second in zip(whole, *map(rows_of, loaders), strict=True):
        assert sorted(first + second) == sorted(batch)


def test_no_more_than_the_buffer_is_held(parquet):
    """What comes out was read at most buffer + one chunk before."""
    read = 0

    def counted():
        nonlocal read
        for part in EditStream(str(parquet)).vectors(list(range(1500))):
            read += len(part.place_B)
            yield part

    out = 0
    for part in shuffled(counted(), 300, np.random.default_rng(0)):
        assert read - out <= 300 + 2 * data.store.parquet.CHUNK
        out += len(part.place_B)
    assert out == 1500


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"store": None}, "data.streaming=true: store= is missing"),
        ({"store": "STORE"}, "holds no Parquet files"),
        ({"store": "nobody/nothing"}, "neither a folder here nor a data set on the Hub"),
        ({"seed": 7}, r"made with edits\.seed=0 \(here 7\)\. "),
    ],
)
def test_what_is_no_stream_is_one_line(streamed, parquet, store_path, fact_host, change, words, monkeypatch):
    from drawn_stores import config

    from data.datamodule import EditDataModule

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cfg = config(parquet, streaming=True)
    cfg.edits.seed = change.get("seed", 0)
    cfg.store = str(store_path) if change.get("store") == "STORE" else change.get("store", cfg.store)
    with pytest.raises(ValueError, match=words) as refusal:
        EditDataModule(cfg, fact_host).prepare_data()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:3000]), "is damaged"),
        (lambda file: file.write_bytes(file.with_name("edits-00002.parquet").read_bytes()), "has .* edits, its manifest says"),
    ],
)
def test_a_file_that_is_not_whole_is_named(parquet, tmp_path, damage, words):
    folder = tmp_path / "copy"
    shutil.copytree(parquet, folder)
    damage(folder / "edits-00000.parquet")
    with pytest.raises(ValueError, match=rf"edits-00000.parquet {words}.*data.produce parquet=FOLDER") as refusal:
        EditStream(str(folder))
    assert "\n" not in str(refusal.value)


def test_edits_of_several_layers_and_terms_are_those_of_the_store(layers_store, fact_host, tmp_path):
    write_parquet(layers_store, tmp_path / "parquet")
    stream, rows = EditStream(str(tmp_path / "parquet")), torch.tensor([7, 0, 4])
    assert stream.layers == [0, 1] and stream.table().equals(layers_store.table())
    for layer, edits in layers_store.edits(rows).by_layer.items():
        read = stream.edits(rows).by_layer[layer]
        assert torch.equal(read.key_BRF, edits.key_BRF) and torch.equal(read.value_BRD, edits.value_BRD)
    weights = {layer: fact_host.weight_DF(layer) for layer in (0, 1)}
    asked = list(range(len(layers_store)))
    ids_NT = padded_objects(layers_store, asked, None)
    for weight_DF in (None, weights):
        found = {row: batch.edits[b] for batch in StreamLoader(stream, asked, ids_NT, 4, shuffle=(0, 3), weight_DF=weight_DF)
                 for b, row in enumerate(batch.row_B.tolist())}  # fmt: skip
        mapped = layers_store.edits(torch.tensor(asked)) if weight_DF is None else layers_store.whole_edits(torch.tensor(asked), weights)
        assert sorted(found) == asked
        for row, edits in found.items():
            for layer, own in mapped[row].by_layer.items():
                assert all(torch.equal(*pair) for pair in zip(vars(edits.by_layer[layer]).values(), vars(own).values(), strict=True))


@pytest.mark.parametrize(("field", "value"), [("matrix_of", {(0, 1): None}), ("manifest", {"editor": {"name": "imported"}})])
def test_what_is_no_columns_of_numbers_or_of_other_tools_is_refused(layers_store, tmp_path, monkeypatch, field, value):
    monkeypatch.setattr(layers_store, field, value)
    with pytest.raises(ValueError, match="whole matrices, several facts a host, or edits of other tools"):
        write_parquet(layers_store, tmp_path / "parquet")
    assert not (tmp_path / "parquet").exists()


def test_a_folder_with_files_is_not_written_to(parquet, store_path):
    with pytest.raises(ValueError, match="not empty"):
        write_parquet(EditStore(store_path), parquet)


def test_reading_ahead_keeps_order_stops_and_passes_errors_on():
    assert list(ahead(range(100), 3)) == list(range(100))
    made = []
    few = ahead((made.append(i) or i for i in range(10**6)), 4)
    assert list(islice(few, 3)) == [0, 1, 2]
    few.close()
    for thread in threading.enumerate():
        if thread.name.startswith("reads ahead"):
            thread.join(timeout=5)
            assert not thread.is_alive()
    assert len(made) <= 3 + 4 + 2

    def broken():
        yield 1
        raise OSError("the disk")

    with pytest.raises(OSError, match="the disk"):
        list(ahead(broken(), 2))
