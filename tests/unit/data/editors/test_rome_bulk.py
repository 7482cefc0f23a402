"""Many edits at once: what their rows share, what they do when memory runs out, and in which arithmetic."""

import logging
import resource
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from places import HELPERS
from rome_twin import CFG, CONTEXTS, LAYER, REQUESTS, make, plain_rome, relative
from tiny_hosts import POCKET, build_host

from data.editors.prefix_cache import clean_pass
from data.editors.rome import Rome
from data.facts.load import load_facts
from data.produce.plan import request_manifest
from data.store.disagreement import disagreement
from decoder.config import TrainConfig
from decoder.config.compose import compose


def tokens_run(host) -> list[int]:
    """Fills itself with the positions that each forward embeds, padding included."""
    counts: list[int] = []
    host.model.get_input_embeddings().register_forward_hook(lambda module, args, output: counts.append(args[0].numel()))
    return counts


def rows_of(host) -> tuple[list, list[int]]:
    jobs, _ = make(host).jobs(REQUESTS)
    return [row for job in jobs for row in job.rows], [n for job in jobs for n in range(len(job.rows))]


def test_a_shared_beginning_changes_nothing(any_host):
    rows, groups = rows_of(any_host)
    apart, shared = clean_pass(any_host, LAYER, rows), clean_pass(any_host, LAYER, rows, groups)
    # float32, sums in another order
    close = {"rtol": 1e-3, "atol": 1e-4}
    torch.testing.assert_close(shared.key_NF, apart.key_NF, **close)
    torch.testing.assert_close(shared.output_ND, apart.output_ND, **close)
    real_NS = apart.mask_NT[:, -apart.ids_NS.shape[1] :].bool()
    torch.testing.assert_close(shared.state_NSD[real_NS], apart.state_NSD[real_NS], **close)
    prefix_NP = apart.mask_NT[:, : -apart.ids_NS.shape[1]].bool()
    for one, other in zip(shared.cache.layers, apart.cache.layers, strict=True):
        for name in ("keys", "values"):
            found, expected = (getattr(layer, name).transpose(1, 2)[prefix_NP] for layer in (one, other))
            torch.testing.assert_close(found, expected, **close)


def test_a_shared_beginning_is_run_once():
    host = build_host(POCKET, bos=True)
    rows, groups = rows_of(host)
    counts = tokens_run(host)
    clean_pass(host, LAYER, rows)
    clean_pass(host, LAYER, rows, groups)
    whole, opening, rest = counts
    # "Hal was born in Oslo ." and what else precedes the prompts is embedded once a context
    assert opening <= 4 * 7
    assert rest < 0.75 * whole


def test_blocks_up_to_the_edit_keep_no_cache_by_the_shortcut():
    host = build_host(POCKET)
    rows, groups = rows_of(host)
    suffixes = clean_pass(host, LAYER, rows, groups)
    above = suffixes.above()
    sizes = [layer.keys.untyped_storage().nbytes() for layer in above.cache.layers]
    assert max(sizes[: LAYER + 1]) <= 8 < min(sizes[LAYER + 1 :])
    delta_ND = torch.randn(suffixes.output_ND.shape, generator=torch.Generator().manual_seed(0))
    real_NS = suffixes.mask_NT[:, -suffixes.ids_NS.shape[1] :].bool()
    torch.testing.assert_close(above.hidden(delta_ND)[real_NS], suffixes.hidden(delta_ND)[real_NS], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_a_batch_that_does_not_fit_is_halved(error, monkeypatch, caplog):
    host = build_host(POCKET)
    rome = make(host, replace(CFG, batch_size=7))
    expected = make(host, replace(CFG, batch_size=7)).edit(REQUESTS)
    search, sizes = Rome._solve, []

    def two_at_most(self, jobs):
        sizes.append(len(jobs))
        if len(jobs) > 2:
            raise error
        return search(self, jobs)

    monkeypatch.setattr(Rome, "_solve", two_at_most)
    done: list[int] = []
    with caplog.at_level(logging.WARNING):
        result = rome.edit(REQUESTS, done.append)
    # 7 fail, 3 fail, then one at a time: what did not fit is not tried again
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert sum(done) == 7 and result.kept == list(range(7))
    assert "7 edits together do not fit into memory, 3 from here on" in caplog.text
    assert relative(result.delta_BD, expected.delta_BD) < 1e-4
    rome.edit(REQUESTS[:2])
    assert sizes[9:] == [1, 1]


def test_other_errors_and_a_single_edit_that_does_not_fit_are_raised(monkeypatch):
    rome = make(build_host(POCKET))

    def fail(error):
        def solve(self, jobs):
            raise error

        monkeypatch.setattr(Rome, "_solve", solve)

    fail(RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        rome.edit(REQUESTS)
    fail(torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(torch.OutOfMemoryError):
        rome.edit(REQUESTS)
    assert rome.batch_size == 1


LIMITED = """
import logging, resource, sys
sys.path[:0] = sys.argv[1:3]
import torch
from rome_twin import CFG, REQUESTS, make
from tiny_hosts import build_host
from dataclasses import replace

torch.set_num_threads(1)
logging.basicConfig(level=logging.WARNING)
host = build_host("gpt2", vocab_size=60_000)
rome = make(host, replace(CFG, batch_size=56, steps=3))
rome.edit(REQUESTS[:1])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20,) * 2)
result = rome.edit(REQUESTS * 8)
print(len(result.kept), rome.batch_size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits its address space")
def test_edits_go_on_where_the_memory_really_ends():
    assert resource.RLIMIT_AS
    run = subprocess.run([sys.executable, "-c", LIMITED, str(HELPERS)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    made, batch = map(int, run.stdout.split())
    assert made == 56 and 1 <= batch < 56
    assert "do not fit into memory" in run.stderr


def test_bf16_is_near_float32_and_keys_stay_exact():
    host = build_host("llama")
    exact, rounded = (make(host, replace(CFG, precision=name, stop_loss=0.0)).edit(REQUESTS) for name in ("float32", "bf16"))
    assert torch.equal(exact.edits.key_BF, rounded.edits.key_BF)
    apart = [relative(rounded.delta_BD[b], exact.delta_BD[b]) for b in range(len(REQUESTS))]
    assert 1e-4 < max(apart) < 0.3, apart
    assert rounded.delta_BD.dtype == rounded.edits.value_BD.dtype == torch.float32


def test_tf32_is_asked_for_during_the_search_only(monkeypatch):
    host = build_host(POCKET)
    with pytest.raises(ValueError, match="edits.precision=tf32 is a mode of NVIDIA GPUs, the host is on cpu"):
        make(host, replace(CFG, precision="tf32"))
    rome, seen, head = make(host), [], host.head
    rome.cfg = replace(CFG, precision="tf32", steps=2)
    monkeypatch.setattr(host, "head", lambda hidden: (seen.append(torch.get_float32_matmul_precision()), head(hidden))[1])
    before = torch.get_float32_matmul_precision()
    rome.edit(REQUESTS[:1])
    assert set(seen) == {"high"} and torch.get_float32_matmul_precision() == before


def test_only_another_precision_makes_another_store():
    host, cfg = build_host(POCKET), compose(TrainConfig, "train", [])
    facts = load_facts(cfg.facts)

    def asked(**settings) -> dict:
        return request_manifest(replace(cfg, edits=replace(cfg.edits, **settings)), host, facts, [])

    assert asked(batch_size=3, shard_size=7) == asked()
    assert disagreement(asked(), asked(precision="bf16")) == ["edits.precision=float32 (here bf16)"]


def test_multi_token_targets_and_early_stops_among_neighbours_of_shared_contexts():
    """As in `test_rome.py`, with so many equal contexts that every row's beginning is shared."""
    host = build_host("gpt2", bos=True)
    contexts = [*CONTEXTS, "Eve is a singer . {}", "small {}"]
    reached = make(host, replace(CFG, steps=6), contexts).edit(REQUESTS).loss_B
    cfg = replace(CFG, stop_loss=float(reached.median()) + 1e-3, batch_size=7)
    result = make(host, cfg, contexts).edit(REQUESTS)
    plain = [plain_rome(host, one, cfg, contexts) for one in REQUESTS]
    assert result.steps_B.tolist() == [steps for _, steps, _ in plain]
    assert len(set(result.steps_B.tolist())) > 1
    for b, (delta, _, _) in enumerate(plain):
        assert relative(result.delta_BD[b], delta) < 1e-4


def test_states_that_nobody_reads_are_not_computed(any_host):
    rows, groups = rows_of(any_host)
    suffixes = clean_pass(any_host, LAYER, rows, groups)
    delta_ND = torch.randn(suffixes.output_ND.shape, generator=torch.Generator().manual_seed(0))
    read_R2 = torch.tensor([(n, column) for n, row in enumerate(rows) for column in {0, row.suffix - 1}])
    row_R, column_R = read_R2.unbind(dim=1)
    whole, part = suffixes.hidden(delta_ND), suffixes.hidden(delta_ND, read_R2)
    torch.testing.assert_close(part[row_R, column_R], whole[row_R, column_R], rtol=1e-4, atol=1e-5)
    assert not any("forward" in vars(module) for module in any_host.model.modules())


def test_the_last_mlp_sees_only_what_is_read():
    host = build_host(POCKET)
    rows, groups = rows_of(host)
    suffixes, seen = clean_pass(host, LAYER, rows, groups), []
    host.blocks[-1].mlp.down_proj.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[:2].numel()))
    suffixes.hidden(torch.zeros_like(suffixes.output_ND), torch.tensor([(0, 0), (3, 1)]))
    assert seen == [2]
