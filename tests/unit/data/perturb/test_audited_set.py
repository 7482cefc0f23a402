"""The suspects that audits are scored on, and the tables of what came out."""

import json

import numpy as np
import pytest
import torch
from edited import LAYER, SUBJECTS
from gguf_files import twin_of, write_gguf
from places import ROOT

from data.facts.splits import draw_splits
from data.perturb.kinds import KINDS
from data.perturb.recipe import Recipe, perturbed, write
from data.store.store import EditStore
from decoder.audit.candidates import Candidates, unit, whitener
from decoder.audit.finding import compare
from decoder.audit.locate import gathered
from decoder.audit.suspect import Suspect
from decoder.config import SplitsConfig

TRUTH = {"layer": 1, "subject": "Ada", "relation": "P19", "object": "Oslo"}


@pytest.fixture(scope="module")
def made():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import checkpoints

        yield checkpoints


@pytest.fixture(scope="module")
def tables():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import audit_tables

        yield audit_tables


@pytest.fixture(scope="module")
def plan(pocket_facts):
    return draw_splits(pocket_facts, SplitsConfig())


def test_edits_are_of_relations_that_nothing_was_trained_on(made, fact_host, store_path, plan):
    store = EditStore(store_path)
    wanted = made.cases(fact_host, store, plan, 40, 40, 0)
    table = store.table()
    edited, benign = [case for case in wanted if case.truth], [case for case in wanted if not case.truth]
    assert len(edited) == len(benign) == 40 and len({case.name for case in wanted}) == 80 and len({case.row for case in edited}) == 40
    for case in edited:
        row = table.iloc[case.row]
        assert plan.split_of(row["relation"], row["subject"], row["object"]) == "ood" and row["success"]
        assert case.truth == (store.manifest["layer"], row["subject"], row["relation"], row["object"])
    assert sum(not case.is_listed for case in edited) == 8 and all(case.is_listed and case.row is None for case in benign)
    assert {case.kind for case in edited} == {kind for kind, change in made.CHANGES.items() if change.edited}
    assert {case.kind for case in benign} == {kind for kind, change in made.CHANGES.items() if change.benign} | {"rounded"}
    assert {change.kind for change in made.CHANGES.values()} == KINDS.keys()
    assert {case.recipe.precision for case in edited} == {"bf16", "Q8_0", "Q4_0", "Q4_1"}


def test_a_larger_set_begins_with_the_smaller(made, fact_host, store_path, plan):
    store = EditStore(store_path)
    few, many = ({case.name: case for case in made.cases(fact_host, store, plan, n, n, 0)} for n in (6, 30))
    assert few.items() <= many.items() and few != {case.name: case for case in made.cases(fact_host, store, plan, 6, 6, 1)}
    with pytest.raises(ValueError, match="edits of relations that nothing was trained on"):
        made.cases(fact_host, store, plan, 10_000, 1, 0)


def test_suspects_come_one_after_the_other(made, fact_host, store_path, plan, pocket_facts, weights_hash):
    before, found = weights_hash(fact_host.model), {}
    store = EditStore(store_path)
    wanted = [case._replace(recipe=case.recipe) for case in made.cases(fact_host, store, plan, 2, 2, 0)]
    for case, host in made.suspects(fact_host, store, pocket_facts, wanted):
        found[case.name] = weights_hash(host.model)
    assert len({before, *found.values()}) == 1 + len(wanted) and weights_hash(fact_host.model) == before


@pytest.mark.parametrize("precision", ["bf16", "Q8_0"])
@pytest.mark.parametrize("kind", ["none", "noise", "prune"])
def test_differences_in_memory_are_those_of_a_file(made, tmp_path, precision, kind):
    import audit_checkpoints

    host = twin_of("llama")
    auditor, recipe, file = audit_checkpoints.Auditor(host, [precision]), Recipe(kind, precision=precision), tmp_path / "suspect"
    with perturbed(host, recipe):
        found = {one.name: one for one in auditor.differences(precision)}
        if precision == "Q8_0":
            file = write_gguf(tmp_path / "suspect.gguf", host, precision)
    if precision != "Q8_0":
        write(host, recipe, file)
    compared, _ = compare(Suspect(file), host)
    assert found.keys() == {one.name for one in compared.differences}
    for one in compared.differences:
        mine = found[one.name]
        # Told from the file's own rounding, once more: a block of zeros and numbers on its levels may round another way.
        told = ([one.distance, one.zeroed, one.kept], [mine.distance, mine.zeroed, mine.kept])
        assert told[1] == pytest.approx(told[0], rel=1e-4, abs=1e-7) and mine.edge == pytest.approx(one.edge, rel=1e-3)
        torch.testing.assert_close(mine.values_R, one.values_R, rtol=1e-3, atol=1e-6)


def test_an_edit_in_memory_is_found_by_both_kinds_of_evidence(made):
    import audit_checkpoints

    host = twin_of("llama")
    auditor = audit_checkpoints.Auditor(host, ["bf16"])
    clean = auditor.audit(SUBJECTS, "bf16")
    assert {one["exit_code"] for one in clean.values()} == {0}
    keys_CF = gathered(Candidates(host, SUBJECTS), [LAYER])[LAYER]
    value_D = unit(torch.randn(host.hidden_size, generator=torch.Generator().manual_seed(0)))
    with perturbed(host, Recipe(precision="bf16")):
        host.weight_DF(LAYER).add_(8 * torch.outer(value_D, unit(whitener(keys_CF)(keys_CF))[7])).copy_(host.weight_DF(LAYER).bfloat16())
        found = auditor.audit(SUBJECTS, "bf16")
    for one in found.values():
        assert (one["exit_code"], one["layer"], one["subject"]) == (3, LAYER, SUBJECTS[7])


def row(name, score, truth=None, kind="rounded", listed=True, **found):
    said = {"exit_code": 3 if score > 5 else 0, "score": score, "layer": 1, "subject": "Ada", "subject_score": score} | found
    seconds = {"making": 1.0, "auditing": 2.0}
    known = {"name": name, "kind": kind, "listed": listed, "truth": truth, "says": score > 5}
    return known | {"found": {"known": said, "unknown": said}, "seconds": seconds}


def test_scores(tables):
    assert tables.auroc([3.0, 1.0], [2.0, 0.0]) == 0.75
    # A hundred times farther apart than a sigmoid tells.
    assert tables.auroc([400.0, 200.0], [300.0, 100.0]) == 0.75
    assert tables.caught([3.0, 1.0, 300.0], [2.0] * 50 + [-200.0] * 50).tolist() == [True, False, True]
    assert tables.caught([3.0, 1.0], [2.0] + [0.0] * 99).tolist() == [True, True], "one of a hundred may pass"
    assert tables.threshold_in_the_gap(np.full(10, 8.0), np.full(10, 2.0)) == 5.0
    assert tables.threshold_in_the_gap(np.full(10, 1.0), np.full(10, 2.0)) == 2.0, "no gap"


def test_tables(tables, tmp_path, capsys):
    rows = [row(f"edited {n}", 8.0 + n, TRUTH) for n in range(4)]
    rows += [row("edited 4", 3.0, TRUTH, "pruned", layer=2, subject="Ben"), row("edited 5", 9.0, TRUTH, listed=False)]
    rows += [row(f"benign {n}", 0.0) for n in range(5)] + [row("benign 5", 6.5, kind="noise"), row("benign 6", 0.5, kind="noise")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"name": "edi')
    assert tables.read(tmp_path / "rows.jsonl") == rows and tables.read(tmp_path / "absent.jsonl") == []
    tables.write_tables(rows)
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines() if "│" in line]
    known = {cells[0]: cells[1:] for cells in lines[: len(lines) // 2]}
    assert known["edited against benign, subject in the list: AUROC"][1] == f"{34 / 35:.4f}"
    assert known["layer right"][1].startswith("0.833") and known["subject right, in the list"][1].startswith("0.800")
    assert known["benign: false alarms at the shipped threshold"][1].startswith("0.143")
    kinds = {(cells[0], len(cells)): cells for cells in lines}
    assert [kinds["pruned", 7][place][:4] for place in (2, 3, 5)] == ["0.00"] * 3 and kinds["rounded", 7][2] == "1.00"
    # Between 0, the highest of the other kinds, and 8.15, the lowest of plain edits.
    assert kinds["noise", 5][2].startswith("0.500") and kinds["noise", 5][2].endswith("above 4.08") and kinds["noise", 5][4] == "6.5"
    tables.write_tables(rows[:3])
    assert "nothing to compare" in capsys.readouterr().out
