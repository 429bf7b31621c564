"""The command line of a trained system: ``lavit caption|answer|draw|reconstruct|tokens|serve|info``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch and its company take seconds, which --help must not
    from PIL import Image

    from lavit.pipeline import LaVIT

EXAMPLES = """examples:
  lavit caption cat.png dog.png
  lavit answer cat.png "what animal is it?"
  lavit draw "animals: cat" --seed 3 --out cat.png
  lavit draw "with a hat" --image cat.png --out cat-with-hat.png
  lavit reconstruct cat.png --tokens 16 --out rebuilt.png
  lavit tokens cat.png --json
  lavit serve --port 7860
  lavit info --model release
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it went well, 2 for a user's mistake, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):  # names of files may have letters that a terminal has not
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    arguments = parser().parse_args(argv)
    # It warns of kernels that only few bits would use, wherever diffusers finds it installed.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    try:
        arguments.run(arguments)
        if sys.stdout:  # None where it was closed
            sys.stdout.flush()
        return 0
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `lavit tokens … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _out_of_memory(error):
            raise
        said = "too little memory; try a smaller --batch, --dtype bfloat16, --bits 4 or --offload"
        print(f"error: {error if isinstance(error, OSError) else said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _out_of_memory(error: RuntimeError) -> bool:
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)  # a GPU's; the CPU's


def parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    top = argparse.ArgumentParser(
        "lavit",
        description="Pictures to words and words to pictures, with a trained LaVIT.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"lavit {metadata.version('lavit')}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, words, run, add in (
        ("caption", "say what is in images", caption, _caption),
        ("answer", "answer a question about an image", answer, _answer),
        ("draw", "draw from text, from images, or from both", draw, _draw),
        ("reconstruct", "show what an image's tokens remember of it", reconstruct, _reconstruct),
        ("tokens", "print an image's visual words", tokens, _tokens),
        ("serve", "open a page to try all of it", serve, _serve),
        ("info", "say what a release is", info, lambda command: None),
    ):
        examples = [line for line in EXAMPLES.splitlines() if line.strip().startswith(f"lavit {name}")]
        command = commands.add_parser(
            name,
            help=words,
            description=words.capitalize() + ".",
            epilog="\n".join(["examples:", *examples]) if examples else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add(command)
        model = "a release folder; by default $LAVIT_MODEL, else the one that comes with lavit"
        command.add_argument("--model", type=Path, metavar="FOLDER", help=model)
        if run is info:
            command.add_argument("--json", action="store_true", help="print JSON")
            command.set_defaults(run=run)
            continue
        command.add_argument("--device", help="cpu, cuda, cuda:1; by default a GPU if there is one")
        command.add_argument("--dtype", help="float32, bfloat16 or float16")
        command.add_argument("--bits", type=int, choices=(4, 8), help="of the language model (needs bitsandbytes)")
        command.add_argument("--offload", action="store_true", help="keep the language model in the CPU's memory")
        command.add_argument("--no-verify", action="store_true", help="open files without comparing their digests")
        command.add_argument("--batch", type=int, help="images or drawings at a time; fewer need less memory (64)")
        if run is not serve:
            command.add_argument("--json", action="store_true", help="print JSON, a line for each result")
        command.set_defaults(run=run)
    return top


def opened(arguments: argparse.Namespace) -> LaVIT:
    """The system that a command is to use."""
    one = getattr(arguments, "image", [])
    shown = [*getattr(arguments, "images", []), *(one if isinstance(one, list) else [one])]
    if missing := [str(path) for path in shown if not path.is_file()]:  # before it is opened, which takes longer
        raise ValueError(f"image '{missing[0]}' cannot be read: No such file; correct its path")
    from lavit.pipeline import LaVIT

    names = ("device", "dtype", "bits", "offload", "batch")
    chosen = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    return LaVIT.from_pretrained(arguments.model, verify=not arguments.no_verify, **chosen)


def caption(arguments: argparse.Namespace) -> None:
    system = opened(arguments)
    texts = system.caption([str(path) for path in arguments.images], _text_plan(arguments, system.plans.caption))
    _say(arguments, [{"image": str(p), "caption": t} for p, t in zip(arguments.images, texts, strict=True)], "caption")


def _caption(command: argparse.ArgumentParser) -> None:
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    _writing(command)


def answer(arguments: argparse.Namespace) -> None:
    system = opened(arguments)
    plan = _text_plan(arguments, system.plans.answer)
    text = system.answer(str(arguments.image), arguments.question, plan)
    said = {"image": str(arguments.image), "question": arguments.question, "answer": text}
    _say(arguments, [said], "answer")


def _answer(command: argparse.ArgumentParser) -> None:
    command.add_argument("image", type=Path, metavar="IMAGE")
    command.add_argument("question", metavar="QUESTION")
    _writing(command)


def draw(arguments: argparse.Namespace) -> None:
    if "." in (arguments.text or "") and os.path.isfile(arguments.text):
        raise ValueError(f"{arguments.text} is a file and stands where the text is expected; give it by --image")
    places = _places(arguments, arguments.count)
    system = opened(arguments)
    seeds = [arguments.seed + number for number in range(arguments.count)]
    images = [str(path) for path in arguments.image] or None
    pictures = system.draw(
        [arguments.text] * len(seeds), None if images is None else [images] * len(seeds), seeds,
        _image_plan(arguments, system), arguments.candidates, **_settings(arguments),
    )  # fmt: skip
    _keep(pictures, places, arguments)
    rows = [{"text": arguments.text, "seed": s, "file": str(p)} for s, p in zip(seeds, places, strict=True)]
    _say(arguments, rows, "file")


def _draw(command: argparse.ArgumentParser) -> None:
    command.add_argument("text", nargs="?", default=None, metavar="TEXT")
    command.add_argument("--image", action="append", type=Path, default=[], metavar="IMAGE",
                         help="an image that the text follows; may be given more than once")  # fmt: skip
    command.add_argument("--count", type=int, default=1,
                         help="drawings, from as many seeds (1); several go to OUT-0.png, OUT-1.png, …")  # fmt: skip
    command.add_argument("--candidates", type=int, help="drawings of which the model chooses the best")
    command.add_argument("--temperature", type=float, help="of the visual words")
    command.add_argument("--top-k", type=int, help="draw each of them from the likeliest so many; 0 from all")
    command.add_argument("--top-p", type=float, help="and from the fewest of these that hold so much probability")
    command.add_argument("--text-guidance", type=float, help="of the language model; 1 is none")
    command.add_argument("--tokens", type=int, help="at most so many visual words")
    _painting(command, "drawing.png")


def reconstruct(arguments: argparse.Namespace) -> None:
    places = _places(arguments, 1)
    system = opened(arguments)
    picture = system.reconstruct(str(arguments.image), arguments.tokens, arguments.seed, **_settings(arguments))
    _keep([picture], places, arguments)
    _say(arguments, [{"image": str(arguments.image), "file": str(places[0])}], "file")


def _reconstruct(command: argparse.ArgumentParser) -> None:
    command.add_argument("image", type=Path, metavar="IMAGE")
    command.add_argument("--tokens", type=int, help="how many tokens; by default as many as the image asks for")
    _painting(command, "reconstruction.png")


def tokens(arguments: argparse.Namespace) -> None:
    found = opened(arguments).tokens([str(path) for path in arguments.images], arguments.tokens)
    rows = [
        {
            "image": str(path),
            "grid": its.grid,
            "places": its.places.tolist(),
            "codes": its.codes.tolist(),
            "words": None if its.words is None else its.words.tolist(),
        }
        for path, its in zip(arguments.images, found, strict=True)
    ]
    if arguments.json:
        return _say(arguments, rows, "words")
    for row in rows:
        print(f"{row['image']}: {len(row['places'])} of {row['grid'] ** 2} patches")
        said = " ".join(map(str, row["words"] or ())) or "no words: they say places, and these are too far apart"
        print(f"  {said}")
        for y in range(row["grid"]):
            marks = ("#" if y * row["grid"] + x in row["places"] else "." for x in range(row["grid"]))
            print("  " + " ".join(marks))


def _tokens(command: argparse.ArgumentParser) -> None:
    command.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    command.add_argument("--tokens", type=int, help="how many tokens; by default as many as the image asks for")


def serve(arguments: argparse.Namespace) -> None:
    from lavit.serve.listening import listen

    with listen(arguments.host, arguments.port) as listening:  # before the system is opened, which takes longer
        from lavit.serve.page import serve as open_page

        open_page(opened(arguments), listening)


def _serve(command: argparse.ArgumentParser) -> None:
    command.add_argument("--host", default="127.0.0.1", help="the address to listen at (127.0.0.1, this machine alone)")
    command.add_argument("--port", type=int, default=7860, help="the port to listen at (7860)")


def info(arguments: argparse.Namespace) -> None:
    from lavit.release import chosen_folder, describe

    row = describe(chosen_folder(arguments.model))
    if arguments.json:
        print(json.dumps(row))
        return
    for name, value in row.items():
        words = ", ".join(f"{k} {v:,}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{name:<12}{words}")


# --------------------------------------------------------------------------------------------------------- common


def _writing(command: argparse.ArgumentParser) -> None:
    command.add_argument("--beams", type=int, help="beams of the search; 1 is greedy")
    command.add_argument("--max-tokens", type=int, help="at most so many tokens of text")


def _painting(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument("--seed", type=int, default=0, help="which of all drawings it is (0)")
    command.add_argument("--guidance", type=float, help="of the pixel decoder; 1 is none")
    command.add_argument("--steps", type=int, help="of the pixel decoder")
    command.add_argument("--sampler", help="of the pixel decoder: ddim, dpm or, of a flow, euler")
    command.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="one that the decoder knows")
    command.add_argument("--out", type=Path, default=Path(default), help=f"the file to write ({default})")
    command.add_argument("--force", action="store_true", help="write over files that are there")


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What :class:`lavit.painter.Painting` has of the options."""
    size = None if arguments.size is None else tuple(arguments.size)
    return {"guidance": arguments.guidance, "steps": arguments.steps, "sampler": arguments.sampler, "size": size}


def _text_plan(arguments: argparse.Namespace, plan: Any) -> Any:
    import dataclasses

    given = {"beams": arguments.beams, "max_tokens": arguments.max_tokens}
    return dataclasses.replace(plan, **_limited(given, plan))


def _image_plan(arguments: argparse.Namespace, system: LaVIT) -> Any:
    import dataclasses

    given = {
        "temperature": arguments.temperature,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "guidance": arguments.text_guidance,
        "max_tokens": arguments.tokens,
    }
    return dataclasses.replace(system.plans.image, **_limited(given, system.plans.image))


def _limited(given: dict[str, Any], plan: Any) -> dict[str, Any]:
    """The options that were given; a least number of tokens of the plan's gives way to the most that is asked for."""
    chosen = {name: value for name, value in given.items() if value is not None}
    if chosen.get("max_tokens", 1) < 1:
        raise ValueError(f"at most {chosen['max_tokens']} tokens leave nothing; give at least 1")
    least = min(plan.min_tokens, max(1, chosen.get("max_tokens", plan.max_tokens)))
    return {**chosen, "min_tokens": least}


def _places(arguments: argparse.Namespace, count: int) -> list[Path]:
    """The files to write, checked before the work is done.

    Raises:
        ValueError: no drawings are asked for, files that are there, no folder, or no format of pictures.
    """
    if count < 1:
        raise ValueError(f"--count {count} draws nothing; give at least 1")
    out = arguments.out
    places = [out] if count == 1 else [out.with_stem(f"{out.stem}-{number}") for number in range(count)]
    if out.is_dir():
        raise ValueError(f"{out} is a folder; name a file in it")
    if strange := [str(place) for place in places if place.is_symlink() or place.exists() and not place.is_file()]:
        raise ValueError(f"{', '.join(strange)} is a link or a device; give --out the name of a file")
    if out.name == "-":
        raise ValueError("--out - names no file; pictures are not written to the terminal")
    there = [str(place) for place in places if place.exists()]
    if there and not arguments.force:
        raise ValueError(f"{', '.join(there)} is there already; give another --out, or --force to write over it")
    if not out.parent.is_dir():
        raise ValueError(f"there is no folder {out.parent} for {out.name}; make it first")
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"{out} cannot be written: its folder is read-only or not yours; give another --out")
    _format(out)
    return places


def _format(place: Path) -> str:
    """Pillow's name of the format that a file's name asks for, PNG without a suffix."""
    from PIL import Image

    found = Image.registered_extensions().get(place.suffix.lower()) if place.suffix else "PNG"
    if found not in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        raise ValueError(f"{place} has no known picture format; end --out in .png, .jpg or .webp")
    return found


def _keep(pictures: list[Image.Image], places: list[Path], arguments: argparse.Namespace) -> None:
    from lavit.runs import written_whole

    for number, (picture, place) in enumerate(zip(pictures, places, strict=True)):
        before = f"; {', '.join(map(str, places[:number]))} was written before it" if number else ""
        try:
            with written_whole(place, replace=arguments.force) as draft:
                picture.save(draft, _format(place))
        except FileExistsError:
            raise ValueError(f"{place} was made by another program meanwhile; it stays as it is{before}") from None
        except OSError as error:
            said = error.strerror or error
            raise ValueError(f"{place} cannot be written: {said}; give another --out{before}") from None


def _say(arguments: argparse.Namespace, rows: list[dict[str, Any]], key: str) -> None:
    for row in rows:
        if arguments.json:
            print(json.dumps(row, ensure_ascii=False))
        else:
            print(f"{row['image']}: {row[key]}" if len(rows) > 1 and key != "file" else row[key])


if __name__ == "__main__":
    sys.exit(main())
