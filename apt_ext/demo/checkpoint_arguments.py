"""The command line's arguments for a checkpoint of one's own; the embedded model has none of them."""

from __future__ import annotations

import argparse

from apt_ext.options import settings

__all__ = ["add_checkpoint", "check_checkpoint"]

DTYPES = ("auto", "float32", "float16", "bfloat16")
OFFLOADS = ("none", "model", "sequential")


def add_checkpoint(parser: argparse.ArgumentParser, picture: bool) -> None:
    """Add them. `picture`: whether the command begins with a picture. All of them are None or empty where they are not given."""
    group = parser.add_argument_group("a checkpoint of your own, by diffusers (see docs/checkpoints.md)")
    group.add_argument("--model", metavar="X", help="a diffusers folder, a .safetensors file, or a name on the Hugging Face hub; the embedded model")
    group.add_argument("--prompt", metavar="TEXT", help="what the picture shows")
    group.add_argument("--negative", metavar="TEXT", help="what it is not to show")
    group.add_argument("--region", action="append", metavar="TEXT", help=settings()["regions"].help.replace("%", "%%"))
    group.add_argument(
        "--config",
        metavar="X",
        help="for a single file: folder or hub name whose parts it is a checkpoint of, and which lends those that it lacks; found by itself with a network",
    )
    group.add_argument("--vae", metavar="X", help="another VAE: folder, .safetensors file or hub name")
    group.add_argument("--lora", action="append", metavar="FILE[:WEIGHT]", help="a LoRA file; may be given several times")
    group.add_argument("--dtype", choices=DTYPES, help="numbers of the model; auto: float16 on a GPU, float32 elsewhere")
    group.add_argument("--offload", choices=OFFLOADS, help="keep the model's parts in main memory until they are needed: whole parts, or layer by layer; none")
    group.add_argument("--native", type=int, metavar="PIXELS", help="side of the pictures that it composes, and of its windows; the checkpoint's own")
    group.add_argument("--prediction", choices=("epsilon", "v_prediction"), help="what the UNet predicts, where a single file does not say so")
    group.add_argument(
        "--control",
        action="append",
        metavar="X[:WEIGHT[:SHARE]]",
        help="a ControlNet: folder, .safetensors file or hub name, and the share of the steps in which it acts, such as 0-50%%; several times for several",
    )
    group.add_argument("--control-image", action="append", metavar="FILE", help="a ControlNet's picture, in their order; the picture itself")
    group.add_argument("--allow-pickle", action="store_true", default=None, help="load files other than safetensors too, which can run any program")
    if picture:
        group.add_argument("--mask", metavar="FILE", help="a picture that is white where something new may come in, and black where it may not")
    else:
        group.add_argument("--size", metavar="WxH", help="of the picture that is made first; the checkpoint's own")


NAMES = "prompt negative config vae lora region dtype offload native prediction control control_image allow_pickle mask size".split()


def check_checkpoint(args: argparse.Namespace) -> bool:
    """Whether the arguments name a checkpoint.

    Raises:
        ValueError: where they ask something of the model that is not there, or of both.
    """
    given = [name for name in NAMES if getattr(args, name, None) is not None]
    if args.model is None and given:
        raise ValueError(f"--{given[0].replace('_', '-')} needs a checkpoint, which the embedded model is not; name one with --model")
    if args.model is not None and args.style is not None:
        raise ValueError(f"--style {args.style} is of the embedded model; say it in --prompt, or leave --model out")
    return args.model is not None
