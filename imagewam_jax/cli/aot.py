"""`imagewam aot`: compile a config for a TPU slice without one, and report what it takes."""

import argparse
import shlex
from pathlib import Path

from imagewam_jax.errors import ConfigError


def add_aot_verb(verbs: argparse._SubParsersAction) -> None:
    """Add the verb `aot`."""
    aot = verbs.add_parser(
        "aot",
        help="compile a config for a TPU slice without one, and say what it takes",
        description="Compiles the train step, or acting, of a config for a TPU topology and prints "
        "its memory, FLOPs, traffic between chips and estimated time. No TPU, weights or data "
        "are needed: pip install 'imagewam-jax[aot]'. Fields of the config can be changed as for "
        "train, such as --config.mesh.fsdp=16 or --config.train.batch_size=64.",
    )
    aot.add_argument("--config", required=True, help="such as configs/libero.py:4b")
    aot.add_argument("--topology", required=True, help="such as v5p:4x4x4, v5e:4x4 or v6e:8x8")
    aot.add_argument("--what", choices=["train", "act"], default="train", help="default: train")
    aot.add_argument("--batch", type=int, help="robots that act at once; default: 1")
    aot.add_argument(
        "--text-tokens",
        type=int,
        help="rows of the text's bucket; default: the smallest that holds LIBERO's prompts",
    )
    aot.add_argument("--prompts", type=int, help="that are known; default: 40, LIBERO's")
    aot.add_argument(
        "--stored-size",
        type=int,
        nargs=2,
        metavar=("ROWS", "COLUMNS"),
        help="of images as they are stored; default: the config's data.image_size",
    )
    aot.add_argument("--output", type=Path, metavar="DIR", help="write NAME.md and NAME.json there")
    aot.add_argument("--name", help="of these files; default: of config, topology and what")
    aot.add_argument("--title", help="of the page; default: its name")
    aot.add_argument("--note", default="", help="what the page begins with")
    aot.add_argument(
        "--program",
        type=Path,
        metavar="FILE",
        help="for the compiled program's text, such as program.txt.gz",
    )
    aot.set_defaults(run=_aot)


def _aot(arguments: argparse.Namespace, rest: list[str]) -> int:
    from imagewam_jax.config.loading import load_config
    from imagewam_jax.data.datasets import resolve_widths
    from imagewam_jax.tpu_plans.arguments import default_inputs
    from imagewam_jax.tpu_plans.plan import make_plan
    from imagewam_jax.tpu_plans.time_page import step_line

    config = resolve_widths(load_config(arguments.config, rest).to_dict())
    inputs = default_inputs(config)
    inputs = inputs._replace(
        prompts=arguments.prompts or inputs.prompts,
        text_tokens=arguments.text_tokens or inputs.text_tokens,
        image_size=tuple(arguments.stored_size or inputs.image_size),
    )
    if arguments.batch and arguments.what == "train":
        raise ConfigError("--batch is of acting; training has --config.train.batch_size")
    name = arguments.name or _name(arguments)
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
    plan = make_plan(
        config,
        arguments.topology,
        inputs,
        what=arguments.what,
        batch=arguments.batch or 1,
        text_file=arguments.program,
        title=arguments.title or name,
        command=_command(arguments, rest),
        note=arguments.note,
    )
    print(plan.markdown())
    if plan.estimate is not None:
        print(f"Estimated: {step_line(plan.estimate)}.")
    if arguments.output:
        for ending, text in ((".md", plan.markdown()), (".json", plan.to_json())):
            (arguments.output / f"{name}{ending}").write_text(text)
    return 0 if plan.compiled else 1


def _name(arguments: argparse.Namespace) -> str:
    file, _, variant = arguments.config.partition(":")
    parts = (Path(file).stem, variant, arguments.what, arguments.topology.replace(":", "-"))
    return "-".join(part for part in parts if part)


def _command(arguments: argparse.Namespace, rest: list[str]) -> str:
    """The command line that compiles the same again."""
    words = ["imagewam", "aot", f"--config={arguments.config}", f"--topology={arguments.topology}"]
    if arguments.what != "train":
        words.append(f"--what={arguments.what}")
    for name in ("batch", "text_tokens", "prompts"):
        if value := getattr(arguments, name):
            words.append(f"--{name.replace('_', '-')}={value}")
    if arguments.stored_size:
        words += ["--stored-size", *map(str, arguments.stored_size)]
    return " ".join(
        f"\\\n  {_quoted(word)}" if word.startswith("--") else _quoted(word)
        for word in [*words, *rest]
    )


def _quoted(word: str) -> str:
    """Quote a word for a shell; a tuple of strings in double quotes, which stays readable."""
    if "'" in word and not set(word) & set('"$`\\!'):
        return f'"{word}"'
    return shlex.quote(word)
