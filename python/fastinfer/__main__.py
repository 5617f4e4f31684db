"""`python -m fastinfer`: what fastinfer found on this machine, and `optimize` for a directory."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from fastinfer.info import show_config


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code, 2 for what the user can put right."""
    options = _parser().parse_args(arguments)
    if options.command is None:
        show_config().show()
        return 0
    try:
        _optimize(options)
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        print(f"fastinfer: {(str(error).splitlines() or [repr(error)])[0]}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastinfer", description="Without a command: shows the configuration."
    )
    optimize = parser.add_subparsers(dest="command").add_parser(
        "optimize",
        help="make a model of a Hugging Face directory faster",
        description="Finds the fastest form of a model within an error and writes it; "
        "fastinfer.load(OUT) gives it back.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    optimize.add_argument("model", metavar="MODEL_DIR", type=Path, help="config.json and weights")
    optimize.add_argument(
        "-o", "--out", metavar="OUT", type=Path, required=True, help="a new or empty directory"
    )
    optimize.add_argument(
        "--max-error", type=float, default=0.05, help="limit of ||y - y0|| / ||y0|| of the outputs"
    )
    optimize.add_argument("--batch", type=_positive, default=1, help="inputs in a batch")
    optimize.add_argument("--length", type=_positive, default=128, help="tokens of an input")
    optimize.add_argument(
        "--threads", type=_positive, default=argparse.SUPPRESS, help="of torch (default: torch's)"
    )
    optimize.add_argument(
        "--text",
        metavar="FILE",
        type=Path,
        help="lines of text for the model's tokenizer in place of random tokens",
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, want at least 1")
    return value


def _optimize(options: argparse.Namespace) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from fastinfer import checkpoint, huggingface
    from fastinfer.optimize import optimize

    transformers = huggingface.import_transformers()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    checkpoint.check_output(options.out)
    if "threads" in options:
        torch.set_num_threads(options.threads)
    model = huggingface.load_float(options.model)
    batches = huggingface.example_inputs(
        model, options.batch, options.length, options.text, options.model
    )
    result = optimize(model, batches, max_error=options.max_error)
    checkpoint.save(result, options.model, options.out)
    result.show()
    print(f"Written to {options.out}")


if __name__ == "__main__":
    sys.exit(main())
