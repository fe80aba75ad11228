"""Command-line options made from signatures: a named part brings its own options, a misspelt one its nearest.

``--miner hcl --miner.beta 2`` on the command line is ``miner: {name: hcl, beta: 2}`` in a YAML file. Types, defaults
and help come from the signature and docstring of the function that the name stands for.
"""

import argparse
import inspect
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentParser, Namespace

from contrastive.errors import InputError

__all__ = ["Part", "nearest", "parse"]


_SWITCHES = (bool, bool | None)


@dataclass(frozen=True)
class Part:
    """An option whose value is a name that stands for a function with options of its own.

    Arguments:
        choices: by name; a name that ends in ``:`` is a prefix (``timm:resnet18``). None: nothing to configure.
        default: the name taken when none is given.
        filled: parameters that the command fills in itself.
        overridden: other defaults than the signature's: ``{parameter: (type, default)}``.
    """

    choices: Mapping[str, Callable[..., Any] | None]
    default: str
    filled: frozenset[str] = frozenset()
    overridden: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    def resolve(self, option: str, name: str) -> Callable[..., Any] | None:
        """The function that a name stands for.

        Raises:
            InputError: for an unknown name, with the nearest known one.
        """
        for known, function in self.choices.items():
            if name == known if not known.endswith(":") else name.startswith(known) and name != known:
                return function
        known_names = [f"{k}NAME" if k.endswith(":") else k for k in self.choices]
        raise InputError(
            f"--{option}: unknown name {name!r}{nearest(name, self.choices)}; there are {', '.join(known_names)}"
        )


def nearest(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """``, did you mean X?`` for the nearest known word, or nothing.

    >>> nearest("epohcs", ["epochs", "seed"])
    ' (did you mean epochs?)'
    """
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def parse(
    arguments: Sequence[str],
    *,
    prog: str,
    description: str,
    parts: Mapping[str, Part],
    add_options: Callable[[ArgumentParser], None],
) -> dict[str, Any]:
    """Parses a command line with named parts, a YAML file and dotted overrides.

    Arguments:
        arguments: the words after the command.
        prog: the command, for the help.
        description: its first lines.
        parts: the named parts.
        add_options: adds the plain options to the parser.

    Returns:
        A plain nested dict; each part is ``{"name": ..., option: value, ...}``.

    Raises:
        InputError: for anything unknown or of the wrong type, in one sentence.
        SystemExit: after ``--help`` and ``--print_config``.
    """
    words = [word for argument in arguments for word in _split(argument)]
    words = [f"{word}.name" if word[2:] in parts else word for word in words]
    settings = _read_config(_value(words, "--config"), parts)
    names = {}
    for option, part in parts.items():
        in_file = settings.get(option, {}).get("name", part.default)
        name = _value(words, f"--{option}.name") or in_file
        if option in settings and name != in_file:
            settings[option] = {"name": name}  # the file's options belong to the part that it named
        names[option] = name, part.resolve(option, name)
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="a YAML file of these options; the command line overrides it")
    add_options(parser)
    for option, part in parts.items():
        _add_part(parser, option, part, *names[option])
    known = {name for action in parser._actions for name in action.option_strings}
    _refuse_unknown(words, settings, known, names)
    words = _switched(_canonical(words, known), parser)
    if settings:
        # The file's short forms are spelt out; jsonargparse takes the text of a file as well as its name.
        words = ["--config", yaml.safe_dump(settings), *_without(words, "--config")]
    try:
        namespace = parser.parse_args(words)
    except (argparse.ArgumentError, TypeError) as error:
        raise InputError(_one_sentence(str(error), parser)) from None
    for action in parser._actions:  # jsonargparse takes null for an option of any type
        if action.default not in (None, argparse.SUPPRESS) and namespace.get(action.dest, action.default) is None:
            raise InputError(f"--{action.dest.replace('_', '-')}: got null, expected a value")
    plain: dict[str, Any] = Namespace.as_dict(namespace)
    plain.pop("config", None)
    return plain


def _split(argument: str) -> list[str]:
    """``--a=b`` becomes ``--a b``."""
    if argument.startswith("--") and "=" in argument:
        return argument.split("=", 1)
    return [argument]


def _value(words: Sequence[str], option: str) -> str | None:
    """The last value given to an option."""
    found = [words[i + 1] for i in range(len(words) - 1) if words[i] == option]
    return found[-1] if found else None


def _without(words: Sequence[str], option: str) -> list[str]:
    return [w for i, w in enumerate(words) if w != option and (i == 0 or words[i - 1] != option)]


def _read_config(file: str | None, parts: Mapping[str, Part]) -> dict[str, Any]:
    """The YAML file as a nested dict; ``miner: hcl`` is spelt out as ``miner: {name: hcl}``."""
    if file is None:
        return {}
    try:
        settings = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config: {file} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"--config: {file} is not YAML: {' '.join(str(error).split())}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise InputError(f"--config: {file} holds no options, expected lines such as 'batch_size: 256'")
    for option, part in parts.items():
        given = settings.get(option)
        if option in settings and not isinstance(given, dict):
            settings[option] = {"name": part.default if given is None else str(given)}
        elif given is not None and "name" in given:
            given["name"] = part.default if given["name"] is None else str(given["name"])
    return settings


def _add_part(parser: ArgumentParser, option: str, part: Part, name: str, function: Callable[..., Any] | None) -> None:
    group = parser.add_argument_group(f"{option}: {name}" if len(part.choices) > 1 else option)
    if len(part.choices) > 1:
        choices = " | ".join(f"{k}NAME" if k.endswith(":") else k for k in part.choices)
        group.add_argument(
            f"--{option}.name", type=str, default=name, metavar="NAME", help=f"{choices}; also as --{option} NAME"
        )
    if function is None:
        return
    hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    documented = {p.arg_name: p.description for p in parse_docstring(inspect.getdoc(function) or "").params}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name in part.filled:
            continue
        kind, default = part.overridden.get(parameter.name, (hints[parameter.name], parameter.default))
        if isinstance(default, tuple):
            default = list(default)
        required = default is inspect.Parameter.empty
        group.add_argument(
            f"--{option}.{parameter.name}",
            type=_yaml_type(kind),
            required=required,
            **({} if required else {"default": default}),
            help=_help(documented.get(parameter.name) or ""),
        )


def _help(text: str) -> str:
    """A docstring's description without its markup."""
    plain = re.sub(r":\w+:`([^`]*)`|`+([^`]*)`+", r"\1\2", " ".join(text.split()))
    # Of formulas: \tau and \sqrt{n / 2} become tau and sqrt(n / 2).
    return re.sub(r"\\([a-z]+)", r"\1", plain).translate(str.maketrans("{}", "()")).rstrip(".")


def _yaml_type(hint: Any) -> Any:
    """YAML has lists, not sequences."""
    return list[int] if hint == Sequence[int] else hint


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _plain(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _refuse_unknown(
    words: Sequence[str], settings: Mapping[str, Any], known: set[str], names: Mapping[str, tuple[str, Any]]
) -> None:
    keys = {_plain(option): option for option in known if option.startswith("--")}
    for shown in [*(word for word in words if word.startswith("--")), *_flat(settings)]:
        key = _plain(shown)
        if key in keys:
            continue
        option = key.split(".")[0]
        if "." in key and option in names:
            own = [k for k in keys if k.startswith(f"{option}.") and k != f"{option}.name"]
            near = nearest(key, own) or (f"; it has {', '.join(own)}" if own else "")
            raise InputError(f"unknown option {shown}: the {option} {names[option][0]} has no such option{near}")
        raise InputError(f"unknown option {shown}{nearest(shown, list(keys.values() if shown[:2] == '--' else keys))}")


def _canonical(words: Sequence[str], known: set[str]) -> list[str]:
    """``--batch_size`` and ``--batch-size`` are the same option."""
    spelling = {_plain(option): option for option in known if option.startswith("--")}
    return [spelling[_plain(word)] if word.startswith("--") else word for word in words]


def _switched(words: Sequence[str], parser: ArgumentParser) -> list[str]:
    """``--download`` alone means ``--download true``, for every option that is true or false."""
    switches = {o for a in parser._actions for o in a.option_strings if getattr(a, "_typehint", a.type) in _SWITCHES}
    out = []
    for i, word in enumerate(words):
        alone = i + 1 == len(words) or words[i + 1].startswith("--")
        out += [word, "true"] if word in switches and alone else [word]
    return out


def _one_sentence(message: str, parser: ArgumentParser) -> str:
    """What jsonargparse reports, on one line and in our words."""
    line = " ".join(message.split()).rstrip(".")
    if found := re.search(r'Parser key "(?P<key>[^"]+)":.*(?:Got|Given) value: (?P<value>.*)', line):
        hints = {action.dest: getattr(action, "_typehint", action.type) for action in parser._actions}
        return f"--{found['key'].replace('_', '-')} is {found['value']}, expected {_in_words(hints.get(found['key']))}"
    if found := re.search(r"the following arguments are required: (?P<keys>.+)", line):
        places = {action.dest for action in parser._actions if not action.option_strings}
        keys = (key.strip() for key in found["keys"].split(","))
        return f"required: {', '.join(key if key in places else '--' + key for key in keys)}"
    return line.replace('Parser key "', "--").replace('":', ":")


def _in_words(hint: Any) -> str:
    """A type as a person would say it."""
    simple = {int: "an integer", float: "a number", bool: "true or false", str: "a word", type(None): "null"}
    if hint in simple:
        return simple[hint]
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(str, arguments))
    if typing.get_origin(hint) is list:
        return f"a list such as {[1, 2] if arguments == (int,) else ['a', 'b']}"
    if arguments:
        return " or ".join(_in_words(argument) for argument in arguments)
    return str(hint)
