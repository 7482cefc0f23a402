"""Who reads whom and what many edits do to a host: tables and pages from lines that nobody measured."""

import json

import pytest

from decoder.report.__main__ import main
from decoder.report.editing.chains import MEASURES, by_host, first_broken, read_collapse, value
from decoder.report.editing.collapse import markdown as collapse_tables
from decoder.report.editing.readers import markdown, read_readers, rows, summary, write_readers
from decoder.scores import share, wilson

EDITORS = ["rome", "memit", "ft"]


def reading(train, seed, read, hits, split="ood", n=100, **more):
    scores = {"n": n, "exact_match": share([True] * hits + [False] * (n - hits))}
    about = {"host": "pocket", "layer": 1, "editors": EDITORS, "train_edits": 50, "steps": 700}
    return about | {"train": list(train), "seed": seed, "read": read, "split": split} | scores | more


READINGS = [
    reading([editor], seed, read, 90 - 40 * (editor != read) + seed) for editor in EDITORS for read in EDITORS for seed in (0, 1, 2)
]
READINGS += [
    reading([e for e in EDITORS if e != left], seed, read, 60 if read == left else 80)
    for left in EDITORS
    for read in EDITORS
    for seed in (0, 1)
]
READINGS += [reading(EDITORS, 0, read, hits) for read, hits in zip(EDITORS, (88, 89, 70), strict=True)]


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_rows_are_decoders_of_one_then_all_but_one_then_all(tmp_path):
    write(tmp_path / "a.jsonl", READINGS[::2])
    write(tmp_path / "b.jsonl", READINGS[1::2])
    table = rows(read_readers(tmp_path), "ood")
    assert sorted(row.name for row in table[:3]) == sorted(EDITORS)
    assert {row.name for row in table[3:6]} == {"all but rome", "all but memit", "all but ft"} and table[6].name == "all"
    rome = next(row for row in table if row.name == "rome")
    assert rome.cells["rome"].values == (0.90, 0.91, 0.92) and rome.cells["rome"].mean == pytest.approx(0.91) and rome.seeds == 3
    assert rome.cells["rome"].interval == wilson(91, 100) and str(rome.cells["memit"]).startswith("0.510 [0.413, 0.606]")
    assert next(row for row in table if row.name == "all but ft").own == {"rome", "memit"}


def test_the_summary_compares_all_with_one_and_takes_the_median_of_those_left_out():
    close, left = summary(rows(READINGS, "ood"))
    assert "within 0.05 of a decoder of one editor for 2 of 3 editors" in close and "lost on ft (+0.210)" in close
    assert "at 0.600 in the median" in left
    assert summary(rows([line for line in READINGS if len(line["train"]) == 1], "ood")) == []


def test_what_gates_made_of_several_decoders_are_rows_of_their_own(tmp_path):
    gates = [reading([other for other in EDITORS if other != left], 0, read, 80, gated=True) for left in ("rome", "") for read in EDITORS]
    table = {row.name: row for row in rows(read_readers(write(tmp_path / "a.jsonl", [*READINGS, *gates])), "ood")}
    assert list(table)[7:] == ["gate of all but rome", "gate of all"] and table["all"].cells["ft"].mean == 0.7
    told = " ".join(summary([*table.values()]))
    assert "By a gate of all decoders editors are read within 0.05" in told and "at 0.800 in the median by a gate of the others" in told
    learnt = reading(["rome"], 0, "rome", 70, "val/id", answers={"a": [0.5, 1, 2.0]})
    assert "val/id" not in markdown(read_readers(write(tmp_path / "b.jsonl", [*READINGS, learnt]))), "gates learn there"


def test_markdown_and_page_hold_every_cell_and_mark_what_was_not_trained_on(tmp_path, capsys):
    lines = [*READINGS, reading(["rome"], 0, "rome", 7, "unseen_object", 10)]
    file = write(tmp_path / "lines.jsonl", lines)
    main([f"readers={file}", f"to={tmp_path / 'page'}"])
    told = capsys.readouterr().out
    assert told.startswith(markdown(lines)) and "| **0.510 [0.413, 0.606]** |" in told and "| 0.910 [0.838, 0.952] |" in told
    assert "rome (n 100)" in told and "`unseen_object`, exact match" in told and "0.700" in told
    page = write_readers(file, tmp_path).read_text(encoding="utf-8")
    assert page.count("<table") == 2 and page.count('class="number other"') == 2 * 3 + 3 and "seed" in page
    assert 'title="0.900 0.910 0.920 n=100"' in page


def test_hosts_and_layers_have_tables_of_their_own(tmp_path, capsys):
    """Whose lines lie in one folder are not put together, and none takes the place of another's."""
    other = [line | {"host": "smollm2-135m", "layer": 8, "exact_match": share([True] * 20 + [False] * 80)} for line in READINGS]
    deep = [line | {"layer": 2, "editors": ["rome"]} for line in READINGS if line["read"] == "rome" and line["train"] == ["rome"]]
    write(tmp_path / "z.jsonl", READINGS)
    write(tmp_path / "a.jsonl", [*other, *deep])
    main([f"readers={tmp_path}"])
    told = capsys.readouterr().out
    parts = told.split("## ")[1:]
    assert [part.splitlines()[0] for part in parts] == ["pocket, layer 1", "pocket, layer 2", "smollm2-135m, layer 8"]
    assert parts[0].strip() == markdown(READINGS).removeprefix("## ").strip()
    assert "0.910 [" in parts[0] and "memit" not in parts[1] and "0.910 [" not in parts[2] and parts[2].count("0.200 [") > 9
    page = (tmp_path / "readers.html").read_text(encoding="utf-8")
    assert page.count("<table") == 3 and page.count("<h2>") == 3 and page.index("pocket, layer 2") < page.index("smollm2-135m, layer 8")


def test_every_host_is_told_with_what_counts_as_broken_there(tmp_path, capsys):
    other = [line | {"host": "smollm2-135m", "layer": 8, "broken_from": 3.0} for line in CHAINS]
    mixed = [line | {"host": "x", "settings": {"broken_from": times}, "broken_from": times} for line in CHAINS[:3] for times in (4.0, 1.5)]
    write(tmp_path / "chains.jsonl", [*other, *CHAINS, *mixed])
    main([f"collapse={tmp_path}"])
    told = capsys.readouterr().out
    page = " ".join((tmp_path / "collapse.html").read_text(encoding="utf-8").split())
    for host, times in (("pocket, layer 1", "2"), ("smollm2-135m, layer 8", "3"), ("x, layer 1", "1.5 or 4")):
        assert f"{host}; broken: perplexity of neutral text above {times} times" in told
        assert f"neutral text is above {times} times" in page


@pytest.mark.parametrize(
    ("change", "message"), [({"n": 0}, "line 1: n is 0"), ({"seed": "x"}, "line 1: seed is 'x'"), (None, "no line there")]
)
def test_lines_of_another_kind_are_named(tmp_path, change, message):
    write(tmp_path / "x.jsonl", [] if change is None else [READINGS[0] | change])
    for name in ("readers", "collapse"):
        if name == "readers" or change is None:
            with pytest.raises(SystemExit):
                main([f"{name}={tmp_path}"])
    with pytest.raises(ValueError, match=message):
        read_readers(tmp_path)
    with pytest.raises(ValueError, match="no such file; give the folder that benchmarks/editors.py wrote"):
        read_readers(tmp_path / "absent")
    (tmp_path / "x.jsonl").write_text(json.dumps(READINGS[0])[:-9] + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1: not whole JSON; give"):
        read_readers(tmp_path)


def found(editor, seed, facts, perplexity, **more):
    line = {"host": "pocket", "layer": 1, "editor": editor, "seed": seed, "facts": facts, "first": 1.0, "last": float(seed), "asked": 10}
    line |= {"efficacy": 0.8, "specificity": 0.5 if seed else None, "norm_ratio": 0.1 * facts, "perplexity": perplexity}
    return line | {"clean_perplexity": 2.0, "broken": perplexity > 4, "broken_from": 2.0} | more


CHAINS = [
    found(editor, seed, facts, 2.0 + facts * (editor == "ft") * (1 + seed))
    for editor in ("rome", "ft")
    for seed in (0, 1)
    for facts in (1, 2, 5)
]


def test_what_is_no_text_and_a_file_in_place_of_a_folder_are_one_line(tmp_path, capsys):
    (tmp_path / "latin.jsonl").write_bytes(b'{"host": "caf\xe9"}\n')
    for words, said in (([], "latin.jsonl, line 1: not whole JSON; give"), ([f"to={tmp_path}/latin.jsonl"], "it is a file; give a folder")):
        for what in ("collapse", "readers"):
            with pytest.raises(SystemExit, match="2"):
                main([f"{what}={tmp_path}", *words])
            assert said in capsys.readouterr().err


def test_seeds_are_put_together_and_a_host_is_broken_where_most_are():
    series = by_host(CHAINS)["pocket", 1]
    assert list(series) == ["ft", "rome"] and list(series["ft"]) == [1, 2, 5]
    by_name = {measure.name: measure for measure in MEASURES}
    assert value(series["ft"][2], by_name["last"]) == 0.5 and value(series["ft"][2], by_name["specificity"]) == 0.5
    assert value(series["ft"][5], by_name["perplexity"]) == pytest.approx((3.5 + 6) / 2), "over the clean host's"
    assert first_broken(series["ft"]) == 5 and first_broken(series["rome"]) is None


def test_chains_are_a_table_a_picture_and_a_page(tmp_path, capsys):
    write(tmp_path / "chains.jsonl", CHAINS)
    main([f"collapse={tmp_path}"])
    told = capsys.readouterr().out
    assert told.startswith(collapse_tables(read_collapse(tmp_path))) and "| ft | 2 | 5 | 0.80 [0.584, 0.919] |" in told and "2 of 2" in told
    page = (tmp_path / "collapse.html").read_text(encoding="utf-8")
    svg = (tmp_path / "collapse.svg").read_text(encoding="utf-8")
    assert page.count("<svg") == 1 and "never" in page and '<td class="number">5</td>' in page
    assert svg.startswith("<svg") and "perplexity over the clean host" in svg and "--page" in svg
