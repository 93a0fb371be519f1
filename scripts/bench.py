"""`skipgym bench`: how fast things are, one module for each kind of thing."""

import sys
from importlib import import_module

from ..names import unknown

BENCHES = {
    "env": "decisions per second against single environments, masked execution and the bare network",
    "controller": "an exported controller against its network without choices, in ONNX Runtime",
}


def main(arguments: list[str]) -> int:
    """Run one measurement; its module is `bench_NAME`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] not in BENCHES:
        print(unknown("bench", arguments[0], BENCHES), file=sys.stderr)
        return 2
    return import_module(f".bench_{arguments[0]}", __package__).main(arguments[1:])


def _usage() -> str:
    width = max(map(len, BENCHES))
    lines = [f"  {name:{width}}  {what}" for name, what in BENCHES.items()]
    return "\n".join(["usage: skipgym bench WHAT …      (skipgym bench WHAT --help tells its options)", "", *lines])
