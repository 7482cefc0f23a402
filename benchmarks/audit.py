"""What an audit of a checkpoint folder costs: python benchmarks/audit.py FOLDER [make]

`make` writes a random llama-like host of 2 GB, an edited copy and decoders of two of its layers into FOLDER. Without it the copy is read by
both decoders; prints seconds, GB of tensors that were read from the copy, and the most GB the process held. Not a comparison in one process
as the other scripts are: run it once for each version of the program, with PYTHONPATH.
"""

import resource
import shutil
import sys
import time
from pathlib import Path

import safetensors
import torch

SIZES = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4}
LAYERS = (5, 16)
read = [0]


def make(folder: Path) -> None:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    from decoder.audit.calibration import NULLS
    from decoder.export.save import save_decoder
    from decoder.host import Host
    from decoder.model import ObjectDecoder
    from decoder.utils.json_files import write_json

    tokenizer = Tokenizer(models.WordLevel({f"word{n}": n for n in range(8192)}, unk_token="word0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="word0")
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=8192, **SIZES))
    torch.set_default_dtype(torch.float32)
    host = Host(model, tokenizer, name="large", path=str(folder / "host"))
    for place in ("host", "edited"):
        model.save_pretrained(folder / place, max_shard_size="500MB")
        tokenizer.save_pretrained(folder / place)
        for layer in LAYERS:
            weight_DF = host.weight_DF(layer)
            weight_DF += 0.01 * torch.outer(torch.randn(len(weight_DF)), torch.randn(weight_DF.shape[1])).to(weight_DF)
    host = Host.load(folder / "host", name="large", dtype="bfloat16")
    told = {"n": NULLS, "quantiles": [n / 100 for n in range(101)]}
    score = {"n": 1, "first_token": {"value": 1.0, "ci95": [0.0, 1.0]}, "exact_match": {"value": 1.0, "ci95": [0.0, 1.0]}}
    facts = {
        "search": {"beams": 4, "max_object_tokens": 2},
        "store": "0" * 12,
        "editors": [{"name": "rome", "settings": {}}],
        "splits": {"train": [], "id": [], "ood": [], "unseen_object": []},
        "scores": {"id": score, "ood": score},
        "calibration": {
            "auroc": 0.5,
            "null": told,
            "edit": told,
            "clean_matrix": {"predicted": "word1", "probability": 0.1, "null_percentile": 50.0},
        },
        "seed": 0,
    }
    for layer in LAYERS:
        decoder = ObjectDecoder(host, edited_layers=[layer], trained_layers=[layer], prompt_MD=torch.randn(4, host.hidden_size))
        save_decoder(folder / "decoders" / f"large-e{layer}", decoder, facts)
    from decoder.export.collection import FORMAT, INDEX, KEPT
    from decoder.export.save import read_config

    configs = {layer: read_config(folder / "decoders" / f"large-e{layer}") for layer in LAYERS}
    described = [
        {"folder": f"large-e{layer}"}
        | {key: config[key] for key in KEPT}
        | {"validation": 0.5, "scores": {"id": {"n": 1, "exact_match": 1.0}}, "run": "none"}
        for layer, config in configs.items()
    ]
    write_json(folder / "decoders" / INDEX, {"format": FORMAT, "chosen_by": "validation", "decoders": described})


class Counting:
    """safe_open that counts what it hands out of one folder."""

    def __init__(self, file, *args, **kwargs) -> None:
        self.counted, self.file = Path(file).parent.name == "edited", real(file, *args, **kwargs)

    def __enter__(self):
        self.file.__enter__()
        return self

    def __exit__(self, *error):
        return self.file.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def get_tensor(self, name):
        return self._count(self.file.get_tensor(name))

    def get_slice(self, name):
        inner, count = self.file.get_slice(name), self._count

        class Slice:
            get_shape, get_dtype = inner.get_shape, inner.get_dtype

            def __getitem__(self, rows):
                return count(inner[rows])

        return Slice()

    def _count(self, tensor):
        read[0] += self.counted * tensor.nbytes
        return tensor


real = safetensors.safe_open
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if sys.argv[2:] == ["make"]:
        shutil.rmtree(folder, ignore_errors=True)
        make(folder)
    else:
        safetensors.safe_open = Counting
        import evaluate

        begun = time.perf_counter()
        evaluate.main([f"decoder={folder / 'decoders'}", f"suspect={folder / 'edited'}"])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        spent = f"{time.perf_counter() - begun:.1f} s ({time.process_time():.1f} s of the processor, imports too)"
        print(f"{spent}, {read[0] / 1e9:.2f} GB of tensors read, at most {peak:.2f} GB held")
