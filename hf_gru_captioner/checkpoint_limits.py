"""Limits on a checkpoint's files, checked before anything is built: its author is not trusted.

Sizes and counts come first, so that no file takes more memory or time than its weights warrant; then anything that
could lead elsewhere: to another repository, another file, or code. Needs neither torch nor transformers, so it also
checks graphs.
"""

import itertools
import json
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from .files import CONFIG, WEIGHTS
from .tokenization import PATTERNS

# Maximum size in bytes of a checkpoint's JSON files: at least ten times the usual. Once parsed, brackets alone take
# thirty times their size in memory.
MAX_BYTES = {
    CONFIG: 4_000_000,  # some encoders list 21,000 labels
    "generation_config.json": 4_000_000,
    "processor_config.json": 1_000_000,
    "preprocessor_config.json": 1_000_000,
    "tokenizer.json": 12_000_000,
    "tokenizer_config.json": 4_000_000,
    "special_tokens_map.json": 1_000_000,
    "added_tokens.json": 1_000_000,
    "vocab.json": 10_000_000,
    "graphs.json": 4_000_000,
}
MAX_LAYERS = 1000
MAX_SIDE = 2048  # pixels that images are scaled to; more is a typing error, or an attempt to exhaust memory
MAX_HEADER = 8_000_000  # bytes of names and shapes in a weights file
MAX_WEIGHTS = 50_000  # tensors
MAX_CHARACTERS = 1000  # of a token
MAX_ADDED_TOKENS = 5000
MAX_PARTS = 10_000  # objects and lists in a tokenizer.json, except in its vocabulary and merges
TOKENIZER = {
    *("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor"),
    *("decoder", "model"),
}
MAX_STEPS = 20  # of a decoder or normalizer
MAX_PATTERN = 500  # characters of a regular expression
MAX_REPEATS = 4  # quantifiers per alternative: matching may take up to this power of a text's length
MAX_PADDING = 10_000  # tokens
MAX_BAD_WORDS = 10_000  # tokens in all banned sequences
LENGTH_PENALTY = 10  # maximum magnitude; 1,000 tokens to a higher power soon overflow

LAYERS = re.compile("layer|depth|block|stage")  # in the name of a setting for the number of layers
LAYERS_OF_STAGES = re.compile("depths?$|layers$|blocks$|repeats$")  # in the name of a list of such numbers
PLAIN_NAME = re.compile(r"[\w.\-]+")  # of an architecture built into timm; others lead to the Hub or to a folder
ARCHITECTURES = ("architecture", "backbone", "model_name")
# Encoder settings that load weights, files or code from elsewhere; harmless if false or empty.
LEADS_ELSEWHERE = {
    *("use_pretrained_backbone", "pretrained", "checkpoint_path", "cache_dir", "pretrained_cfg_overlay"),
    *("pretrained_model_args", "quantization_config", "auto_map", "custom_pipelines", "gguf_file"),
}
IMPLEMENTATIONS = (None, "eager", "sdpa")  # of attention; others are kernels, possibly from the Hub

# Maxima of a checkpoint's integer generation settings: larger ones would exhaust memory or never finish.
LIMITS = {"num_beams": 1000, "max_new_tokens": 1000, "max_length": 1000}
# Generation settings that a checkpoint may contain; the others load models, compile, or lead to code on the Hub.
GENERATION = {
    *("_from_model_config", "begin_suppress_tokens", "bad_words_ids", "bos_token_id", "decoder_start_token_id"),
    *("do_sample", "early_stopping", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "eos_token_id"),
    *("epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty", "forced_bos_token_id"),
    *("forced_eos_token_id", "length_penalty", "max_length", "max_new_tokens", "max_time", "min_length"),
    *("min_new_tokens", "min_p", "no_repeat_ngram_size", "num_beams", "num_return_sequences", "output_attentions"),
    *("output_hidden_states", "output_logits", "output_scores", "pad_token_id", "remove_invalid_values"),
    *("renormalize_logits", "repetition_penalty", "return_dict_in_generate", "sequence_bias", "suppress_tokens"),
    *("temperature", "token_healing", "top_h", "top_k", "top_p", "transformers_version", "typical_p", "use_cache"),
}
OFF_AT_ONE = {"guidance_scale", "num_beam_groups"}  # have no effect at 1; older releases write them


def check_config(name: str, path: Path) -> None:
    """Rejects what is not a GRU captioner, would never finish building, or leads elsewhere.

    Args:
        name: Name of the checkpoint, for the message.
        path: Its config.json, the only file that must exist.

    Raises:
        ValueError: With the reason.
    """
    if not path.is_file():
        raise ValueError(f"{name} is not a checkpoint: it has no config.json.")
    try:
        config = read_json(path)
        model_type = config.get("model_type", "unknown")
    except (AttributeError, RecursionError, ValueError) as error:
        raise ValueError(f"{name} is not a checkpoint: its config.json can't be read ({_short(error)}).") from error
    if model_type != "gru_captioner":
        raise ValueError(f"{name} is not a GRU captioner but a model of type {_short(model_type)!r}.")
    check_layers(f"checkpoint {name}", config)
    check_encoder(name, config)


def check_layers(name: str, config: Mapping[str, Any]) -> None:
    """Rejects a network that would never finish building.

    Args:
        name: Name of the model, for the message.
        config: Its parsed config.json.

    Raises:
        ValueError: Names the setting.
    """
    for setting, value in _settings(config):
        if _is_number(value) and value > MAX_LAYERS and LAYERS.search(setting):
            raise ValueError(f"the {name} is damaged: {setting[:60]} in its config.json is more than {MAX_LAYERS:,}.")
        if isinstance(value, list) and sum(map(_layers, value)) > MAX_LAYERS and LAYERS_OF_STAGES.search(setting):
            raise ValueError(
                f"the {name} is damaged: {setting[:60]} in its config.json is more than {MAX_LAYERS:,} in total."
            )


def check_encoder(name: str, config: Mapping[str, Any]) -> None:
    """Rejects an encoder that would access another repository, read another file or run code when built.

    Args:
        name: Name of the model, for the message.
        config: Its parsed config.json. References to its own code are ignored by this package.

    Raises:
        ValueError: Names the setting.
    """
    own = {key: value for key, value in config.items() if key not in ("auto_map", "custom_pipelines")}
    for setting, value in _settings(own):
        leads = bool(value) and setting in LEADS_ELSEWHERE
        if setting in ARCHITECTURES and value is not None:
            leads = not isinstance(value, str) or not PLAIN_NAME.fullmatch(value)
        if "_implementation" in setting:
            leads = value not in IMPLEMENTATIONS and not isinstance(value, bool)  # `_attn_implementation_autoset`
        if leads:
            raise ValueError(
                f"{name} is refused: {setting} in its config.json, {_short(value)!r}, leads out of the checkpoint. An "
                "encoder is an architecture of transformers or of timm, by its plain name, with its weights in "
                "model.safetensors."
            )


def check_files(name: str, folder: Path) -> None:
    """Rejects files of a checkpoint that exceed a limit or lead elsewhere. Missing files are skipped.

    Raises:
        ValueError: Names the file and the reason.
    """
    contents = {}
    for file in MAX_BYTES:
        if (folder / file).is_file():
            contents[file] = read_json(folder / file)
            if not isinstance(contents[file], dict):
                raise ValueError(f"{file} is not a JSON object")
    check_generation(contents.get("generation_config.json", {}), name)
    check_tokenizer(contents.get("tokenizer.json", {}), contents.get(CONFIG, {}).get("vocab_size"))
    settings = contents.get("tokenizer_config.json", {})
    elsewhere = [key for key in settings if key.endswith(("_file", "_files")) and settings[key]]
    if elsewhere:
        raise ValueError(f"{elsewhere[0][:60]} in tokenizer_config.json leads out of the checkpoint")
    for file, key in (("tokenizer_config.json", "added_tokens_decoder"), ("special_tokens_map.json", "")):
        tokens = contents.get(file, {}).get(key, ()) if key else contents.get(file, {})
        if len(tokens or ()) > MAX_ADDED_TOKENS:
            raise ValueError(f"{file} adds more than {MAX_ADDED_TOKENS:,} tokens")
    if (folder / WEIGHTS).is_file():
        _check_header(folder / WEIGHTS)
    if (folder / "adapter_config.json").exists():
        raise ValueError("adapter_config.json leads to another model: merge the adapter into the weights")


def read_json(path: Path) -> Any:
    """Reads a JSON file of a checkpoint.

    Raises:
        ValueError: It exceeds its limit, or is not JSON.
    """
    limit = MAX_BYTES[path.name]
    if path.stat().st_size > limit:
        raise ValueError(f"{path.name} is larger than {limit / 1e6:.0f} MB")
    try:
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError(f"{path.name} is nested too deeply") from error


def check_generation(settings: Mapping[str, Any], name: str = "") -> None:
    """Rejects generation settings that never finish, exhaust memory, or that a checkpoint must not contain.

    Raises:
        ValueError: Names the setting, and the checkpoint if its name is given.
    """
    of_name = f" of {name}" if name else ""
    check_search_settings(settings, of_name)
    for setting, value in settings.items():
        is_off = value in (None, 0, "", [], {}) or (setting in OFF_AT_ONE and value == 1 and value is not True)
        if setting not in GENERATION and not is_off:
            raise ValueError(f"{setting[:60]}{of_name} is not a setting that a checkpoint may contain.")
    for setting in ("bad_words_ids", "sequence_bias"):
        if sum(1 for _ in _settings(settings.get(setting))) > MAX_BAD_WORDS:
            raise ValueError(f"{setting}{of_name} has more than {MAX_BAD_WORDS:,} tokens.")


def check_search_settings(settings: Mapping[str, Any], of_name: str = "") -> None:
    """Rejects settings of the wrong type, numbers of beams and tokens that would exhaust memory, and a length penalty
    that makes scores non-finite.

    Raises:
        ValueError: Names the allowed values.
    """
    length_penalty, size = settings.get("length_penalty"), settings.get("no_repeat_ngram_size")
    for setting, limit in LIMITS.items():
        value = settings.get(setting)
        if value is not None and not (_is_whole(value) and 1 <= value <= limit):
            raise ValueError(f"{setting}{of_name} must be a whole number from 1 to {limit:,}, found {_short(value)}.")
    suppressed = settings.get("suppress_tokens")
    if suppressed is not None and not (isinstance(suppressed, list | tuple) and all(map(_is_whole, suppressed))):
        raise ValueError(f"suppress_tokens{of_name} must be a list of token ids, found {_short(suppressed)}.")
    if length_penalty is not None and not (_is_number(length_penalty) and abs(length_penalty) <= LENGTH_PENALTY):
        raise ValueError(
            f"length_penalty{of_name} must be a number from -{LENGTH_PENALTY} to {LENGTH_PENALTY}, found "
            f"{_short(length_penalty)}."
        )
    if size is not None and not (_is_whole(size) and size >= 0):
        raise ValueError(
            f"no_repeat_ngram_size{of_name} must be a whole number, or 0 to allow repetition, found {_short(size)}."
        )


def check_tokenizer(content: Mapping[str, Any], vocab_size: int | None = None) -> None:
    """Rejects a tokenizer.json that is slow on long texts, or has more tokens than the model.

    Raises:
        ValueError: With the reason.
    """
    added = content.get("added_tokens") or ()
    if len(added) > MAX_ADDED_TOKENS:
        raise ValueError(f"tokenizer.json adds more than {MAX_ADDED_TOKENS:,} tokens")
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if vocab_size is not None and len(vocabulary or ()) > vocab_size:
        raise ValueError(f"the tokenizer has {len(vocabulary or ()):,} tokens, the model {vocab_size}")
    if unknown := content.keys() - TOKENIZER:
        raise ValueError(f"tokenizer.json has an unknown part, {_short(min(unknown))}")
    others = {name: part for name, part in content.items() if name not in ("model", "added_tokens")}
    if sum(1 for _ in itertools.islice(_containers(others), MAX_PARTS + 1)) > MAX_PARTS:
        raise ValueError(f"tokenizer.json has more than {MAX_PARTS:,} parts")
    if any(len(str(token)) > MAX_CHARACTERS for token in _tokens(vocabulary, added)):
        raise ValueError(f"tokenizer.json has a token of more than {MAX_CHARACTERS:,} characters")
    for setting, value in _settings([content.get("padding"), content.get("truncation")]):
        if _is_number(value) and value > MAX_PADDING:
            raise ValueError(f"{setting[:60]} in tokenizer.json is more than {MAX_PADDING:,}")
    for part in ("decoder", "normalizer", "pre_tokenizer"):
        _check_steps(part, list(_objects(content.get(part))))


def _check_steps(part: str, steps: list[Mapping[str, Any]]) -> None:
    if len([step for step in steps if "type" in step]) > MAX_STEPS:
        raise ValueError(f"the {part} in tokenizer.json has more than {MAX_STEPS} steps")
    growing = 0
    for step in steps:
        pattern, expression = step.get("String"), step.get("Regex")
        if "pattern" in step and step.get("type") == "Replace":
            replaced = step["pattern"] if isinstance(step["pattern"], dict) else {"String": step["pattern"]}
            growing += len(str(step.get("content") or "")) > len(str(replaced.get("String", " ")))
        if pattern == "":
            raise ValueError(f"the {part} in tokenizer.json has an empty pattern")
        if expression is not None and expression not in PATTERNS and (part == "decoder" or _is_slow(str(expression))):
            raise ValueError(f"a regular expression of the {part} in tokenizer.json might never finish")
    if growing > (0 if part == "decoder" else 2):  # each may multiply the text
        raise ValueError(f"the {part} in tokenizer.json may lengthen texts without bound")


def _is_slow(expression: str) -> bool:
    """Whether a regular expression may take exponential time: it repeats a group that contains repetition or
    alternatives. Some fast expressions are rejected too."""
    if len(expression) > MAX_PATTERN:
        return True
    plain = re.sub(r"\\[pP]\{[^}]*\}|\\.|\[(?:\\.|[^\]\\])*\]", "x", expression)  # classes count as one letter
    groups = [False]  # for each open group: whether it contains repetition or alternatives
    closed = False  # the same for the group just closed
    repeats = 0
    for token in re.findall(r"\(\??|\)|[*+|]|\{\d*,\d*\}|\{\d+\}|.", plain, re.DOTALL):
        if token[0] == "(":
            groups.append(False)
        elif token == ")":
            closed = groups.pop() if len(groups) > 1 else True
            groups[-1] |= closed
            continue
        elif token[0] in "*+{":
            repeats += 1
            if closed or repeats > MAX_REPEATS:
                return True
            groups[-1] = True
        elif token == "|":
            groups[-1] = True
            repeats *= len(groups) > 1
        closed = False
    return False


def _check_header(weights: Path) -> None:
    """Rejects a weights file that is mostly header."""
    with weights.open("rb") as file:
        start = file.read(8)
        size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if size > MAX_HEADER and size < os.stat(file.fileno()).st_size:
            raise ValueError(f"{weights.name} has a header larger than any model's")
        try:
            names = json.loads(file.read(size)) if size <= MAX_HEADER else {}
        except (RecursionError, ValueError):
            return  # safetensors reports what is wrong
    if len(names) > MAX_WEIGHTS:
        raise ValueError(f"{weights.name} has {len(names):,} weights, more than {MAX_WEIGHTS:,}")


def _tokens(vocabulary: Any, added: Iterable[Any]) -> Iterator[Any]:
    for token in vocabulary if isinstance(vocabulary, dict | list) else ():
        yield token[0] if isinstance(token, list) and token else token
    for token in added:
        yield token.get("content") if isinstance(token, dict) else token


def _objects(content: Any) -> Iterator[Mapping[str, Any]]:
    """Every object in a JSON value, including itself."""
    if isinstance(content, dict):
        yield content
    for value in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from _objects(value)


def _containers(content: Any) -> Iterator[Any]:
    """Every object and list in a JSON value."""
    if isinstance(content, dict | list):
        yield content
        for value in content.values() if isinstance(content, dict) else content:
            yield from _containers(value)


def _settings(content: Any, setting: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in a JSON value with the name of its setting, nested ones included; lists also as a whole."""
    if isinstance(content, dict):
        for key, value in content.items():
            if isinstance(value, dict):
                yield str(key), value
            yield from _settings(value, str(key))
    elif isinstance(content, list):
        yield setting, content
        for value in content:
            yield from _settings(value, setting)
    else:
        yield setting, content


def _layers(value: Any) -> float:
    return value if _is_number(value) and value > 0 else 0


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: Any) -> str:
    return " ".join(str(value)[:60].split())
