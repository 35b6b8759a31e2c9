"""Examples at the end of each command's help."""

import argparse
import shutil
import textwrap

EXAMPLES = {
    "caption": (
        "gru-captioner caption photo.jpg",
        "gru-captioner caption photos/ --recursive --output captions.csv",
        "gru-captioner caption photos/ --recursive --write metadata --dry-run",
    ),
    "score": (
        "gru-captioner score --data jxie/flickr8k",
        "gru-captioner score --checkpoint runs/mine/checkpoint --data my/captions.csv --keep",
        "gru-captioner score theirs.json --references captions_val2014.json",
    ),
    "card": (
        "gru-captioner card runs/mine/checkpoint --repo-id user/name",
        "gru-captioner card runs/mine/checkpoint --license apache-2.0 --output card.md",
    ),
    "push": (
        "gru-captioner push runs/mine/checkpoint user/name --dry-run",
        "gru-captioner push runs/mine/checkpoint user/name --private",
        "gru-captioner push runs/mine/checkpoint user/demo --space",
    ),
    "demo": (
        "gru-captioner demo",
        "gru-captioner demo runs/mine/checkpoint user/name --port 7861",
    ),
    "export": (
        "gru-captioner export --output runs/graphs",
        "gru-captioner export runs/mine/checkpoint --format openvino",
        "gru-captioner export runs/mine/checkpoint --int8 --images my/images --output runs/graphs-int8",
    ),
    "borrow": (
        "gru-captioner borrow --images my/labelled --captions my/captions.jsonl --output runs/borrowed",
        "gru-captioner borrow --images my/labelled --captions user/text --output mine --checkpoint runs/1/checkpoint",
    ),
    "label": (
        "gru-captioner label my/photos/ --teacher Salesforce/blip-image-captioning-base --output captions.jsonl",
        "gru-captioner label my/photos/ --teacher microsoft/git-base-coco --num-captions 5 --output captions.jsonl",
        "gru-captioner label my/photos/ --teacher user/chat-model --prompt 'Name the product.' --output captions.jsonl",
    ),
    "features": (
        "gru-captioner features --config configs/flickr8k.yaml --dry-run",
        "gru-captioner features --config configs/flickr8k.yaml",
    ),
    "train": (
        "gru-captioner train my/captions.csv",
        "gru-captioner train --config configs/custom-folder.yaml --data.source my/captions.csv",
        "accelerate launch scripts/train.py --config configs/flickr8k.yaml --optimization.epochs 3",
    ),
}


def add_examples(parser: argparse.ArgumentParser, command: str) -> None:
    """Appends a command's examples to its help, one per line."""
    width = shutil.get_terminal_size().columns - 2  # as in argparse
    paragraphs = [textwrap.fill(parser.epilog, width)] if parser.epilog else []
    lines = "\n".join(f"  {line}" for line in EXAMPLES[command])
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = textwrap.fill(parser.description or "", width)
    parser.epilog = "\n\n".join([*paragraphs, f"examples:\n{lines}"])
