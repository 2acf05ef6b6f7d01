import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from ahkio.core.artifact import Artifact
from ahkio.core.config import how
from ahkio.core.stage import Facts, Inputs, Known, Stage, build, how_of, inputs_of, knowledge, lineage


@dataclass(frozen=True)
class Speed:
    width: int = 2
    threads: int = how(1)


@dataclass(frozen=True, kw_only=True)
class Text(Stage):
    words: int = 3
    workers: int = how(0)
    speed: Speed = how(Speed())

    def run(self, out: Path, inputs: Inputs) -> Facts:
        (out / "text").write_text("word " * self.words)
        return {"words": self.words}

    def forecast(self, known: Known) -> Facts:
        return {"words": self.words, "guess": True}


@dataclass(frozen=True, kw_only=True)
class Mix(Stage):
    texts: tuple[Stage, ...]
    speed: Speed = Speed()

    def run(self, out: Path, inputs: Inputs) -> Facts:
        return {"words": sum(inputs[text].facts["words"] for text in self.texts)}

    def forecast(self, known: Known) -> Facts:
        return {"words": sum(known(text)["words"] for text in self.texts)}


@dataclass(frozen=True, kw_only=True)
class Newer(Text):
    VERSION = 2


def silent(_: str) -> None:
    pass


def test_how_fields_leave_the_name_alone_however_deep() -> None:
    assert Text(workers=8, speed=Speed(5)).name == Text().name
    assert Mix(texts=(Text(workers=8),), speed=Speed(threads=9)).name == Mix(texts=(Text(),)).name


def test_every_what_below_shapes_the_name() -> None:
    assert Text(words=4).name != Text().name
    assert Mix(texts=(Text(words=4),)).name != Mix(texts=(Text(),)).name
    assert Mix(texts=(Text(),), speed=Speed(3)).name != Mix(texts=(Text(),)).name


def test_a_name_is_the_same_in_every_process() -> None:
    code = "from test_stage import Mix, Text; print(Mix(texts=(Text(),)).name)"
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == Mix(texts=(Text(),)).name


def test_a_version_shapes_the_name() -> None:
    assert Newer().fingerprint() != type("Newer", (Newer,), {"VERSION": 3})().fingerprint()


def test_a_lineage_has_each_stage_once_with_its_inputs_first() -> None:
    first, second = Text(), Text(words=4)
    top = Mix(texts=(Mix(texts=(first, second)), first))
    assert lineage(top) == [first, second, top.texts[0], top]
    assert inputs_of(top) == [top.texts[0], first]


def test_a_build_makes_what_is_missing_and_a_second_one_does_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    mix = Mix(texts=(Text(), Text(words=4)))
    made = build(mix, tmp_path, said.append)
    assert made.facts == {"words": 7}
    assert len([line for line in said if line.endswith("started")]) == 3
    said.clear()
    assert build(mix, tmp_path, said.append).digest == made.digest
    assert said == []


def test_a_manifest_tells_what_how_inputs_facts_and_cost(tmp_path: Path) -> None:
    mix = Mix(texts=(Text(workers=8),))
    manifest = build(mix, tmp_path, silent).manifest
    assert manifest["what"]["texts"] == [Text().name]
    assert manifest["how"] == {"speed.threads": 1}
    assert manifest["inputs"] == {Text().name: Artifact(tmp_path / Text().name).digest}
    assert manifest["made"]["seconds"] >= 0
    assert manifest["made"]["peak_memory_bytes"] > 0


def test_how_fields_are_named_by_their_dotted_path() -> None:
    assert how_of(Mix(texts=(Text(),))) == {"speed.threads": 1}
    assert set(how_of(Text())) == {"workers", "speed"}


def test_knowledge_is_the_forecast_until_there_are_facts(tmp_path: Path) -> None:
    text = Text()
    assert knowledge(tmp_path)(text)["guess"]
    build(text, tmp_path, silent)
    assert knowledge(tmp_path)(text) == {"words": 3}
    assert knowledge(tmp_path)(Mix(texts=(text, Text(words=5)))) == {"words": 8}
