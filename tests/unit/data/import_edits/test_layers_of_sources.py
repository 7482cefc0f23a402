"""Which layers the sources of an import tell, and what becomes of those that tell none."""

import pytest
from edited import LAYER, NAMES, edited_folder, facts_file, outer, stored
from safetensors.torch import save_file

from data.import_edits.sources import import_edits
from data.store.store import EditStore
from decoder.config.commands import ImportConfig


def importing(host, edited, facts, store) -> EditStore:
    return import_edits(ImportConfig(edited=str(edited), facts=str(facts), store=str(store)), host)


def unchanged(host, folder):
    edited_folder(host, folder, delta=0)


def cut(host, folder):
    edited_folder(host, folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(("first", "reason"), [(unchanged, "no layer's W_V differs"), (cut, "not a whole safetensors")])
def test_the_fault_of_the_first_source_is_its_own(new_host, tmp_path, first, reason):
    host = new_host("llama")
    first(host, tmp_path / "m" / "0")
    for b in (1, 2):
        edited_folder(host, tmp_path / "m" / str(b), delta=outer(host, b))
    store = importing(host, tmp_path / "m", facts_file(tmp_path, 3), tmp_path / "store")
    assert store.manifest["layer"] == LAYER and store.table()["subject"].tolist() == NAMES[1:]
    ((name, why),) = store.manifest["skipped"]
    assert name.endswith("-singer") and why.startswith("0: ") and reason in why


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")], ids=["matrix first", "matrix last"])
def test_a_lone_matrix_is_of_the_layer_that_another_source_tells_wherever_it_stands(new_host, tmp_path, order):
    host, (lone, whole) = new_host("llama"), order
    edited_folder(host, tmp_path / "m" / whole)
    save_file({"weight": stored(host, host.weight_DF(LAYER) + outer(host, 1))}, str(tmp_path / "m" / f"{lone}.safetensors"))
    store = importing(host, tmp_path / "m", facts_file(tmp_path, 2), tmp_path / "store")
    assert len(store) == 2 and store.manifest["layer"] == LAYER and store.manifest["skipped"] == []
