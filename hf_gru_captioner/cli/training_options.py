"""Training options from a YAML file and the command line.

On the command line, names have dashes, `--output-dir`, as in all commands; underscores, as in YAML, are accepted too. A
boolean option needs no value.
"""

import argparse
import dataclasses
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args, get_origin

from ..errors import UsageError, one_line
from ..training.config import (
    RECOMMENDED,
    DataConfig,
    SourceConfig,
    TrainingConfig,
    flatten_options,
    nearest_option,
    option_types,
)
from .examples import add_examples
from .shell import PACKAGE

# Listed first by `--help`.
OFTEN_SET = (
    "data.source",
    "data.images",
    "output_dir",
    "model.encoder",
    "model.checkpoint",
    "optimization.epochs",
    "optimization.images_per_step",
    "optimization.learning_rate",
    "optimization.encoder_learning_rate",
    "optimization.mixed_precision",
    "push_to_hub",
    "dry_run",
)
SHORT = {"epochs": "optimization.epochs"}
REQUIRED = {"data.source", "output_dir"}
CONFIG_HELP = "YAML file of these options, nested, with underscores in names; the command line overrides it"
MAX_DEPTH = 20  # nesting of a YAML file of options, which needs 2
MAX_COMPLAINT = 1000  # characters of the parser's message, which quotes its input


def read_config(argv: Sequence[str], command: str, description: str) -> TrainingConfig:
    """The options from the YAML file given by `--config`, overridden by those on the command line.

    Raises:
        UsageError: An option is unknown, missing or of the wrong type; suggests the nearest known one.
        SystemExit: Help was requested and printed.
    """
    if {"-h", "--help"} & set(argv):
        _help_parser(command, description).print_help()
        raise SystemExit(0)
    from jsonargparse import ArgumentError, Namespace

    parser = _parser(command)
    try:
        parsed = parser.parse_args(_normalized(argv))
        for group in dataclasses.fields(TrainingConfig):
            if parsed[group.name] is None and dataclasses.is_dataclass(group.type):  # without options in YAML
                parsed[group.name] = parser.get_defaults()[group.name]
            if dataclasses.is_dataclass(group.type) and not isinstance(parsed[group.name], Namespace):
                raise UsageError(f"{group.name} is a group of options, found {parsed[group.name]!r:.60}.")
        fields = vars(parser.instantiate(parsed))
    except ArgumentError as error:
        raise UsageError(
            f"{one_line(error)[:MAX_COMPLAINT]}.{_suggestion(str(error))} All options: gru-captioner {command} --help"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--config is not UTF-8 text ({error}).") from error
    source = fields["data"].source
    if isinstance(source, str) and source.lstrip().startswith(("[{", "{")):  # otherwise taken for a file name
        names = ", ".join(each.name for each in dataclasses.fields(SourceConfig))
        raise UsageError(
            'data.source takes a list like [{"path": "a"}, {"path": "b", "repeat": 2}] of sources with the options '
            f"{names}; found {source:.100}."
        )
    return TrainingConfig(**{name: value for name, value in fields.items() if name != "config"})


def check_sources(config: TrainingConfig) -> None:
    """Rejects unreadable sources before anything heavy is loaded.

    Raises:
        OSError, ValueError: As in `data.check_source`.
    """
    from ..data import NoSplitError, ReadingOptions, check_source

    data = config.data
    for source in data.sources:
        options = ReadingOptions(**data.reading(source))
        check_source(source.path, [data.train_split], options)
        if source.validate:
            try:
                check_source(source.path, [data.validation_split], options)
            except NoSplitError:
                if len(data.sources) == 1:
                    raise


def _parser(command: str) -> Any:
    """A jsonargparse parser for the dataclasses, with a YAML loader that rejects what exhausts stack or memory."""
    from jsonargparse import ArgumentParser, get_loader, set_loader, set_parsing_settings
    from yaml import YAMLError

    load = get_loader("yaml")

    def load_flat(text: str) -> Any:
        _check_flat(text)
        return load(text)

    set_loader("options", load_flat, (YAMLError, ValueError))
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog=f"gru-captioner {command}",
        allow_abbrev=False,
        exit_on_error=False,
        parser_mode="options",
    )
    parser.add_argument("--config", action="config", help=CONFIG_HELP)
    parser.add_class_arguments(TrainingConfig)
    return parser


def _normalized(argv: Sequence[str]) -> list[str]:
    """Arguments as expected by jsonargparse: names with underscores, a value for every boolean option."""
    types = option_types()
    arguments = []
    for argument, following in zip(argv, [*argv[1:], "--"], strict=False):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            name = name.replace("-", "_")
            name = SHORT.get(name, name)
            if types.get(name) is bool and not equals and following.startswith("-"):
                equals, value = "=", "true"
            argument = f"--{name}{equals}{value}"
        arguments.append(argument)
    return arguments


def names_given(argv: Sequence[str]) -> set[str]:
    """Full names of the options on a command line."""
    return {each[2:].partition("=")[0] for each in _normalized(argv) if each.startswith("--")}


def names_set(argv: Sequence[str], command: str) -> set[str]:
    """Full names of the options on a command line and in the file that it names by `--config`."""
    parsed = _parser(command).parse_args(_normalized(argv), defaults=False)
    return option_types().keys() & parsed.keys()


@contextmanager
def options_as_typed(argv: Sequence[str]) -> Iterator[None]:
    """Rewrites option names in errors and logs as typed on the command line, `--data.max-skipped` instead of
    `data.max_skipped` as in YAML and Python. With `--config`, only for options given on the command line.

    Raises:
        UsageError: Replaces an error that names such an option.
    """
    names = names_given(argv) & option_types().keys() if _has_file(argv) else set(option_types())
    dotted = sorted((name for name in names if "." in name), key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w.\-/])({'|'.join(map(re.escape, dotted)) or '(?!)'})(?![\w.]*\w)")

    def typed(text: str) -> str:
        return pattern.sub(lambda match: _flag(match[1]), text)

    def in_log(record: logging.LogRecord) -> bool:
        record.msg, record.args = typed(record.getMessage()), ()
        return True

    handlers = logging.getLogger(PACKAGE.name).handlers
    for handler in handlers:
        handler.addFilter(in_log)
    try:
        yield
    except (OSError, ValueError) as error:
        if typed(str(error)) == str(error):
            raise
        raise UsageError(typed(str(error))) from error
    finally:
        for handler in handlers:
            handler.removeFilter(in_log)


def _has_file(argv: Sequence[str]) -> bool:
    return any(each.partition("=")[0] == "--config" for each in argv)


def _check_flat(text: str) -> None:
    """Rejects dangerous YAML before it is built: deeply nested brackets would overflow PyYAML's stack and crash the
    process, and nested aliases (`&`, `*`) expand beyond any memory.

    Raises:
        ValueError: There are aliases, or the nesting is too deep.
    """
    import yaml

    depth = 0
    for token in yaml.scan(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        kind = type(token).__name__
        depth += kind.endswith("StartToken") - kind.endswith("EndToken")
        if kind == "AliasToken" or depth > MAX_DEPTH:
            raise ValueError(f"options are nested at most {MAX_DEPTH} deep and have no aliases (&, *)")


def _suggestion(complaint: str) -> str:
    """The option that was probably meant by an unknown one, in the same style: with dashes on the command line, with
    underscores in a file."""
    if unknown := re.search(r"arguments: --([\w.]+)", complaint):
        return f" Did you mean {_flag(nearest_option(unknown[1]))}?"
    if unknown := re.search(r"Group '(.+)' does not accept option '(.+)'", complaint):
        return f" Did you mean {nearest_option(f'{unknown[1]}.{unknown[2]}')}?"
    if unknown := re.search(r"Option '(.+)' is not accepted", complaint):
        return f" Did you mean {nearest_option(unknown[1])}?"
    return ""


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _help_parser(command: str, description: str) -> argparse.ArgumentParser:
    """A parser for the help only, which needs neither jsonargparse nor the types."""
    parser = argparse.ArgumentParser(
        prog=f"gru-captioner {command}",
        usage=_usage(command),
        description=description,
        add_help=False,
        allow_abbrev=False,
    )
    often = parser.add_argument_group("most people set")
    others = parser.add_argument_group("all other options")
    often.add_argument("--config", metavar="FILE", help=CONFIG_HELP)
    texts = _texts()
    defaults = flatten_options(dataclasses.asdict(TrainingConfig(DataConfig(source=""), output_dir="")))
    for name in OFTEN_SET:
        _add_option(often, name, texts[name], _shown_default(command, name, defaults[name]))
    for name in option_types():
        if name not in OFTEN_SET:
            _add_option(others, name, texts[name], _shown_default(command, name, defaults[name]))
    others.add_argument("-h", "--help", action="help", help="show this help")
    add_examples(parser, command)
    return parser


def _usage(command: str) -> str:
    full = f"gru-captioner {command} [--config FILE] --data.source SOURCE --output-dir DIR [OPTIONS]"
    return f"gru-captioner train SOURCE [OPTIONS]\n       {full}" if command == "train" else full


def _shown_default(command: str, name: str, default: Any) -> str:
    if name in REQUIRED:
        return "required without SOURCE" if command == "train" else "required"
    shown = "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
    return f"{shown}; with SOURCE chosen from the data" if command == "train" and name in RECOMMENDED else shown


def _add_option(group: Any, name: str, text: str, shown_default: str) -> None:
    kind = option_types()[name]
    settings: dict[str, Any] = {"metavar": name.rpartition(".")[2].upper()}
    if kind is bool:
        settings = {"metavar": "true|false", "nargs": "?"}
    elif get_origin(kind) is Literal:
        settings = {"metavar": "|".join(get_args(kind))}
    flags = [f"--{short}" for short, full in SHORT.items() if full == name] + [_flag(name)]
    group.add_argument(*flags, help=f"{text} ({shown_default})".replace("%", "%%"), **settings)


def _texts() -> dict[str, str]:
    """The docstring of each option, by full name."""
    from docstring_parser import parse_from_object

    texts: dict[str, str] = {}
    groups = {each.name: each.type for each in dataclasses.fields(TrainingConfig)}
    for parameter in parse_from_object(TrainingConfig).params:
        kind = groups[parameter.arg_name]
        if dataclasses.is_dataclass(kind):
            options = parse_from_object(kind).params
            texts |= {f"{parameter.arg_name}.{each.arg_name}": each.description or "" for each in options}
        else:
            texts[parameter.arg_name] = parameter.description or ""
    return texts
