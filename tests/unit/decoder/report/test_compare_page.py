"""The page of a comparison, from results that nobody measured: its parts, its table, and what it looks like in a browser."""

import csv
import json
import re
import time
import xml.etree.ElementTree
from pathlib import Path

import pytest
from browser import browse, needs_browser
from fabricated_runs import write_grid, write_run
from matplotlib.image import imread

from decoder.report.__main__ import main
from decoder.report.compare_page import write_comparison
from decoder.report.layer_curves import Series, layer_curves, run_rows
from decoder.report.results import find_runs
from decoder.utils.errors import UserError

PROBE = """<script>addEventListener("load", () => {
  const head = [...document.querySelectorAll("#table th button")].find(button => button.textContent === "id");
  const column = head.parentNode.cellIndex, rows = () => [...document.querySelectorAll("#table tbody tr")];
  const values = () => rows().map(row => +row.cells[column].dataset.value);
  const box = query => { const found = document.querySelector(query).getBoundingClientRect(); return [found.width, found.height]; };
  head.click(); const up = values(); head.click();
  const seen = { up, down: values(), curve: box("figure.curve svg"), heat: box("figure.heat svg"), table: box("#table"),
    overflow: document.documentElement.scrollWidth - innerWidth };
  document.body.dataset.seen = JSON.stringify(seen);
});</script>"""


@pytest.fixture(scope="module")
def grid(tmp_path_factory) -> Path:
    return write_grid(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def page(grid) -> str:
    return write_comparison(find_runs([grid]), grid).read_text(encoding="utf-8")


def rows_of(top: Path) -> list[dict]:
    return run_rows(find_runs([top]).finished)


@pytest.mark.parametrize("part", ["edited_layer", "baselines"])
def test_a_result_without_its_parts_is_named_and_left_out(tmp_path, part):
    write_run(tmp_path, 1, 1, 0)
    file = write_run(tmp_path, 1, 2, 0) / "result.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {part: None}))
    found = find_runs([tmp_path])
    page = write_comparison(found, tmp_path).read_text(encoding="utf-8")
    assert len(found.results) == 1 and f"{part}: not there or of another kind" in page and str(file) in page


def test_runs_that_have_only_begun_are_a_page_too(tmp_path):
    begun = tmp_path / "pocket" / "rome-e0-t5-s0"
    begun.mkdir(parents=True)
    for name in ("config.yaml", "overrides.txt"):
        (begun / name).write_text("")
    assert "1 not finished" in write_comparison(find_runs([tmp_path]), tmp_path).read_text(encoding="utf-8")


def test_decoders_of_several_layers_are_in_the_table_only(tmp_path):
    write_run(tmp_path, 1, [0, 1], 0)
    write_run(tmp_path, 1, 1, 0)
    rows = rows_of(tmp_path)
    assert {row["trained_layer"] for row in rows} == {"0+1", 1}
    assert [point.layer for point in layer_curves(rows)[Series("pocket", "", 1)]["id"]] == [1]
    assert "0+1" in write_comparison(find_runs([tmp_path]), tmp_path).read_text(encoding="utf-8")


def test_page_has_every_part_and_needs_nothing_else(page):
    assert page.count("<svg") == 3
    for part in (
        "36 finished runs",
        "Best trained layer by validation",
        "Layer curve: pocket",
        "Edited × trained layer",
        "Learning curves",
        "toy",
    ):
        assert part in page, part
    assert page.count('<td class="number" data-value="') > 36 * 5 and "What differs" in page and "decoder.layer" in page
    assert not re.search(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", page)
    assert not re.search(r"<link|@import|url\(['\"]?(?!#)|fetch\(|mathdefault", page)
    assert "#0072b2" not in page.split("</style>", 1)[1], "a figure does not follow the page's colours"


@pytest.mark.parametrize("name", ["curve", "heat"])
def test_figures_are_files_of_their_own(grid, page, name):
    figure = xml.etree.ElementTree.parse(grid / f"compare-{name}.svg").getroot()
    style, whole = figure[0].text, (grid / f"compare-{name}.svg").read_text(encoding="utf-8")
    used = set(re.findall(r"var\((--\w+)\)", whole))
    assert figure[0].tag.endswith("style") and "prefers-color-scheme: dark" in style
    assert {"--page", "--ink"} < used and all(f"{colour}:" in style for colour in used)


def test_csv_has_a_line_a_run(grid, page):
    with (grid / "compare.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 36 and {"run", "edited_layer", "trained_layer", "layer_frac", "seed", "ood", "ood_low", "validation"} <= set(
        lines[0]
    )
    assert lines[0]["run"] == "pocket/rome-e0-t0-s0" and float(lines[0]["id"]) > 0.8


def test_half_finished_grids_are_shown_with_what_is_missing(tmp_path):
    write_grid(tmp_path, 1, 2, 1)
    failed = write_run(tmp_path, 0, 3, 0)
    (failed / "result.json").write_text(json.dumps({"schema": 1, "status": "failed", "error": "RuntimeError: out of <memory>"}))
    broken = write_run(tmp_path, 0, 4, 0)
    (broken / "result.json").write_text("{")
    begun = tmp_path / "pocket" / "rome-e0-t5-s0"
    begun.mkdir()
    for name in ("config.yaml", "overrides.txt"):
        (begun / name).write_text("")
    page = write_comparison(find_runs([tmp_path]), tmp_path).read_text(encoding="utf-8")
    assert "2 finished runs" in page and "out of &lt;memory&gt;" in page and "1 not finished" in page and "not JSON" in page


def test_a_comparison_of_failures_only_is_still_a_page(tmp_path):
    folder = write_run(tmp_path, 0, 0, 0)
    (folder / "result.json").write_text(json.dumps({"schema": 1, "status": "failed", "error": "no"}))
    page = write_comparison(find_runs([tmp_path]), tmp_path).read_text(encoding="utf-8")
    assert "0 finished runs" in page and "<svg" not in page and (tmp_path / "compare.csv").read_text() == "run\n"


@pytest.mark.parametrize("make", [False, True])
def test_folders_without_runs_are_named(tmp_path, make):
    folder = tmp_path / "empty"
    if make:
        folder.mkdir()
    with pytest.raises(UserError, match="empty"):
        find_runs([folder])


def test_command_takes_folders_and_says_where_it_wrote(grid, tmp_path, capsys):
    main([str(grid), f"to={tmp_path}"])
    assert str(tmp_path / "compare.html") in capsys.readouterr().out and (tmp_path / "compare.csv").exists()
    assert "pocket/rome-e0-t0-s0" in (tmp_path / "compare.csv").read_text()
    run = grid / "pocket" / "rome-e0-t0-s0"
    main([str(run)])
    assert (run / "report.html").exists()
    for wrong in ([], [str(grid), "wandb=a/b"], ["wandb=a"], ["to=x"]):
        with pytest.raises(SystemExit) as stop:
            main(wrong)
        assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_three_hundred_runs_are_quick_and_small(tmp_path):
    write_grid(tmp_path, 10, 10, 3)
    started = time.process_time()
    page = write_comparison(find_runs([tmp_path]), tmp_path)
    assert time.process_time() - started < 30  # about 10, whatever else the machine does
    assert page.stat().st_size < 5_000_000


@needs_browser
@pytest.mark.parametrize(("dark", "blue"), [(False, (0x00, 0x72, 0xB2)), (True, (0x56, 0xB4, 0xE9))])
def test_screenshot_shows_curves_heat_map_and_table(page, tmp_path, dark, blue):
    file, picture = tmp_path / "compare.html", tmp_path / "shot.png"
    file.write_text(page, encoding="utf-8")
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    browse("--window-size=1100,3400", f"--screenshot={picture}", *scheme, file.as_uri(), tmp_path=tmp_path)
    pixels = (imread(picture)[..., :3] * 255).round().astype(int)

    def count(colour: tuple[int, int, int], near: int = 6) -> int:
        return int((abs(pixels - colour).max(-1) <= near).sum())

    paper, ink = ((0x16, 0x17, 0x18), (0xE4, 0xE4, 0xE2)) if dark else ((255, 255, 255), (0x1B, 0x1B, 0x1B))
    assert count(paper) > 0.5 * pixels[..., 0].size, "the page's own background"
    assert count(ink) > 5000, "text"
    assert count(blue) > 2000, "curves"
    assert count((0xFD, 0xE8, 0x40), near=16) > 2000, "the high cells of the heat map, in either scheme"


@needs_browser
def test_browser_lays_out_and_sorts(page, tmp_path):
    file = tmp_path / "compare.html"
    file.write_text(page.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    dom = browse("--window-size=1100,900", "--dump-dom", file.as_uri(), tmp_path=tmp_path)
    seen = json.loads(re.search(r'data-seen="([^"]*)"', dom)[1].replace("&quot;", '"'))
    assert len(seen["up"]) == 36 and seen["up"] == sorted(seen["up"]) and seen["down"] == seen["up"][::-1]
    assert seen["curve"][0] > 500 and seen["curve"][1] > 300 and seen["heat"][1] > 100 and seen["table"][1] > 500
    assert seen["overflow"] <= 0
