"""`ahkio generate`: text that a model goes on with from a prompt."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ahkio.commands.request import Parsers, Request, add_command, read_request
from ahkio.core.artifact import Artifact
from ahkio.core.errors import UserError
from ahkio.core.stage import lineage


def add_to(commands: Parsers) -> None:
    parser = add_command(
        commands,
        "generate",
        "go on from a prompt with a model",
        "ahkio generate recipes/quickstart.py --prompt 'Suomen kesä on' --max-new 60",
        "a recipe and a built stage in it, or the path of a Hugging Face folder",
    )
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="what to go on from; - reads standard input")
    parser.add_argument("--max-new", type=int, default=100, metavar="N", help="tokens at most (default 100)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, takes the likeliest token")
    parser.add_argument("--seed", type=int, default=0, help="of the draw, where the temperature is above 0")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.max_new < 1 or args.temperature < 0:
        raise UserError("--max-new is 1 or more, and --temperature is 0 or more.")
    folder = folder_of(args)
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    answer = go_on(folder, prompt, args.max_new, args.temperature, args.seed)
    if args.json:
        print(json.dumps(answer, ensure_ascii=False))
    else:
        print(answer["prompt"] + answer["text"])
    return 0


def go_on(folder: Path, prompt: str, max_new: int, temperature: float, seed: int) -> dict[str, Any]:
    """{"prompt", "text", "tokens"}: what the model in `folder` says next, and the ids of that."""
    from ahkio.model.generate import generate
    from ahkio.model.hub import load_model
    from ahkio.tokens.tokenizer import Encoder

    encoder = Encoder.load(folder)
    ids = [int(i) for i in encoder.encode([prompt])[0]]
    if encoder.bos is not None:
        ids.insert(0, encoder.bos)
    if not ids:
        raise UserError("The prompt is empty, and this model has no token that begins a text; give it a word.")
    model = load_model(folder)
    new = generate(model, [ids], max_new=max_new, stop={encoder.eos}, temperature=temperature, seed=seed)[0]
    tokens = [int(i) for i in new]
    return {"prompt": prompt, "text": encoder.decode(tokens), "tokens": tokens}


def folder_of(args: argparse.Namespace) -> Path:
    """The Hugging Face folder that is meant: a path, or that of the newest model below a recipe's stage."""
    path = Path(args.recipe)
    if not path.is_dir():
        return newest_model(read_request(args))
    if not is_model(path):
        raise UserError(f"{path} holds no model: it needs config.json and safetensors.")
    return path


def newest_model(request: Request) -> Path:
    """The last Hugging Face folder in the target's lineage, never one from before the training that is meant."""
    request.built()
    for stage in reversed(lineage(request.target)):
        made = Artifact(request.paths[stage])
        if is_model(made.path):
            return made.path
        if type(stage).__name__ == "Train":
            raise UserError(f"{request.name} of {request.recipe} has no exported model; name a stage that exports it.")
    raise UserError(f"{request.name} of {request.recipe} has no model in its lineage; name a stage that has.")


def is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))
