"""Answers kept as they come, so that an evaluation that was stopped goes on from them.

A line of the file is a block of requests: {"key": hash of what was asked, "answers": [...], "cut": positions of prompts
that were too long}. Requests are asked in the same blocks whether or not a run was stopped: what is computed together,
and with it every bit of the result, stays the same.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from ahkio.evaluate.lm import AhkioLM

BLOCK = {"loglikelihood": 2048, "loglikelihood_rolling": 64, "generate_until": 128, "nats": 64}

Block = dict[str, Any]


class Memory:
    """Blocks of answers by their keys, in a file of JSON lines."""

    def __init__(self, file: Path) -> None:
        self.file = file
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        whole = [line for line in lines if line.endswith(b"\n")]  # the last one may have been cut off while written
        file.write_bytes(b"".join(whole))
        self.blocks: dict[str, Block] = {block["key"]: block for block in map(json.loads, whole)}

    def get(self, key: str, make: Callable[[], Block]) -> Block:
        """The block under `key`, made and kept if there is none."""
        if key not in self.blocks:
            self.blocks[key] = {"key": key} | make()
            with open(self.file, "a", encoding="utf-8") as file:
                file.write(json.dumps(self.blocks[key], ensure_ascii=False) + "\n")
        return self.blocks[key]


class RememberedLM(LM):
    """`lm`, asked only what `memory` doesn't hold. `cut`: the prompts that were too long for it."""

    def __init__(self, lm: AhkioLM, memory: Memory) -> None:
        super().__init__()
        self.lm, self.memory = lm, memory
        self.cut: set[str] = set()

    def nats(self, texts: list[list[int]]) -> list[float]:
        return self._answers("nats", texts, [str(ids) for ids in texts])

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        found = self._answers("loglikelihood", requests, [str(request.args) for request in requests])
        return [(value, greedy) for value, greedy in found]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        return self._answers("loglikelihood_rolling", requests, [str(request.args) for request in requests])

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        return self._answers("generate_until", requests, [str(request.args) for request in requests])

    def _answers(self, kind: str, asked: Sequence[Any], names: Sequence[str]) -> list[Any]:
        """What the method `kind` of the model answers, block by block; `names` tell apart what is asked."""
        answers: list[Any] = []
        for start in range(0, len(asked), BLOCK[kind]):
            part = asked[start : start + BLOCK[kind]]
            told = json.dumps([kind, self.lm.head, names[start : start + len(part)]])
            key = hashlib.sha256(told.encode()).hexdigest()
            block = self.memory.get(key, lambda part=part: self._ask(kind, part))  # type: ignore[misc]
            answers += block["answers"]
            self.cut |= {part[position].args[0] for position in block["cut"]}
        return answers

    def _ask(self, kind: str, part: Sequence[Any]) -> Block:
        answers = getattr(self.lm, kind)(list(part))
        cut = [place for place, one in enumerate(part) if isinstance(one, Instance) and one.args[0] in self.lm.cut]
        return {"answers": answers, "cut": cut}
