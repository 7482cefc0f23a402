"""Keys of names, as the plain way has them, and files of subjects.

Shape letters: C candidates, F MLP width.
"""

import json

import pytest
import torch
from audited_folders import WHO, planted
from edited import LAYER
from edited import SUBJECTS as NAMES

from decoder.audit.candidates import Candidates, read_subjects
from decoder.audit.locate import scan
from decoder.audit.rows.keys import gathered, usable_layers
from decoder.host import Host


def plain_keys(host, layer: int, text: str) -> torch.Tensor:
    """The input of the down-projection at the last token of a text, in a forward of its own."""
    caught = []
    with host.down_proj(layer).register_forward_pre_hook(lambda module, args: caught.append(args[0])), torch.no_grad():
        host.model(torch.tensor([host.text_ids(text)]))
    return caught[0].reshape(-1, caught[0].shape[-1])[-1]


@pytest.mark.parametrize("template", ["the city of {}", "{}"])
def test_keys_are_those_of_a_forward_of_each_name(any_host, template):
    layers, rows = usable_layers(any_host), [0, 7, 20, 64, 75]
    keys = gathered(Candidates(any_host, NAMES, template), layers)
    for layer in layers:
        expected_CF = torch.stack([plain_keys(any_host, layer, template.format(NAMES[row])) for row in rows])
        torch.testing.assert_close(keys[layer][rows], expected_CF, rtol=1e-4, atol=1e-5)


def test_a_host_is_left_as_it_was_and_runs_no_further_than_asked(host_of):
    host = host_of("llama")
    above = []
    with host.down_proj(2).register_forward_hook(lambda *_: above.append(1)):
        gathered(Candidates(host, NAMES, "{}"), [0, 1])
    assert not above and not any(block._forward_pre_hooks for block in host.model.modules())


@pytest.mark.parametrize("count", [0, 49])
def test_too_few_names_are_refused(host_of, count):
    with pytest.raises(ValueError, match=f"^{count} subjects came, expected 50 to"):
        Candidates(host_of("llama"), NAMES[:count])


def test_a_name_longer_than_the_host_reads_is_refused(host_of):
    with pytest.raises(ValueError, match="a subject takes 72 tokens with the words before it, llama reads 64"):
        Candidates(host_of("llama"), [*NAMES, "Ada " * 69], "the city of {}")


MORE = [f"Eve {n}" for n in range(48)]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffAda\r\n\n Ben\u00a0of  Ulm \nAda\n" + "\n".join(MORE),
        json.dumps(["Ada", "Ben of Ulm ", "", "Ada", *MORE]),
        "\n".join(["[Ada]", "Ben of Ulm", *MORE]),
    ],
    ids=["lines", "json", "brackets"],
)
def test_subjects_are_lines_or_a_list(tmp_path, text):
    (tmp_path / "names").write_text(text, encoding="utf-8")
    assert [name.strip("[]") for name in read_subjects(tmp_path / "names")] == ["Ada", "Ben of Ulm", *MORE]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\xff\xfe\x00A", "neither lines of text"),
        (b'["Ada", ', "names: 1 subjects came, expected 50 to"),
        (b'{"Ada": 1}', "names: its lines are JSON objects; expected a name a line"),
        (b'["Ada", {"subject": "Ben"}]', "entry 2 is {'subject': 'Ben'}, expected a name"),
        (b"Ada\n" + b"x" * 201, "entry 2 is 'xx"),
        (b"Ada\nBe\x00n", "entry 2 is 'Be"),
    ],
    ids=["binary", "cut", "object", "objects", "long", "control"],
)
def test_what_is_no_list_of_names_is_one_line(tmp_path, content, told):
    (tmp_path / "names").write_bytes(content)
    with pytest.raises(ValueError, match=told):
        read_subjects(tmp_path / "names")


EXPECTED = "; expected a name a line or a JSON list. Give the names alone"
TABLE = [f"{name},19{n:02}" for n, name in enumerate(MORE)]


@pytest.mark.parametrize(
    ("lines", "came"),
    [
        ([f"{name}\t19{n:02}\tUlm" for n, name in enumerate(MORE)], "48 of 48 lines hold tabs, as 'Eve 0\\t1900\\tUlm' does"),
        (["# of Ulm", *(f" {name}\tx" for name in MORE)], "48 of 49 lines hold tabs, as 'Eve 0\\tx' does"),
        (["name,year", *TABLE], "its first line 'name,year' is the head of a table"),
        (["city,population", "", *TABLE], "its first line 'city,population' is the head of a table"),
        (['"Subject", "Born in"', *TABLE], 'its first line \'"Subject", "Born in"\' is the head of a table'),
        (["id;name", *(line.replace(",", ";") for line in TABLE)], "its first line 'id;name' is the head of a table"),
        (["item,itemLabel", *TABLE], "its first line 'item,itemLabel' is the head of a table"),
        (["Full Name,Born", *TABLE], "its first line 'Full Name,Born' is the head of a table"),
        ([f'{{"name": "{name}"}}' for name in MORE], "its lines are JSON objects"),
        ([f'"{name}"' for name in MORE], "its lines stand in quotes, as '\"Eve 0\"' does"),
        ([f"{name};Q{n}" for n, name in enumerate(MORE)], "48 of 48 lines hold columns, as 'Eve 0;Q0' does"),
        ([f"| {name} | Ulm |" for name in MORE], "48 of 48 lines hold columns, as '| Eve 0 | Ulm |' does"),
        (TABLE, "48 of 48 lines hold columns, as 'Eve 0,1900' does"),
        ([f"{name}, Q{n}" for n, name in enumerate(MORE)], "48 of 48 lines hold columns, as 'Eve 0, Q0' does"),
        ([f'"Ulm, {name}",1900' for name in MORE], "48 of 48 lines hold columns, as '\"Ulm, Eve 0\",1900' does"),
        (["# Names", "", *(f"- {name}" for name in MORE)], "48 of 49 lines begin with marks of a list, as '- Eve 0' does"),
        ([f" * {name}" for name in MORE], "48 of 48 lines begin with marks of a list, as '* Eve 0' does"),
        ([f"{n}. {name}" for n, name in enumerate(MORE)], "48 of 48 lines begin with marks of a list, as '0. Eve 0' does"),
        ([f"{n}) {name}" for n, name in enumerate(MORE)], "48 of 48 lines begin with marks of a list, as '0) Eve 0' does"),
        (["Name", *MORE], "its first line 'Name' is the head of a column"),
        (["item_label", "", *MORE], "its first line 'item_label' is the head of a column"),
        (["Full name:", *MORE], "its first line 'Full name:' is the head of a column"),
    ],
    ids=[
        "tabs", "a comment", "header", "of other words", "quoted", "semicolons", "camels", "words", "JSON lines", "quotes",
        "headless", "bars", "commas", "ids", "quoted cells", "dashes", "stars", "numbers", "brackets", "name", "label", "colon",
    ],
)  # fmt: skip
def test_a_table_is_no_list_of_names(tmp_path, lines, came):
    (tmp_path / "names").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ValueError) as refused:
        read_subjects(tmp_path / "names")
    assert str(refused.value) == f"subjects={tmp_path / 'names'}: {came}{EXPECTED}"


@pytest.mark.parametrize(
    "names",
    [
        ["Washington, D.C.", *(f"{name}, Texas" for name in MORE), "Ulm"],
        [f"paris, texas {n}" for n in range(50)],
        ["Paris, Texas", *(f"Paris {n}, Ulm" for n in range(49))],
        ["name,year", *MORE, "Ulm"],
        ["Ada\tof Ulm", *MORE, "Ulm"],
        ["Your Name", "Ada,of Ulm", "AC;DC", "Ulm, 1900", "1. FC Ulm", "- 30 -", *MORE],
        [f"{name}, 3rd" for name in (*MORE, "Ada", "Ben")],
    ],
    ids=["capitals", "small", "words", "one comma", "one tab", "some of all", "ordinals"],
)
def test_names_with_commas_are_names(tmp_path, names):
    (tmp_path / "names").write_text("\n".join(names), encoding="utf-8")
    assert read_subjects(tmp_path / "names") == [" ".join(name.split()) for name in names]
    (tmp_path / "names").write_text(json.dumps(["name,year", *TABLE, "Ulm"]), encoding="utf-8")
    assert len(read_subjects(tmp_path / "names")) == 50


def test_names_beyond_the_sample_and_layers_beyond_the_budget_change_nothing_but_the_whitening(new_host, tmp_path, monkeypatch):
    host = new_host("llama")
    planted(host, tmp_path / "edited", dtype="float32")
    edited = Host.load(tmp_path / "edited", name="edited")
    whole = scan(edited, Candidates(edited, NAMES))
    edited.memory_budget = 1
    assert [(one.score, one.hits) for one in scan(edited, Candidates(edited, NAMES))] == [(one.score, one.hits) for one in whole]
    monkeypatch.setattr("decoder.audit.rows.keys.WHITENING", 40)
    streamed = scan(edited, Candidates(edited, NAMES))
    assert [one.layer for one in streamed if one.hits] == [LAYER] and streamed[LAYER].hits[0][0] == whole[LAYER].hits[0][0] == WHO
    monkeypatch.setattr("decoder.audit.reversal.LISTED", 10)
    (few,) = [one for one in scan(edited, Candidates(edited, NAMES)) if one.hits]
    assert few.keys_LF.untyped_storage().nbytes() == 10 * 4 * host.mlp_size(LAYER), "no other keys are held"
    assert len(few.fit_HC[0]) == len(NAMES) and int(few.fit_HC[0].argmax()) == WHO, "though all are looked at"
    assert streamed[LAYER].score == pytest.approx(streamed[LAYER].hits[0][1], rel=1e-4), "the keys taken once more are whitened alike"
