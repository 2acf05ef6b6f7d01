"""Write the tables of docs/curation.md: a curation of all of data/ with documents planted in it, what became of those,
and the ledger of a short run on what was kept. `python tests/text/show.py` takes some minutes.

Planted are copies and edited copies of documents that are kept, and documents held back from the rest: English ones,
and Finnish ones with personal data or with an item of an evaluation set.
"""

import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ahkio.commands.waterfall import drawn
from ahkio.core.config import load_recipe
from ahkio.core.stage import build
from ahkio.text.contamination import EvaluationSet
from ahkio.text.corpus import Corpus, Domain, read_shard
from ahkio.text.curate import DROPS, Curate, Kept, Raw
from ahkio.text.executors import Local
from ahkio.text.sources import JsonLines, Source
from ahkio.tokens.mixture import Mix, Segment, Share
from ahkio.tokens.tokens import Tokens

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "curation.md"
DOMAINS = {"finnish": ("fi", "fi"), "english": ("en", "en"), "code": ("code", "neutral"), "math": ("math", "neutral")}
WEIGHTS = {"finnish": 30, "english": 30, "code": 30, "math": 10}
PERSONAL = (
    "Kirjoita osoitteeseen maija.meikalainen@posti.fi ennen kesää.",
    "Hänen tunnuksensa on 131052-308T kaikissa papereissa.",
    "Maksu menee tilille FI21 1234 5600 0007 85 viitteellä.",
    "Soita numeroon 040 123 4567 huomenna.",
    "Palvelin vastaa osoitteesta 8.8.4.4 aina.",
)
QUESTION = "Mikä näistä joista laskee tuntureilta Jäämereen ilman että yksikään pato estää sen kulkua numero {}?"
ALL = 1 << 20  # samples of drops: every one
Texts = dict[str, str]


def curate(sources: dict[str, tuple[Source, ...]], *sets: EvaluationSet) -> Curate:
    domains = tuple(Raw(name, found, DOMAINS[name][1]) for name, found in sources.items())
    return Curate(domains=domains, evaluations=sets, samples=ALL, executor=Local(2))


def kept_in(folder: Path) -> Texts:
    """Documents by their ids."""
    return {one.id: one.text for shard in sorted(folder.glob("*.zst")) for one in read_shard(shard)}


def lines(path: Path, rows: list[dict[str, str]]) -> JsonLines:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return JsonLines(path=str(path))


def edited(text: str, one_in: int, dice: random.Random, words: list[str]) -> str:
    """The text with one word in so many replaced."""
    own = text.split(" ")
    for place in dice.sample(range(len(own)), max(1, len(own) // one_in)):
        own[place] = dice.choice(words)
    return " ".join(own)


def planted(finnish: list[str], english: list[str], held: list[str]) -> dict[str, list[str]]:
    """Texts by what they are planted as."""
    dice, words = random.Random(0), " ".join(held).split()
    longer = [text for text in finnish if len(text) > 1500]
    return {
        "copies": dice.sample(finnish, 100),
        "copies with 2% of words replaced": [edited(text, 50, dice, words) for text in dice.sample(longer, 100)],
        "copies with 5% of words replaced": [edited(text, 20, dice, words) for text in dice.sample(longer, 100)],
        "English documents": dice.sample(english, 50),
        "documents with personal data": [f"{t}\n{PERSONAL[n % len(PERSONAL)]}" for n, t in enumerate(held[:40])],
        "documents with a question of a test": [f"{t}\n{QUESTION.format(n)}" for n, t in enumerate(held[40:])],
    }


def fates(texts: dict[str, list[str]], rest: Texts, fate: Texts) -> Iterator[str]:
    yield "| planted in Finnish | documents | what became of them |"
    yield "|---|---|---|"
    for kind, found in texts.items():
        yield f"| {kind} | {len(found)} | {counted(fate.get(f'{kind}/{n}', 'kept') for n in range(len(found)))} |"
    yield f"| nothing: what was kept without these | {len(rest)} | {counted(fate.get(key, 'kept') for key in rest)} |"


def counted(words: Iterator[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in Counter(words).most_common())


def ledger(kept: Curate, store: Path) -> Iterator[str]:
    """The ledger of ten steps of the quickstart's training on what was kept."""
    recipe, _, _ = load_recipe(str(ROOT / "recipes" / "quickstart.py"))
    domains = tuple(Domain(name, (Kept(curate=kept, domain=name),), held_out=0.04) for name in DOMAINS)
    corpus = Corpus(domains=domains)
    shares = tuple(
        Share(name=name, tokens=Tokens(corpus=corpus, domain=name, tokenizer=recipe["BASE"]), weight=weight)
        for name, weight in WEIGHTS.items()
    )
    run = replace(recipe["TRAIN"], mix=Mix(segments=(Segment(rows=0, shares=shares),)), steps=10, heldout=())
    facts = build(run, store, print).facts["ledger"]
    yield "| source | rows | tokens | trained on | documents | epochs |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name, one in facts.items():
        counts = " | ".join(f"{int(one[key]):,}" for key in ("rows", "tokens", "trained_tokens", "documents"))
        yield f"| {name} | {counts} | {one['epochs']:.4f} |"


def waterfalls(facts: dict[str, Any]) -> Iterator[str]:
    console = Console(width=110, record=True, file=open("/dev/null", "w"))  # noqa: SIM115  it takes nothing
    for name, domain in facts["domains"].items():
        console.print(drawn(name, domain["waterfall"]))
    yield from ("```", *(line.rstrip() for line in console.export_text().splitlines()), "```")


def put(name: str, rows: Iterator[str]) -> None:
    """Replace what stands between the marks of `name`."""
    first, last = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    head, _, rest = PAGE.read_text().partition(first)
    PAGE.write_text(head + first + "\n".join(rows) + "\n" + last + rest.partition(last)[2])


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = {name: JsonLines(path=str(ROOT / f"data/{file}.jsonl.gz")) for name, (file, _) in DOMAINS.items()}
        before = build(curate({name: (source,) for name, source in data.items()}), folder / "first", print)
        finnish = kept_in(before.path / "finnish")
        held = dict(random.Random(1).sample(sorted(finnish.items()), 80))
        rest = {key: text for key, text in finnish.items() if key not in held}
        english = list(kept_in(before.path / "english").values())
        texts = planted(list(rest.values()), english, list(held.values()))
        rows = [{"id": f"{kind}/{n}", "text": text} for kind, found in texts.items() for n, text in enumerate(found)]
        old = lines(folder / "rest.jsonl", [{"id": key, "text": text} for key, text in rest.items()])
        asked = lines(folder / "test.jsonl", [{"question": QUESTION.format(n)} for n in range(50)])
        sources: dict[str, tuple[Source, ...]] = {name: (source,) for name, source in data.items()}
        sources["finnish"] = (old, lines(folder / "planted.jsonl", rows))
        stage = curate(sources, EvaluationSet("rivers", asked, ("question",)))
        made = build(stage, folder / "second", print)
        drops = [json.loads(line) for line in (made.path / DROPS).read_text().splitlines()]
        fate = {one["id"]: one["reason"].replace("_", " ") for one in drops if one["domain"] == "finnish"}
        put("waterfall", waterfalls(before.facts))
        put("planted", fates(texts, rest, fate))
        masked = made.facts["domains"]["finnish"]["masked"].items()
        put("masked", iter([", ".join(f"{kind.replace('_', ' ')} {count}" for kind, count in masked)]))
        put("contamination", iter([f"`{json.dumps(made.facts['contamination'])}`"]))
        put("ledger", ledger(stage, folder / "second"))


if __name__ == "__main__":
    main()
