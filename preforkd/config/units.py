"""From the text of one scalar to its value and back: durations, sizes, modes, addresses, paths.

A configuration file has no types, only text that people write as they are used to (``30s``, ``16K``, ``0660``). YAML's
own guesses do harm here: 0660 becomes 432, 22:22 becomes 1342, ``no`` becomes false, 1_000 becomes 1000. So every
scalar stays text until the declaration of its setting reads it, with one of the kinds below. A kind knows four things:

* ``read(text, base)`` is the value, or raises `Wrong` with a sentence (what is wrong; what was probably meant),
* ``write(value)`` is the canonical text, so that ``read(write(value)) == value``,
* ``schema()`` is the JSON Schema of what an editor may let through,
* ``noun`` names the kind in the manual.

Pure: nothing here looks at the file system, the network or the clock. Any process may call it.
"""

from __future__ import annotations

import ipaddress
import os.path
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

#: What JSON Schema calls a document: kept loose, for it is only ever written out.
JsonSchema = dict[str, Any]

#: Longest path of a unix socket: ``sun_path`` has 108 bytes with its NUL (unix(7)).
SUN_PATH_MAX = 107

MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
DAY = 86_400.0


class Wrong(ValueError):
    """A scalar that cannot be read; the text is the sentence for the operator, without place and key."""


class Kind(Protocol):
    """How one setting's text is read, written and described."""

    @property
    def noun(self) -> str:
        """The kind's name in the manual."""
        ...

    def read(self, text: str, base: str) -> Any:
        """The value of ``text``; relative paths count from the folder ``base``. Raises `Wrong`."""
        ...

    def write(self, value: Any) -> str:
        """The canonical text of ``value``."""
        ...

    def schema(self) -> JsonSchema:
        """The JSON Schema of the scalar as YAML parsers hand it to an editor."""
        ...


def shown(text: str, limit: int = 60) -> str:
    """``text`` in quotes, fit for a message: one line, printable, never longer than about ``limit`` characters."""
    cut = text if len(text) <= limit else text[: limit - 1] + "…"
    return "'" + "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut) + "'"


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """The one of ``known`` that ``word`` was probably meant to be, or "".

    Ratcliff and Obershelp's measure, as `difflib` has it. Long words are cut, for the measure is quadratic.
    """
    folded = {name.lower(): name for name in known}
    close = get_close_matches(word[:60].lower(), list(folded), n=1, cutoff=0.7)
    return folded[close[0]] if close else ""


# -- numbers --------------------------------------------------------------------------------------------------------


def _bounded(value: float, low: float, high: float, write: Callable[[Any], str], zero: bool) -> None:
    """Raise `Wrong` unless low <= value <= high; ``zero`` lets 0 through as "no limit" although low is greater."""
    if value == 0 and zero:
        return
    if value < low:
        raise Wrong(f"{write(value)} is too small; at least {write(low)}" + (", or 0" if zero and low > 0 else ""))
    if value > high:
        raise Wrong(f"{write(value)} is too large; at most {write(high)}")


class Integer:
    """A whole number in decimal digits: no sign, no underscore, no exponent, no leading zero."""

    noun = "number"

    def __init__(self, low: int, high: int, *, zero: bool = False) -> None:
        self.low, self.high, self.zero = low, high, zero

    def read(self, text: str, base: str = "") -> int:
        """``256`` -> 256."""
        if not re.fullmatch(r"0|[1-9][0-9]{0,17}", text):
            raise Wrong(f"{shown(text)} is not a whole number" + self._meant(text))
        value = int(text)
        _bounded(value, self.low, self.high, self.write, self.zero)
        return value

    def _meant(self, text: str) -> str:
        bare = text.replace("_", "").replace(",", "").replace("'", "").strip().removeprefix("+")
        if re.fullmatch(r"-[0-9]{1,18}", bare):
            return f"; at least {self.low}" + (", or 0" if self.zero and self.low > 0 else "")
        if re.fullmatch(r"[0-9]{19,}", bare):
            return f"; at most {self.high}"
        if re.fullmatch(r"[0-9]{1,18}(\.0*)?", bare):
            return f"; write {int(bare.partition('.')[0])}"
        if (match := re.fullmatch(r"([0-9]{1,9})\s*[kK]", bare)) is not None:
            return f"; write {int(match[1]) * 1000}"
        return f"; write for example {self.low or self.high}" if not bare else "; write digits only"

    def write(self, value: int) -> str:
        """256 -> ``256``."""
        return str(value)

    def schema(self) -> JsonSchema:
        """An integer with its bounds."""
        return {"type": "integer", "minimum": 0 if self.zero else self.low, "maximum": self.high}


class Duration:
    """A time span with its unit (ms, s, m, h, d), as float seconds; a bare 0 switches the limit off."""

    noun = "duration"
    _form = re.compile(r"([0-9]{1,9})(?:\.([0-9]{1,3}))?(ms|s|m|h|d)")
    _units: Mapping[str, str] = {
        **dict.fromkeys(("ms", "msec", "msecs", "millisecond", "milliseconds"), "ms"),
        **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), "s"),
        **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), "m"),
        **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), "h"),
        **dict.fromkeys(("d", "day", "days"), "d"),
    }

    def __init__(self, low: float = 0.001, high: float = 7 * DAY) -> None:
        self.low, self.high = low, high

    def read(self, text: str, base: str = "") -> float:
        """``90s``, ``1.5m`` -> 90.0; ``0`` -> 0.0."""
        if text == "0":
            return 0.0
        match = self._form.fullmatch(text)
        if match is None or (match[3] == "ms" and match[2] is not None):
            raise Wrong(f"{shown(text)} is not a duration" + self._meant(text))
        whole, fraction, unit = int(match[1]), int((match[2] or "").ljust(3, "0")), MILLISECONDS[match[3]]
        # Whole milliseconds, so that 0.1h is exactly 360 s.
        value = (whole * 1000 + fraction) * unit // 1000 / 1000
        _bounded(value, self.low, self.high, self.write, zero=True)
        return value

    def _meant(self, text: str) -> str:
        number = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)\s*([a-zA-Z]*)\.?", text.strip())
        if number is not None:
            if not number[2]:
                return f"; its unit is missing: write {number[1]}s"
            if (unit := self._units.get(number[2].lower())) and not (unit == "ms" and "." in number[1]):
                return f"; write {number[1]}{unit}"
        parts = re.findall(r"([0-9]{1,6})\s*([a-zA-Z]+)", text)
        units = [self._units.get(name.lower(), "") for _, name in parts]
        if len(parts) > 1 and all(units) and re.fullmatch(r"(\s*[0-9]{1,6}\s*[a-zA-Z]+,?)+", text):
            total = sum(int(count) * MILLISECONDS[unit] for (count, _), unit in zip(parts, units, strict=True))
            return f"; write one number and one unit: {self.write(total / 1000)}"
        if text.lower() in ("off", "no", "none", "never", "false", "unlimited", "infinity"):
            return "; write 0 for no limit"
        return "; write for example 30s, 5m or 500ms"

    def write(self, value: float) -> str:
        """90.0 -> ``90s``; the largest unit that needs no fraction, minutes from two minutes on."""
        if value == 0:
            return "0"
        thousandths = round(value * 1000)
        for unit, least in (("d", 2), ("h", 1), ("m", 2), ("s", 1)):
            if thousandths % MILLISECONDS[unit] == 0 and thousandths >= least * MILLISECONDS[unit]:
                return f"{thousandths // MILLISECONDS[unit]}{unit}"
        return f"{thousandths}ms"

    def schema(self) -> JsonSchema:
        """The text with its unit, or the number 0."""
        form = r"^([0-9]{1,9}ms|[0-9]{1,9}(\.[0-9]{1,3})?[smhd]|0)$"
        return {"anyOf": [{"type": "string", "pattern": form}, {"const": 0}]}


class Size:
    """A number of bytes, with K, M, G or T for powers of 1024; 0 switches the limit off."""

    noun = "size"

    def __init__(self, low: int = 1, high: int = 1 << 50) -> None:
        self.low, self.high = low, high

    def read(self, text: str, base: str = "") -> int:
        """``16K`` -> 16384."""
        match = re.fullmatch(r"(0|[1-9][0-9]{0,15})([KMGTkmgt]?)", text)
        if match is None:
            raise Wrong(f"{shown(text)} is not a size" + self._meant(text))
        value = int(match[1]) * FACTORS[match[2].upper()]
        _bounded(value, self.low, self.high, self.write, zero=True)
        return value

    def _meant(self, text: str) -> str:
        match = re.fullmatch(r"\+?([0-9][0-9_]{0,15})(\.[0-9]{1,6})?\s*([kmgt]?)(?:i?b|bytes?)?", text.strip().lower())
        if match is not None:
            value = int(float(match[1].replace("_", "") + (match[2] or "")) * FACTORS[match[3].upper()])
            return f"; write {self.write(value)}"
        if text.lower() in ("off", "no", "none", "unlimited", "infinity", "-1"):
            return "; write 0 for no limit"
        return "; write for example 8192, 16K or 1G"

    def write(self, value: int) -> str:
        """16384 -> ``16K``."""
        for unit in ("T", "G", "M", "K"):
            if value and value % FACTORS[unit] == 0:
                return f"{value // FACTORS[unit]}{unit}"
        return str(value)

    def schema(self) -> JsonSchema:
        """A number of bytes, or the text with its unit."""
        return {
            "anyOf": [
                {"type": "string", "pattern": "^(0|[1-9][0-9]{0,15})[KMGTkmgt]?$"},
                {"type": "integer", "minimum": 0},
            ]
        }


class Percent:
    """A share, written with its sign: ``10%``; the value is a float between 0.0 and 1.0."""

    noun = "percentage"

    def read(self, text: str, base: str = "") -> float:
        """``10%`` -> 0.1; a bare ``0`` is none."""
        match = re.fullmatch(r"([0-9]{1,3})(?:\.([0-9]{1,2}))?%", text)
        if text == "0":
            return 0.0
        if match is None:
            raise Wrong(f"{shown(text)} is not a percentage" + self._meant(text))
        value = (int(match[1]) * 100 + int((match[2] or "").ljust(2, "0"))) / 10_000
        _bounded(value, 0.0, 1.0, self.write, zero=True)
        return value

    def _meant(self, text: str) -> str:
        if (match := re.fullmatch(r"([0-9]{1,3})\s*(?:%|percent|pct)?", text.strip())) is not None:
            return f"; write {int(match[1])}%"
        if re.fullmatch(r"(0?\.[0-9]{1,4}|1\.0*)", text):
            return f"; write {self.write(float(text))}"
        return "; write for example 10%"

    def write(self, value: float) -> str:
        """0.1 -> ``10%``."""
        return f"{round(value * 100, 2):g}%"

    def schema(self) -> JsonSchema:
        """The text with its sign, or the number 0."""
        return {"anyOf": [{"type": "string", "pattern": r"^([0-9]{1,3}(\.[0-9]{1,2})?%|0)$"}, {"const": 0}]}


class Mode:
    """Permission bits as chmod(1) and umask(1) take them: octal digits, with or without the leading 0."""

    noun = "octal mode"

    def read(self, text: str, base: str = "") -> int:
        """``0660``, ``660``, ``0o660`` -> 0o660."""
        if re.fullmatch(r"(0o)?[0-7]{1,4}", text) is None:
            raise Wrong(f"{shown(text)} is not an octal mode" + self._meant(text))
        value = int(text.removeprefix("0o"), 8)
        if value > 0o777:
            raise Wrong(f"{shown(text)} sets more than permissions; at most 0777")
        return value

    def _meant(self, text: str) -> str:
        if re.fullmatch(r"([r-][w-][x-]){3}", text):
            return "; write " + self.write(sum(1 << (8 - at) for at, char in enumerate(text) if char != "-"))
        return "; write three digits from 0 to 7, such as 0660"

    def write(self, value: int) -> str:
        """0o660 -> ``0660``."""
        return f"0{value:03o}"

    def schema(self) -> JsonSchema:
        """Text of octal digits. An editor may have made a number of it, and then its digits say nothing."""
        return {"anyOf": [{"type": "string", "pattern": "^(0o)?[0-7]{1,4}$"}, {"type": "integer", "minimum": 0}]}


class Boolean:
    """YAML 1.2's booleans: true and false. (YAML 1.1's yes, no, on, off are words.)"""

    noun = "true or false"
    _words: Mapping[str, bool] = {
        **dict.fromkeys(("true", "True", "TRUE"), True),
        **dict.fromkeys(("false", "False", "FALSE"), False),
    }

    def read(self, text: str, base: str = "") -> bool:
        """``true`` -> True."""
        if text not in self._words:
            meant = {"yes": "true", "on": "true", "y": "true", "1": "true", "enabled": "true"} | {
                "no": "false", "off": "false", "n": "false", "0": "false", "disabled": "false"
            }  # fmt: skip
            better = meant.get(text.lower()) or nearest(text, ("true", "false")) or "true or false"
            raise Wrong(f"{shown(text)} is neither true nor false; write {better}")
        return self._words[text]

    def write(self, value: bool) -> str:
        """True -> ``true``."""
        return "true" if value else "false"

    def schema(self) -> JsonSchema:
        """A boolean."""
        return {"type": "boolean"}


# -- words ----------------------------------------------------------------------------------------------------------


class Word:
    """One of a few words; knows also the words of later versions, and other programs' words for ours."""

    noun = "word"

    def __init__(
        self,
        *words: str,
        later: tuple[str, ...] = (),
        foreign: Mapping[str, str] | None = None,
        own: str = "",
    ) -> None:
        self.words, self.later, self.foreign = words, later, foreign or {}
        #: What a text with a colon would be, if a later version takes module:attribute here.
        self.own = own

    def read(self, text: str, base: str = "") -> str:
        """The word itself."""
        if text in self.words:
            return text
        raise Wrong(self.why_not(text))

    def why_not(self, text: str) -> str:
        """The sentence about a word that is none of ours."""
        if text in self.later:
            return f"{shown(text)} does not exist in this version yet; it has {self.choice()}"
        if self.own and re.fullmatch(r"[\w.]+:[\w.]+", text):
            return f"{self.own} ({shown(text)}) do not exist in this version yet; it has {self.choice()}"
        meant = self.foreign.get(text.lower(), "")
        if meant in self.later:
            return (
                f"{shown(text)} would be {meant} here, which does not exist in this version yet; it has {self.choice()}"
            )
        if meant and meant not in self.words:
            return f"{shown(text)} is not one of the words here; {meant}"
        meant = meant or nearest(text, self.words + self.later)
        if meant in self.later:
            return f"{shown(text)} is unknown; {meant}, if that was meant, does not exist in this version yet"
        did = f"did you mean {meant}?" if meant else f"write {self.choice()}"
        return f"{shown(text)} is unknown; {did}"

    def choice(self) -> str:
        """``a, b or c``."""
        return listed(self.words)

    def write(self, value: str) -> str:
        """The word itself."""
        return value

    def schema(self) -> JsonSchema:
        """The words of this version."""
        return {"enum": list(self.words)}


def listed(words: tuple[str, ...] | list[str], link: str = "or") -> str:
    """``a, b or c``."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + f" {link} {words[-1]}"


class TlsVersion(Word):
    """A version of TLS: two digits with a dot, which an editor may take for a number."""

    def __init__(self, *words: str) -> None:
        broken = "that version is broken (RFC 8996); remove it"
        foreign = {name: broken for old in ("1.0", "1.1", "1") for name in (old, f"tls{old}", f"tlsv{old}")}
        foreign |= dict.fromkeys(("ssl", "sslv2", "sslv3", "ssl2", "ssl3"), broken)
        foreign |= {prefix + word: word for word in words for prefix in ("tls", "tlsv", "tls ")}
        foreign |= {prefix + word.replace(".", "_"): word for word in words for prefix in ("tls", "tlsv", "tlsv_")}
        super().__init__(*words, foreign=foreign)

    def schema(self) -> JsonSchema:
        """The words, and what YAML makes of them."""
        return {"enum": [*self.words, *(float(word) for word in self.words)]}


class Text:
    """One line of text that has a form; ``form`` is a regular expression, ``what`` names it, ``hint`` mends it."""

    def __init__(
        self, noun: str, form: str = r"[^\n]+", *, example: str, hint: Callable[[str], str] = lambda text: ""
    ) -> None:
        self.noun, self.form, self.example, self.hint = noun, form, example, hint

    def read(self, text: str, base: str = "") -> str:
        """The text itself."""
        if re.fullmatch(self.form, text) is None:
            what = (
                f"{shown(text)} is not {_article(self.noun)}" if text else f"an empty text is not {_article(self.noun)}"
            )
            raise Wrong(f"{what}; {self.hint(text) or f'write for example {self.example}'}")
        return text

    def write(self, value: str) -> str:
        """The text itself."""
        return value

    def schema(self) -> JsonSchema:
        """Text of this form."""
        return {"type": "string", "pattern": f"^({self.form})$"}


def _article(noun: str) -> str:
    return ("an " if noun[0] in "aeio" else "a ") + noun


class Account(Text):
    """The name or the number of a user or group. Whether it exists is another question: `lookup_accounts`."""

    def __init__(self, noun: str, example: str) -> None:
        super().__init__(noun, r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}\$?", example=example)

    def schema(self) -> JsonSchema:
        """A name, or a number."""
        return {"anyOf": [super().schema(), {"type": "integer", "minimum": 0}]}


class Anything:
    """Any text, quoted or not: the value of an environment variable."""

    noun = "text"

    def read(self, text: str, base: str = "") -> str:
        """The text itself."""
        return text

    def write(self, value: str) -> str:
        """The text itself."""
        return value

    def schema(self) -> JsonSchema:
        """What looks like a number or a boolean to an editor is text to us."""
        return {"type": ["string", "number", "boolean"]}


class Application:
    """Where the application is: ``module:attribute``; the attribute may be left out and is then ``application``.

    ``module:name()`` is a factory, which is called without arguments and returns the application.
    """

    noun = "module:attribute"

    def read(self, text: str, base: str = "") -> str:
        """``mysite.wsgi`` -> ``mysite.wsgi:application``."""
        module, colon, attribute = text.partition(":")
        attribute = attribute if colon else "application"
        if not (_dotted(module) and _dotted(attribute.removesuffix("()"))):
            raise Wrong(f"{shown(text)} is not module:attribute; {self._meant(text, module, attribute)}")
        if not colon and module.endswith(".py"):
            raise Wrong(f"{shown(text)} is a file; write the module's name: {module.removesuffix('.py')}:application")
        return f"{module}:{attribute}"

    def _meant(self, text: str, module: str, attribute: str) -> str:
        if attribute.endswith(")") and _dotted(module):
            return "a factory is called without arguments: write it as name()"
        if "/" in module:
            folder, _, name = module.rpartition("/")
            name = name.removesuffix(".py")
            if _dotted(name):
                return f"name the module, not its file: app: {name}:{attribute}, directory: {folder or '/'}"
        if "-" in module:
            return "a module's name has no hyphen"
        return "write for example mysite.wsgi:application"

    def write(self, value: str) -> str:
        """The text itself."""
        return value

    def schema(self) -> JsonSchema:
        """A dotted name, perhaps with an attribute."""
        return {"type": "string", "pattern": r"^[^\s:/()-]+(:[^\s:/()-]+(\(\))?)?$"}


def _dotted(name: str) -> bool:
    """Whether ``name`` is identifiers joined by dots, of a sane length."""
    return len(name) <= 255 and all(part.isidentifier() for part in name.split("."))


# -- paths ----------------------------------------------------------------------------------------------------------


def absolute(text: str, base: str) -> str:
    """The absolute path that ``text`` names, seen from the folder ``base``. Raises `Wrong`."""
    if not text.strip():
        raise Wrong("an empty text is not a path; write a file's path")
    if text != text.strip():
        raise Wrong(f"{shown(text)} begins or ends with a space; remove it")
    if text.startswith("~"):
        raise Wrong(
            f"{shown(text)}: ~ is not expanded, for it would be another folder for root; write the path in full"
        )
    if text.startswith("$"):
        raise Wrong(f"{shown(text)}: variables are not expanded here; write the path in full")
    if "\n" in text:
        raise Wrong(f"{shown(text)} has more than one line; write one path")
    try:
        length = len(os.fsencode(text))
    except UnicodeEncodeError:
        # A locale of one byte a character, such as ISO-8859-1.
        raise Wrong(
            f"{shown(text)} cannot be a file's name in this locale; use a UTF-8 locale, or plain letters"
        ) from None
    if length > 4000:
        raise Wrong(f"{shown(text)} is longer than a path can be (PATH_MAX, 4096 bytes)")
    return os.path.normpath(os.path.join(base, text))


class Path:
    """A file (or ``folder``), absolute or relative to the main file's folder; the value is absolute.

    ``socket`` holds it to the length of a unix socket's address.
    """

    noun = "path"

    def __init__(self, *, folder: bool = False, socket: bool = False) -> None:
        self.folder, self.socket = folder, socket

    def read(self, text: str, base: str = "/") -> str:
        """``log/error.log`` -> ``/etc/preforkd/log/error.log``."""
        path = absolute(text, base)
        if text.endswith("/") and not self.folder:
            raise Wrong(f"{shown(text)} names a folder; write a file's path")
        if self.socket and len(os.fsencode(path)) > SUN_PATH_MAX:
            raise Wrong(f"{shown(path)} is too long for a unix socket; at most {SUN_PATH_MAX} bytes")
        return path

    def write(self, value: str) -> str:
        """The path itself."""
        return value

    def schema(self) -> JsonSchema:
        """Text that does not begin with ~."""
        return {"type": "string", "pattern": "^[^~$]"}


class Destination:
    """Where log lines go: one of a few words, or a file."""

    noun = "word or path"

    def __init__(self, *words: str, foreign: Mapping[str, str]) -> None:
        self.words, self.foreign = words, foreign

    def read(self, text: str, base: str = "/") -> str:
        """The word, or the absolute path of a file."""
        if text in self.words:
            return text
        if text.startswith("|"):
            raise Wrong(f"{shown(text)} is a pipe to a program, which does not exist here; write {self._choice()}")
        if meant := self.foreign.get(text.lower()):
            raise Wrong(f"{shown(text)} is unknown; {meant}")
        # A single bare word is more likely a word misspelt than a file beside the configuration.
        if "/" not in text and "." not in text:
            meant = nearest(text, self.words)
            did = f"did you mean {meant}? A file would be ./{text}" if meant else f"write {self._choice()}"
            raise Wrong(
                f"{shown(text)} is unknown; {did}" if text.strip() else f"an empty text; write {self._choice()}"
            )
        if re.match(r"(syslog|unix|udp|tcp|https?|fluentd):", text):
            raise Wrong(f"{shown(text)} is neither a word nor a file; write {self._choice()}")
        return Path().read(text, base)

    def _choice(self) -> str:
        return ", ".join(self.words) + " or a file's path"

    def write(self, value: str) -> str:
        """The word or path itself."""
        return value

    def schema(self) -> JsonSchema:
        """One of the words, or something with a / or a dot in it."""
        return {"anyOf": [{"enum": list(self.words)}, {"type": "string", "pattern": "^[^~|].*[/.]|^/"}]}


class Format:
    """The form of an access log line: a name, or a LogFormat string of %-directives."""

    noun = "word or LogFormat"
    words = ("common", "combined", "json")

    def read(self, text: str, base: str = "") -> str:
        """The text itself; the logs package compiles it and knows the directives."""
        if text in self.words:
            return text
        if "\n" in text:
            raise Wrong(f"{shown(text)} has more than one line; a log record is one line")
        if "%" not in text:
            meant = nearest(text, self.words)
            did = (
                f"did you mean {meant}?"
                if meant
                else "write common, combined, json or a format such as '%h %t \"%r\" %>s'"
            )
            raise Wrong(f"{shown(text)} has no %-directive; {did}")
        if len(text) > 4096:
            raise Wrong(f"{shown(text)} is too long; at most 4096 characters")
        return text

    def write(self, value: str) -> str:
        """The text itself."""
        return value

    def schema(self) -> JsonSchema:
        """One of the names, or text with a % in it."""
        return {"anyOf": [{"enum": list(self.words)}, {"type": "string", "pattern": "%"}]}


class UrlPath:
    """The path of a request: begins with / and has no space."""

    noun = "request path"

    def read(self, text: str, base: str = "") -> str:
        """The text itself."""
        if re.fullmatch(r"/[!-~]{0,2000}", text) and "#" not in text:
            return text
        if (url := re.fullmatch(r"https?://[^/]*(/[!-~]*)?", text)) is not None:
            raise Wrong(f"{shown(text)} is a whole address; write its path: {url[1] or '/'}")
        if re.fullmatch(r"[!-~]+", text) and "#" not in text and not text.startswith("/"):
            raise Wrong(f"{shown(text)} does not begin with /; write /{text[:60]}")
        raise Wrong(f"{shown(text)} is not a request path; write for example /health, with other characters as %XX")

    def write(self, value: str) -> str:
        """The text itself."""
        return value

    def schema(self) -> JsonSchema:
        """Text that begins with /."""
        return {"type": "string", "pattern": "^/[^\\s#]*$"}


class Glob:
    """A pattern of file names, as the shell has it, relative to the main file's folder."""

    noun = "pattern"

    def read(self, text: str, base: str = "") -> str:
        """The text itself; the reader expands it."""
        absolute(text, "/")
        if "**" in text:
            raise Wrong(f"{shown(text)}: ** is not understood, folders are not searched; name each folder")
        return text

    def write(self, value: str) -> str:
        """The text itself."""
        return value

    def schema(self) -> JsonSchema:
        """Text that does not begin with ~."""
        return {"type": "string", "pattern": "^[^~$]"}


# -- addresses ------------------------------------------------------------------------------------------------------


def _version(text: str) -> int | None:
    """4 or 6 if ``text`` is a numeric address, else None."""
    try:
        return ipaddress.ip_address(text).version
    except ValueError:
        return None


class Address:
    """Where to listen: ``host:port``, ``[v6]:port``, ``unix:/path`` or ``systemd:NAME``.

    The value is the canonical text. Hosts are numeric: a name would have to be looked up in the master, which must
    never wait for a name server, and one name can be several addresses.
    """

    noun = "address"

    def read(self, text: str, base: str = "/") -> str:
        """``[0::1]:80`` -> ``[::1]:80``."""
        if text.startswith("unix:"):
            return self._unix(text, base)
        if text.startswith("systemd:"):
            return self._systemd(text)
        scheme = re.match(r"([a-z]+)://", text)
        if scheme is not None:
            rest = text[scheme.end() :].rstrip("/")
            ports = {"http": ":80", "https": ":443"}.get(scheme[1], ":PORT")
            raise Wrong(f"{shown(text)} is a URL; write the address alone: {rest if ':' in rest else rest + ports}")
        if text.startswith(("/", "./", "../")):
            raise Wrong(f"{shown(text)} is a path; for a unix socket write unix:{os.path.join(base, text)}")
        return self._tcp(text)

    def _unix(self, text: str, base: str) -> str:
        path = text.removeprefix("unix:")
        if path.startswith("//"):
            raise Wrong(f"{shown(text)} has slashes too many; write unix:/{path.lstrip('/')}")
        if path.startswith("@"):
            raise Wrong(f"{shown(text)} is an abstract socket, which anybody may connect to; write unix:/path")
        if not path.startswith("/"):
            if path and not path.startswith(("~", "$")):
                raise Wrong(
                    f"{shown(text)} is not an absolute path; write unix:{os.path.normpath(os.path.join(base, path))}"
                )
            raise Wrong(f"{shown(text)} is not an absolute path; write for example unix:/run/preforkd/web.sock")
        if path.endswith("/"):
            raise Wrong(f"{shown(text)} names a folder; write the socket's own path")
        return "unix:" + Path(socket=True).read(path, "/")

    def _systemd(self, text: str) -> str:
        name = text.removeprefix("systemd:")
        if re.fullmatch(r"[A-Za-z0-9_.@-]{1,255}", name) is None:
            raise Wrong(
                f"{shown(text)} names no socket; write systemd: and the FileDescriptorName= of the .socket unit"
            )
        return text

    def _tcp(self, text: str) -> str:
        if re.fullmatch(r"\*?:?[0-9]{1,5}", text):
            port = text.lstrip("*:")
            raise Wrong(
                f"{shown(text)} does not say on which address; write 127.0.0.1:{port} for this machine alone, "
                f'or ["0.0.0.0:{port}", "[::]:{port}"] for everybody'
            )
        match = re.fullmatch(r"\[([^\[\]]*)\]:([0-9]+)", text) or re.fullmatch(r"([^\[\]:]+):([0-9]+)", text)
        if match is None:
            raise Wrong(f"{shown(text)} is not an address; {self._meant(text)}")
        host, port = match[1], match[2]
        if len(port) > 5 or int(port) > 65535:
            raise Wrong(f"{shown(text)}: there is no port {port[:20]}; at most 65535")
        if len(port) > 1 and port[0] == "0":
            raise Wrong(f"{shown(text)}: port {port} begins with 0; write {int(port)}")
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            raise Wrong(self._not_numeric(text, host, port)) from None
        if isinstance(address, ipaddress.IPv4Address):
            if text.startswith("["):
                raise Wrong(f"{shown(text)}: an IPv4 address has no brackets; write {address}:{port}")
            return f"{address}:{port}"
        if address.ipv4_mapped is not None:
            raise Wrong(f"{shown(text)} is an IPv4 address in IPv6 clothes; write {address.ipv4_mapped}:{port}")
        return f"[{address}]:{port}"

    def _meant(self, text: str) -> str:
        bare = text.strip("[]")
        host, _, port = bare.rpartition(":")
        # "::1:80" is an IPv6 address as it stands; a port is likelier where the last part looks like one.
        if host.endswith(":") and not host.endswith("::"):
            host += ":"
        if _version(host) == 6 and port.isdecimal() and (port in ("80", "443") or 1000 <= int(port) <= 65535):
            return f'an IPv6 address needs brackets: "[{host}]:{port}"'
        if (version := _version(bare)) is not None:
            return f"its port is missing: write {f'[{bare}]' if version == 6 else bare}:8080"
        if text.count(":") > 1:
            return 'an IPv6 address needs brackets: "[::1]:8080"'
        if re.fullmatch(r"[A-Za-z0-9.-]+:.*", text):
            return "its port is not a number; write for example 127.0.0.1:8080"
        return 'write for example 127.0.0.1:8080, "[::1]:8080", unix:/run/preforkd/web.sock or systemd:web'

    def _not_numeric(self, text: str, host: str, port: str) -> str:
        if host == "localhost":
            return f"{shown(text)}: names are not looked up here; write 127.0.0.1:{port}"
        if host in ("*", "all", "any"):
            return f'{shown(text)}: write ["0.0.0.0:{port}", "[::]:{port}"] for all addresses'
        if re.fullmatch(r"[0-9.]+", host):
            return f"{shown(text)}: {host[:40]} is not an IPv4 address: four numbers up to 255, no leading zeros"
        if text.startswith("["):
            return f'{shown(text)}: {shown(host, 40)} is not an IPv6 address; write for example "[::1]:{port}"'
        if nearest(host, ("unix", "systemd")):
            return f"{shown(text)} is not an address; did you mean {nearest(host, ('unix', 'systemd'))}:?"
        return f"{shown(text)}: names are not looked up here; write the numeric address of {shown(host, 40)}"

    def write(self, value: str) -> str:
        """The canonical text itself."""
        return value

    def schema(self) -> JsonSchema:
        """The three forms; the numbers are checked by the reader."""
        form = r"^([0-9]+(\.[0-9]+){3}:[0-9]{1,5}|\[[0-9A-Fa-f:.%a-z]+\]:[0-9]{1,5}|unix:/.+|systemd:[A-Za-z0-9_.@-]+)$"
        return {"type": "string", "pattern": form}


class Network:
    """Whose word is taken: an address, a network in CIDR notation, or ``unix`` for peers on a unix socket.

    The value is the canonical text, as `preforkd.networks` compiles it. Never a name: it would have to be looked up,
    and whoever answers for the name would be trusted. Strict: ``10.0.0.1/8`` may mean one address or sixteen million.
    """

    noun = "network"

    def read(self, text: str, base: str = "") -> str:
        """``10.0.0.0/8``, ``2001:DB8::/32`` -> ``2001:db8::/32``, ``127.0.0.1/32`` -> ``127.0.0.1``."""
        if text == "unix":
            return text
        address, slash, length = text.partition("/")
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            raise Wrong(f"{shown(text)} is not a network; {self._meant(text, address)}") from None
        if "%" in address:
            raise Wrong(f"{shown(text)} has a zone, and networks have none; write {shown(address.partition('%')[0])}")
        bits = found.max_prefixlen
        if slash and re.fullmatch(r"0|[1-9][0-9]{0,2}", length) is None:
            raise Wrong(f"{shown(text)} does not end in a number of bits; {self._masked(address, length, bits)}")
        if slash and int(length) > bits:
            raise Wrong(f"{shown(text)}: an IPv{found.version} address has {bits} bits; write at most {address}/{bits}")
        size = int(length) if slash else bits
        network = ipaddress.ip_network((found, size), strict=False)
        if network.network_address != found:
            raise Wrong(
                f"{shown(text)} has bits set behind the first {size}; did you mean {network}, or {found} alone?"
            )
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None and size >= 96:
            mapped = ipaddress.ip_network((found.ipv4_mapped, size - 96))
            raise Wrong(f"{shown(text)} is IPv4 in IPv6 clothes; write {self._short(mapped)}")
        return self._short(network)

    @staticmethod
    def _short(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
        whole = network.prefixlen == network.max_prefixlen
        return str(network.network_address) if whole else str(network)

    @staticmethod
    def _masked(address: str, length: str, bits: int) -> str:
        try:
            network = ipaddress.ip_network(f"{address}/{length}", strict=False)
        except ValueError:
            return f"write for example {address}/{bits}"
        return f"did you mean {network}?"

    @staticmethod
    def _meant(text: str, address: str) -> str:
        word = text.strip().lower()
        if word in ("*", "all", "any", "0/0", "everybody"):
            return "everybody is 0.0.0.0/0 and ::/0: then any client may say that it is another"
        if word in ("localhost", "loopback", "local"):
            return "write 127.0.0.1, and ::1 beside it if need be"
        if word in ("private", "private_ranges", "uniquelocal", "rfc1918"):
            return (
                "write the networks: 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, fc00::/7; or better, only the proxies"
            )
        if word in ("none", "off", "no", "false", "never", ""):
            return "for none, write an empty list: []"
        if nearest(word, ("unix",)) or word.startswith("unix:"):
            return "for peers on a unix socket write unix"
        if (port := re.fullmatch(r"\[?([0-9A-Fa-f:.]+?)\]?:([0-9]{1,5})", text)) and _version(port[1]) is not None:
            return f"a port does not matter here; write {port[1]}"
        if (bare := text.strip("[] ")) != text and _version(bare) is not None:
            return f"write it without brackets: {bare}"
        if re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){0,2}\.?", address):
            parts = address.strip(".").split(".")
            if all(int(part) < 256 for part in parts):
                return f"did you mean {'.'.join(parts + ['0'] * (4 - len(parts)))}/{8 * len(parts)}?"
        if re.fullmatch(r"[0-9.]+", address):
            return "an IPv4 address is four numbers up to 255, no leading zeros"
        if "-" in text and _version(text.partition("-")[0].strip()) is not None:
            return "a range is written as networks, such as 10.0.0.0/24"
        if re.search(r"[0-9.:][ ,;]+[0-9a-f:]", text):
            return "write a list: [127.0.0.1, 10.0.0.0/8]"
        if re.fullmatch(r"[A-Za-z0-9.-]*[G-Zg-z.-][A-Za-z0-9.-]*", text):
            return "names are not looked up here; write the numeric address, or unix"
        return "write for example 127.0.0.1, 10.0.0.0/8, 2001:db8::/32 or unix"

    def write(self, value: str) -> str:
        """The canonical text itself."""
        return value

    def schema(self) -> JsonSchema:
        """The three forms; the numbers are checked by the reader."""
        form = r"^([0-9]+(\.[0-9]+){3}(/[0-9]{1,2})?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(/[0-9]{1,3})?|unix)$"
        return {"type": "string", "pattern": form}
