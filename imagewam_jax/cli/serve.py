"""`imagewam serve`: a policy that robots ask over the network."""

import argparse
import logging
import socket
import sys
from pathlib import Path
from typing import Any

from imagewam_jax.errors import ConfigError
from imagewam_jax.paths import path_or_address
from imagewam_jax.serving.settings import Settings

_DEFAULTS = Settings()


def add_serve_verb(verbs: argparse._SubParsersAction) -> None:
    """Add the verb `serve`."""
    serve = verbs.add_parser(
        "serve",
        help="answer robots over the network",
        description="Answers clients of openpi's WebSocket protocol with action chunks, several "
        "robots in one batch, until SIGTERM or Ctrl-C. SIGHUP reads tokens and certificate again. "
        "docs/serving.md goes from a checkpoint to a robot.",
    )
    policy = serve.add_argument_group("the policy")
    policy.add_argument(
        "--checkpoint",
        required=True,
        type=path_or_address,
        help="a run's folder, or one step's in it; like the next two also at gs://",
    )
    policy.add_argument(
        "--autoencoder",
        type=path_or_address,
        help="a checkpoint with it, where a converted policy lacks it",
    )
    policy.add_argument(
        "--text-table",
        type=path_or_address,
        help="of encode-text, in place of the instructions it knows",
    )
    policy.add_argument(
        "--text-encoder",
        type=Path,
        help="a checkpoint of its text encoder, or 'config' for the one that its config names: "
        "then it takes any instruction",
    )
    policy.add_argument(
        "--text-tokens",
        type=int,
        help="room for so many tokens in an instruction; default: that of the known ones",
    )
    policy.add_argument("--dataset", help="of several that it was trained on, whose units to use")
    policy.add_argument("--euler-steps", type=int, help="default: acting.euler_steps")
    policy.add_argument(
        "--real-time",
        choices=("trained", "guided", "identity", "off"),
        help="how chunks go on from what robots execute in the meantime; default: trained if the "
        "policy was trained with train.max_delay, else guided",
    )
    policy.add_argument(
        "--clip", action="store_true", help="cut actions off at the range of the data"
    )
    policy.add_argument(
        "--seed", type=int, default=_DEFAULTS.seed, help="of the noise, where a request has none"
    )
    requests = serve.add_argument_group("requests")
    requests.add_argument(
        "--image-size",
        type=rows_and_columns,
        metavar="ROWSxCOLUMNS",
        help="of the images that clients send; default: what the model sees. Others are resized as "
        "in training",
    )
    requests.add_argument(
        "--key",
        action="append",
        default=[],
        type=name_and_key,
        metavar="NAME=KEY",
        help="the key of a camera's images by its role, of 'state' or of 'prompt', such as "
        "primary=observation/exterior_image_1_left; can be repeated",
    )
    requests.add_argument(
        "--buckets",
        type=sizes,
        default=_DEFAULTS.buckets,
        help=f"robots in a batch; default: {','.join(map(str, _DEFAULTS.buckets))}",
    )
    requests.add_argument(
        "--record",
        type=Path,
        metavar="FOLDER",
        help="write down what robots see and are told to do; `python -m "
        "imagewam_jax.data.tools.rollouts FOLDER` makes a dataset (RLDS) of it",
    )
    network = serve.add_argument_group("the network")
    network.add_argument("--host", default=_DEFAULTS.host, help="default: this machine alone")
    network.add_argument(
        "--port", type=int, default=_DEFAULTS.port, help=f"default: {_DEFAULTS.port}; 0: a free one"
    )
    network.add_argument(
        "--tokens",
        type=Path,
        help="a file with a line `name token` for each client; default: the lines of the "
        "environment variable IMAGEWAM_SERVE_TOKENS",
    )
    network.add_argument("--certificate", type=Path, help="for TLS, a PEM file")
    network.add_argument("--private-key", type=Path, help="of the certificate, a PEM file")
    network.add_argument(
        "--insecure", action="store_true", help="let other machines connect without a token"
    )
    network.add_argument(
        "--connections",
        type=int,
        default=_DEFAULTS.connections,
        help=f"at most; default: {_DEFAULTS.connections}",
    )
    network.add_argument(
        "--rate",
        type=float,
        default=_DEFAULTS.rate,
        help=f"requests per second of each; default: {_DEFAULTS.rate:g}",
    )
    serve.set_defaults(run=_serve)


def rows_and_columns(text: str) -> tuple[int, int]:
    """`480x640`."""
    rows, columns = map(int, text.split("x"))
    return rows, columns


def name_and_key(text: str) -> tuple[str, str]:
    """`state=observation/state`."""
    name, separator, key = text.partition("=")
    if not (name and separator and key):
        raise ValueError(text)
    return name, key


def sizes(text: str) -> tuple[int, ...]:
    """`1,2,4,8`."""
    return tuple(map(int, text.split(",")))


def _serve(arguments: argparse.Namespace, rest: list[str]) -> int:
    try:
        import msgpack  # noqa: F401
        import prometheus_client  # noqa: F401
        import websockets  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{error}: pip install 'imagewam-jax[serve]'") from error
    from imagewam_jax.serving.access import check_exposure, read_tokens
    from imagewam_jax.serving.listening import listen, url

    _log_to_stderr()
    tokens = read_tokens(arguments.tokens)
    check_exposure(arguments.host, tokens, arguments.insecure)
    settings = Settings(
        host=arguments.host,
        port=arguments.port,
        tokens=tokens,
        tokens_file=arguments.tokens,
        certificate=arguments.certificate,
        key=arguments.private_key,
        buckets=arguments.buckets,
        seed=arguments.seed,
        connections=arguments.connections,
        rate=arguments.rate,
        record=arguments.record,
    )

    # It listens before anything large is imported: robots that connect early wait, and a port that
    # is taken is told at once.
    with listen(settings.host, settings.port) as listening:
        _say(f"listening on {url(listening, settings.certificate is not None)}")
        _answer(arguments, settings, listening)
    _say("stopped")
    return 0


def _answer(arguments: argparse.Namespace, settings: Settings, listening: socket.socket) -> None:
    import asyncio

    from imagewam_jax.serving.acting import make_actor
    from imagewam_jax.serving.server import serve_until_told

    def load() -> Any:
        return make_actor(
            arguments.checkpoint,
            keys=dict(arguments.key),
            image_size=arguments.image_size,
            euler_steps=arguments.euler_steps,
            clip=arguments.clip,
            real_time=arguments.real_time,
            autoencoder=arguments.autoencoder,
            text_table=arguments.text_table,
            text_encoder=arguments.text_encoder,
            text_tokens=arguments.text_tokens,
            dataset=arguments.dataset,
        )

    asyncio.run(serve_until_told(load, settings, listening, _say))


def _say(line: str) -> None:
    """A line of progress, at once even where the output is a file."""
    print(line, flush=True)


def _log_to_stderr() -> None:
    """A line for each connection and each error, and nothing of the libraries."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("imagewam_jax")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
