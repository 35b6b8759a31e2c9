"""Training options from a YAML file and the command line."""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from typing import Any

from ..errors import UsageError, one_line
from ..training.config import DataConfig, TrainingConfig, flatten_options

MAX_DEPTH = 20  # groups in groups of a file of options, which has two
MAX_SAID = 1000  # characters of what the parser complains of: it repeats what it found


def read_config(argv: Sequence[str], command: str, description: str) -> TrainingConfig:
    """The options of the YAML file of `--config` with those of the command line over them.

    Raises:
        UsageError: A option is unknown, missing or of the wrong kind; names the nearest known one.
    """
    from jsonargparse import ArgumentError, ArgumentParser, Namespace, get_loader, set_loader, set_parsing_settings
    from yaml import YAMLError

    load = get_loader("yaml")

    def load_flat(text: str) -> Any:
        _check_flat(text)
        return load(text)

    set_loader("options", load_flat, (YAMLError, ValueError))
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"gru-captioner {command}",
        description=description,
        allow_abbrev=False,
        exit_on_error=False,
        parser_mode="options",
    )
    parser.add_argument("--config", action="config", help="YAML file of these options")
    parser.add_class_arguments(TrainingConfig)
    try:
        parsed = parser.parse_args(list(argv))
        for group in dataclasses.fields(TrainingConfig):
            if dataclasses.is_dataclass(group.type) and not isinstance(parsed[group.name], Namespace):
                raise UsageError(f"{group.name} is a group of options, found {parsed[group.name]!r:.60}.")
        fields = vars(parser.instantiate(parsed))
    except ArgumentError as error:
        raise UsageError(
            f"{one_line(error)[:MAX_SAID]}.{_nearest_option(str(error))} The options: gru-captioner {command} --help"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--config is not a text in UTF-8 ({error}).") from error
    return TrainingConfig(**{name: value for name, value in fields.items() if name != "config"})


def _check_flat(text: str) -> None:
    """Refuses YAML that no options are written in, before it is built: brackets in brackets would overflow PyYAML's
    stack, which ends the process, and names of names (`&`, `*`) stand for more than any memory holds.

    Raises:
        ValueError: Names are used, or groups are too deep.
    """
    import yaml

    depth = 0
    for token in yaml.scan(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        kind = type(token).__name__
        depth += kind.endswith("StartToken") - kind.endswith("EndToken")
        if kind == "AliasToken" or depth > MAX_DEPTH:
            raise ValueError(f"options are in groups, without names (&, *) and no more than {MAX_DEPTH} groups deep")


def _nearest_option(complaint: str) -> str:
    """What the caller may have meant by a option that jsonargparse doesn't know."""
    unknown = re.search(r"arguments: --([\w.]+)", complaint) or re.search(r"Option '(.+)' is not accepted", complaint)
    in_group = re.search(r"Group '(.+)' does not accept option '(.+)'", complaint)
    if not unknown and not in_group:
        return ""
    name = f"{in_group[1]}.{in_group[2]}" if in_group else unknown[1]  # type: ignore[index]
    known = flatten_options(dataclasses.asdict(TrainingConfig(DataConfig(source=""), output_dir="")))
    nearest = difflib.get_close_matches(name, known, 1, cutoff=0)[0]
    return f" Did you mean {nearest}?"
