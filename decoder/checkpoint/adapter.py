"""LoRA adapters as PEFT saves them: what they add to a matrix, as factors.

Shape letters: R rank, D outputs of a module, F its inputs.
"""

import re
from collections.abc import Mapping
from functools import cached_property
from math import sqrt

from torch import Tensor

from decoder.checkpoint.folders import ADAPTER_CONFIG, read_json
from decoder.checkpoint.names import find_name, unwrapped
from decoder.checkpoint.reader import Checkpoint

SIDE = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.[^.]+)?\.weight")
OTHER_BASE = ("pissa", "olora", "corda", "loftq")  # starts of a LoRA that change the base weights too


class Adapter:
    """The LoRA tensors of a file or folder, alone or beside the weights they belong to."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
        self.file = folder / ADAPTER_CONFIG
        self.names: dict[str, dict[str, str]] = {}
        for name in checkpoint.names:
            if found := SIDE.fullmatch(name):
                self.names.setdefault(unwrapped(found["module"]), {})[found["side"]] = name

    @cached_property
    def modules(self) -> dict[str, tuple[int, int]]:
        """Modules that are added to, and the shape (D, F) of what is added."""
        shape = self.checkpoint.shape
        return {module: (shape(names["B"])[0], shape(names["A"])[-1]) for module, names in self.names.items() if len(names) == 2}

    def find(self, module: str) -> str | None:
        """The adapter's name for a module of the model."""
        return find_name(module, self.modules)

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """What is added to a module, as keys (R, F) and values (R, D): the sum over R of their outer products.

        Raises:
            ValueError: the config is missing or says that something else is added, or the two sides do not fit.
        """
        names, checkpoint = self.names[module], self.checkpoint
        shape_A, shape_B = checkpoint.shape(names["A"]), checkpoint.shape(names["B"])
        if len(shape_A) != 2 or len(shape_B) != 2 or shape_A[0] != shape_B[1]:
            raise ValueError(f"{checkpoint.path}: {names['A']} is {shape_A}, {names['B']} is {shape_B}; expected (R, F) and (D, R)")
        key_RF = checkpoint.matrix(names["A"], shape_A, "lora_A").float()
        value_DR = checkpoint.matrix(names["B"], shape_B, "lora_B").float()
        return key_RF, self._scale(module, shape_A[0]) * value_DR.T

    def _scale(self, module: str, rank: int) -> float:
        config = read_json(self.file)
        if config is None:
            raise ValueError(
                f"{self.checkpoint.path} holds a LoRA, and {self.file} with its lora_alpha is missing or not whole. Copy it too"
            )
        kind = config.get("peft_type", "LORA")
        start = config.get("init_lora_weights")
        if kind != "LORA" or config.get("use_dora") or (isinstance(start, str) and start.lower().startswith(OTHER_BASE)):
            what = f"peft_type {kind}" if kind != "LORA" else "use_dora" if config.get("use_dora") else f"init_lora_weights {start}"
            raise ValueError(f"{self.file}: {what} is more than B·A. Merge it into its base (merge_and_unload) and give that checkpoint")
        patterns = config.get("alpha_pattern") if isinstance(config.get("alpha_pattern"), Mapping) else {}
        own = (alpha for key, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module))
        alpha = next(own, config.get("lora_alpha", 8))
        if isinstance(alpha, bool) or not isinstance(alpha, int | float):
            raise ValueError(f"{self.file}: lora_alpha is {alpha!r}, expected a number")
        return alpha / (sqrt(rank) if config.get("use_rslora") else rank)
