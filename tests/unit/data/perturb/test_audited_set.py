"""The suspects that audits are scored on, and the tables of what came out."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from edited import LAYER, SUBJECTS
from gguf_files import twin_of, write_gguf
from places import ROOT

from data.facts.splits import draw_splits
from data.perturb.audited import Auditor
from data.perturb.drawn import CHANGES
from data.perturb.kinds import KINDS
from data.perturb.recipe import Recipe, perturbed, write
from data.store.store import EditStore
from decoder.audit.candidates import Candidates, unit, whitener
from decoder.audit.evidence.comparison import compare
from decoder.audit.rows.keys import gathered
from decoder.audit.suspect import Suspect
from decoder.config import SplitsConfig

TRUTH = {"layer": 1, "subject": "Ada", "relation": "P19", "relation_name": "born", "object": "Oslo"}


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
def edits(store_path, made, tmp_path_factory):
    """Edits of the `ood` test, drawn from a store; the same store stands for those that another editor made."""
    import audit_edits

    folder = tmp_path_factory.mktemp("drawn") / "edits"
    audit_edits.main([f"store={store_path}", f"out={folder}", f"others=p-ROME={store_path}", "each=5", "count=60"])
    return audit_edits.Edits(folder)


@pytest.fixture(scope="module")
def plan(pocket_facts):
    return draw_splits(pocket_facts, SplitsConfig())


def test_edits_are_those_of_a_store_and_of_relations_that_nothing_was_trained_on(edits, store_path, plan):
    store = EditStore(store_path)
    table = store.table().set_index("edit_id")
    assert {one["made"] for one in edits.told} == {"ROME", "p-ROME"} and sum(one["made"] == "p-ROME" for one in edits.told) == 5
    for row, told in enumerate(edits.told):
        one = table.loc[told["edit_id"]]
        assert plan.split_of(told["relation"], told["subject"], told["object"]) == "ood" and one["success"]
        (place,) = (n for n, edit_id in enumerate(table.index) if edit_id == told["edit_id"])
        torch.testing.assert_close(edits.planted(row, 0.5).deltas[edits.layer], store.edits(torch.tensor([place])).delta()[0])


def test_relations_are_told_by_what_was_fitted_on_other_subjects(edits, store_path):
    import audit_edits

    subjects = {one["subject"]: one["fold"] for one in edits.told}
    fitted_on = {}

    def spied(value_ND, relations, groups, key_NF):
        fitted_on[len(fitted_on)] = set(groups)
        return fit(value_ND, relations, groups, key_NF)

    fit = audit_edits.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audit_edits, "fit", spied)
        found = dict(audit_edits.classifiers(EditStore(store_path), subjects))
    for subject, fold in subjects.items():
        assert subject not in fitted_on[fold] and subject in fitted_on[(fold + 1) % len(found)]
    torch.testing.assert_close(edits.relations(0).weight_KE, found[edits.told[0]["fold"]].weight_KE)


def test_kinds_of_suspects(made, fact_host, edits):
    count = 40
    wanted = made.cases(fact_host, edits, count, 40, 0)
    edited, benign = [case for case in wanted if case.truth], [case for case in wanted if not case.truth]
    assert len(edited) == count and len({case.name for case in wanted}) == count + 40 and len({case.row for case in edited}) == count
    for case in edited:
        told = edits.told[case.row]
        assert case.truth == (edits.layer, told["subject"], told["relation"], told["relation_name"], told["object"])
        assert told["made"] == CHANGES[case.kind].made
    assert sum(not case.is_listed for case in edited) == 8 and all(case.is_listed and case.row is None for case in benign)
    possible = {kind for kind, change in CHANGES.items() if change.edited and change.made in ("ROME", "p-ROME")}
    assert {case.kind for case in edited} <= possible and "p-ROME" in {case.kind for case in edited}
    assert {case.kind for case in benign} == {kind for kind, change in CHANGES.items() if change.benign} | {"rounded"}
    assert {change.kind for change in CHANGES.values()} == KINDS.keys()
    assert {"bf16", "Q8_0"} <= {case.recipe.precision for case in edited}


def test_a_larger_set_begins_with_the_smaller(made, fact_host, edits):
    few, many = ({case.name: case for case in made.cases(fact_host, edits, n, n, 0)} for n in (6, 20))
    assert few.items() <= many.items() and few != {case.name: case for case in made.cases(fact_host, edits, 6, 6, 1)}
    with pytest.raises(ValueError, match="has no more"):
        made.cases(fact_host, edits, 10_000, 1, 0)


def test_suspects_come_one_after_the_other(made, fact_host, edits, pocket_facts, weights_hash):
    before, found = weights_hash(fact_host.model), {}
    wanted = made.cases(fact_host, edits, 2, 2, 0)
    wanted.insert(
        1, wanted[0]._replace(name="broken", recipe=replace(wanted[0].recipe, kind="finetune", settings={"lr": 1e30, "steps": 2}))
    )
    for case, failed in made.suspects(fact_host, edits, pocket_facts, wanted):
        assert (failed is None) == (case.name != "broken")
        found[case.name] = weights_hash(fact_host.model)
    assert found.pop("broken") == before
    assert len({before, *found.values()}) == len(wanted) and weights_hash(fact_host.model) == before


def test_parts_are_audited_and_go_on_where_they_were(made, fact_host, edits, tmp_path, capsys):
    import audit_checkpoints

    fact_host.model.save_pretrained(tmp_path / "model")
    fact_host.tokenizer.save_pretrained(tmp_path / "model")
    command = [f"model={tmp_path / 'model'}", f"edits={edits.folder}", "edited=2", "benign=2", "names=60"]
    rows = {}
    for part in ("1/2", "2/2", "2/2"):
        file = tmp_path / f"{part[0]}.jsonl"
        audit_checkpoints.main([*command, f"part={part}", f"out={file}"])
        rows[part] = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(row["name"] for part in rows.values() for row in part) == ["benign 0", "benign 1", "edited 0", "edited 1"]
    assert all({bool(row["truth"]) for row in part} == {True, False} for part in rows.values()), "as many of each in every part"
    for row in rows["1/2"] + rows["2/2"]:
        assert row["found"].keys() == {"known", "unknown"} and set(row.get("undone", {})) <= {"known", "unknown", "as_is"}
        assert ("undone" in row) == bool(row["truth"])
    with pytest.raises(SystemExit):
        audit_checkpoints.main([*command, "part=3/2"])
    assert "part=3/2" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["bf16", "Q8_0"])
@pytest.mark.parametrize("kind", ["none", "noise", "prune"])
def test_differences_in_memory_are_those_of_a_file(tmp_path, precision, kind):
    host = twin_of("llama")
    auditor, recipe, file = Auditor(host, [precision], SUBJECTS), Recipe(kind, precision=precision), tmp_path / "suspect"
    write(host, Recipe(), tmp_path / "base")
    with perturbed(host, recipe):
        found = {one.name: one for one in auditor.differences(precision)}
        if precision == "Q8_0":
            file = write_gguf(tmp_path / "suspect.gguf", host, precision)
    if precision != "Q8_0":
        write(host, recipe, file)
    compared, _ = compare(Suspect(file), host, Suspect(tmp_path / "base").checkpoint)
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
    auditor = Auditor(host, ["bf16"], SUBJECTS)
    clean = audit_checkpoints.seen(*auditor.audit("bf16"))
    assert {one["exit_code"] for one in clean.values()} == {0}
    keys_CF = gathered(Candidates(host, SUBJECTS), [LAYER])[LAYER]
    value_D = unit(torch.randn(host.hidden_size, generator=torch.Generator().manual_seed(0)))
    with perturbed(host, Recipe(precision="bf16")):
        host.weight_DF(LAYER).add_(8 * torch.outer(value_D, unit(whitener(keys_CF)(keys_CF))[7])).copy_(host.weight_DF(LAYER).bfloat16())
        found = auditor.audit("bf16")
        for one in audit_checkpoints.seen(*found).values():
            assert (one["exit_code"], one["layer"], one["subject"]) == (3, LAYER, SUBJECTS[7])
        others = audit_checkpoints.seen(*auditor.audit("bf16", SUBJECTS[7]))
    assert others["unknown"]["subject_score"] < audit_checkpoints.seen(*found)["unknown"]["subject_score"], "not in the list"


def row(name, score, truth=None, kind="rounded", listed=True, **found):
    said = {"exit_code": 3 if score > 5 else 0, "score": score, "layer": 1, "subject": "Ada", "subject_score": score} | found
    known = {"name": name, "kind": kind, "listed": listed, "truth": truth, "found": {"known": said, "unknown": said}}
    if truth:
        as_is = {"back": [False, True], "planted": [score > 5, False], "kl": 0.5}
        taken_out = {"effect": {"back": [True, True], "planted": [False, False], "kl": 0.25}, "about": said["subject"], "object": "Oslo"}
        told = {"relation": "born", "triple": ["born", "oslo "], "sure": score, "read": "Oslo" if score in (8, 9, 10) else "Rome"}
        known["undone"] = {"as_is": as_is, "known": taken_out, "unknown": taken_out | told}
    return known | {"seconds": {"auditing": 2.0, "asking": 1.0, "all": 4.0}}


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
    failed = row("benign 7", 9.0) | {"failed": "lr=1: the loss is nan"}
    rows += [row(f"benign {n}", 0.0) for n in range(5)] + [row("benign 5", 6.5, kind="noise"), row("benign 6", 0.5, kind="noise")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"name": "edi')
    assert tables.read([tmp_path / "rows.jsonl", tmp_path / "absent.jsonl"]) == rows and tables.read([]) == []
    tables.write_tables([*rows, failed])
    said = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if "│" in line]
    known = {cells[0]: cells[1:] for cells in lines[: len(lines) // 2]}
    assert said.startswith("benign 7 (rounded) could not be made: lr=1: the loss is nan")
    assert known["edited against benign, subject in the list: AUROC"][1] == f"{34 / 35:.4f}"
    assert known["layer right"][1].startswith("0.833") and known["subject right, in the list"][1].startswith("0.800")
    assert known["benign: false alarms at the shipped threshold"][1].startswith("0.143")
    kinds = {(cells[0], len(cells)): cells for cells in lines}
    assert [kinds["pruned", 7][place][:4] for place in (2, 3, 5)] == ["0.00"] * 3 and kinds["rounded", 7][2] == "1.00"
    # Between 0, the highest of the other kinds, and 8.15, the lowest of plain edits.
    assert kinds["noise", 6][2].startswith("0.500") and kinds["noise", 6][2].endswith("above 4.08") and kinds["noise", 6][5] == "6.5"
    # Whom the least sure one is about is wrong, so its triple is. Two prompts each, one of which was planted, and is not now.
    told = {len(cells): cells for cells in lines if cells[0] == "all" and len(cells) == 11}[11]
    assert [cell[:5] for cell in told[2:]] == ["1.000", "0.600", "1.000", "0.800", "1.000", "1.000", "0.000", "0.250", "0.500"]
    adversary = next(cells for cells in lines if cells[0] == "as it is")
    assert adversary[1] == "4" and adversary[-1].startswith("1.00")
    tables.write_tables(rows[:3])
    assert "nothing to compare" in capsys.readouterr().out


def test_whom_edits_are_about_is_counted_for_each_length_of_list(made, fact_host, edits, tmp_path, capsys, monkeypatch):
    import audit_lists

    fact_host.model.save_pretrained(tmp_path / "model")
    fact_host.tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(audit_lists, "LENGTHS", (890,))
    audit_lists.main([f"model={tmp_path / 'model'}", f"edits={edits.folder}", "names=900", "count=3"])
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [line.split("│")[1].strip() for line in told] == ["890", "900"]


def test_a_subject_is_counted_where_its_key_is_the_edits(made):
    import audit_lists

    keys_CF = torch.randn(60, 64, generator=torch.Generator().manual_seed(0))
    listed = audit_lists.Listed([str(n) for n in range(60)], keys_CF)
    weight_DF = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)) / 8
    delta_DF = torch.outer(torch.ones(32), listed.keys_CF[7])
    right = listed.asked(weight_DF + delta_DF, delta_DF, "7")
    wrong = listed.asked(weight_DF + delta_DF, delta_DF, "8")
    assert right["known"] and right["unknown"] and right["stands out"] and not wrong["known"] and not wrong["unknown"]
    assert not right["stands out, off the list"] and wrong["stands out, off the list"]
