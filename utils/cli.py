"""What the scripts share: options, exit codes, run folders and the files that options name.

A script defines `make_parser()`, `main(args)` and `run(**options)` and ends with

    if __name__ == "__main__":
        sys.exit(cli.run_script(main, make_parser()))

Exit codes: 0 done; 1 the program failed; 2 the user's input was wrong (one sentence, no traceback);
130 after Ctrl-C; 143 after SIGTERM; 141 when nobody reads the output any more, as after `| head`.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import logging
import math
import numbers
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import torch
from ultralytics.utils import LOGGER

from models.downloads import allow_downloads
from models.errors import UserError
from models.plugins import load_plugins
from models.secrets import without_secrets
from models.stops import STOPS, end
from utils.data.pictures import LIMIT, MOST_MEGAPIXELS, allow_megapixels
from utils.distributed.group import LostProcessError
from utils.drawing.fonts import font_file
from utils.paths import MADE, remove_empty_runs
from utils.sizes import MAX_IMGSZ
from utils.text import printable, shorten
from utils.writing import are_signals_held

CLOSED_PIPE = 128 + 13  # what a shell says of a program that SIGPIPE ended
PATIENCE, ENDING, TICK = 5.0, 60.0, 0.05  # seconds: for the main thread to see a signal, then to end; between looks
WATCHED: list[int] = []  # files that the system writes the numbers of signals to
BAD_NAME = {errno.ENAMETOOLONG, errno.ELOOP}  # of a file
BAD_DISK = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
TAKEN = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY}  # names of results, by a folder or a file
BAD_OUTPUT = BAD_DISK | TAKEN


class Terminated(KeyboardInterrupt):
    """SIGTERM came; an exception, so that `finally` blocks run and `except KeyboardInterrupt` sees it too."""


# Running a script -----------------------------------------------------------------------------------------------------
def run_script(main: Callable[[argparse.Namespace], object], parser: Parser, argv: Sequence[str] | None = None) -> int:
    """Parse the command line, call `main(args)` and return the exit code of the process.

    Args:
        main: does the work; may return an exit code (anything but an int counts as 0).
        parser: the script's options.
        argv: the words of the command line without the script's name; those of the process by default.

    Raises:
        Exception: whatever is neither the user's fault nor a full or read-only disk is a bug and keeps its traceback.
    """
    _print_any_character()
    for handler in LOGGER.handlers:
        handler.handleError = partial(_handle_error, handler)  # type: ignore[method-assign]
    MADE.clear()
    try:
        try:
            return _run(main, parser, argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _lost_readers():
            raise
        return CLOSED_PIPE


def _run(main: Callable[[argparse.Namespace], object], parser: Parser, argv: Sequence[str] | None) -> int:
    """Do what `run_script` does, but for a reader that is gone: BrokenPipeError."""
    try:
        with stop_signals():
            code = main(parser.parse_args(argv))
            return code if isinstance(code, int) else 0
    except (UserError, LostProcessError) as error:
        remove_empty_runs()
        return _fail(str(error), 2 if isinstance(error, UserError) else 1)
    except Terminated:
        return _fail(STOPS[signal.SIGTERM], 128 + signal.SIGTERM)
    except KeyboardInterrupt:
        return _fail(STOPS[signal.SIGINT], 128 + signal.SIGINT)
    except OSError as error:
        if error.errno in BAD_NAME:
            return _fail(f"{shorten(error.filename)}: {error.strerror}", 2)
        if error.errno not in BAD_OUTPUT:
            raise
        place = error.filename2 or error.filename or "the output"  # the second name is what a file would replace
        return _fail(f"cannot write {place}: {error.strerror}", 2)


@contextmanager
def stop_signals() -> Iterator[None]:
    """Raise Terminated when SIGTERM comes and KeyboardInterrupt when Ctrl-C does, and see to it that the process ends.

    Python handles signals when the main thread is back from what a library does, such as waiting for a machine that
    does not answer. A thread that the system itself tells of signals ends the process where that takes too long.
    """
    came = {"handled": False, "over": False}  # plain values: a lock could be held by what the signal interrupts

    def stop(number: int, *_: object) -> NoReturn:
        came["handled"] = True
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    former = {number: signal.getsignal(number) for number in STOPS}
    usual = (signal.default_int_handler, end)
    ours = [n for n in STOPS if n != signal.SIGINT or former[n] in usual]  # shells may ignore it
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    threading.Thread(target=_watch, args=(reader, came), name="stop", daemon=True).start()
    for number in ours:
        signal.signal(number, stop)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    WATCHED.append(writer)
    try:
        yield
    finally:
        came["over"] = came["handled"] = True
        signal.set_wakeup_fd(wakeup)
        WATCHED.pop()
        for number in ours:
            signal.signal(number, former[number])
        os.close(writer)


def _watch(reader: int, came: dict[str, bool]) -> None:
    """Wait for a signal that ends the process, or until the other end is closed."""
    while data := os.read(reader, 1):
        if data[0] in STOPS:
            _end_if_stuck(data[0], came)
    os.close(reader)


def _end_if_stuck(number: int, came: dict[str, bool]) -> None:
    """End the process when a signal is not handled in time, or what it interrupts does not come to an end.

    What is being saved is waited for, however long it takes.
    """
    for state, seconds in (("handled", PATIENCE), ("over", ENDING)):
        start = time.monotonic()
        while not came[state]:
            if are_signals_held():
                start = time.monotonic()
            if time.monotonic() - start > seconds:
                end(number)
            time.sleep(TICK)


def _forget_wakeup() -> None:
    """Keep a forked process from telling its parent of its own signals."""
    if WATCHED:
        signal.set_wakeup_fd(-1)


def _handle_error(handler: logging.Handler, record: logging.LogRecord) -> None:
    """Let a line that nobody reads end the program; logging would print a traceback for each and go on."""
    if isinstance(sys.exc_info()[1], BrokenPipeError):
        raise  # noqa: PLE0704 (called while it is handled)
    logging.Handler.handleError(handler, record)


def _lost_readers() -> bool:
    """Return whether the reader of stdout or stderr is gone, and let what is still printed vanish."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # one without a file, or a closed one
            poll.register(stream.fileno(), 0)
    lost = [number for number, event in poll.poll(0) if event & select.POLLERR]
    for number in lost:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)
    return bool(lost)


def _fail(message: str, code: int) -> int:
    print(f"ERROR: {printable(without_secrets(message))}", file=sys.stderr, flush=True)
    return code


def _print_any_character() -> None:
    """Let a name that the terminal cannot show be printed with escapes, not end the program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def log_options(script: str, args: argparse.Namespace) -> None:
    """Log every option in one line, as YOLOv5 does: `detect: weights=best.pt, …`."""
    options = ", ".join(f"{name}={value}" for name, value in vars(args).items())
    LOGGER.info(printable(f"{script}: {options}"))


def add_consents(parser: Parser) -> None:
    """Add the options by which a user allows what a file alone may not have done; see `take_consents`."""
    parser.add_argument(
        "--plugins", nargs="+", default=[], metavar="FILE", help="Python files that register backbones of your own"
    )
    parser.add_argument("--download", action="store_true", help="let a YAML have pretrained weights downloaded by timm")
    parser.add_argument(
        "--megapixels", type=megapixels, default=LIMIT["megapixels"], help="read no larger pictures than these"
    )


def add_font(parser: Parser) -> None:
    """Add the option that names a font; `utils.drawing.fonts.use_font` takes it."""
    parser.add_argument(
        "--font", type=font_file, metavar="FILE", help="to draw names of classes with; default: one that has them"
    )


def take_consents(args: argparse.Namespace) -> None:
    """Run the plugins that the options name, and allow downloads and large pictures if they say so.

    Raises:
        UserError: a plugin is wrong.
    """
    load_plugins(args.plugins)
    allow_downloads(args.download)
    allow_megapixels(args.megapixels)


def refuse_changes(options: Collection[str], what: str) -> None:
    """Raise UserError if there are options that would make something that goes on another one.

    Args:
        options: names of those that are given and cannot be changed.
        what: that goes on, such as "a search".
    """
    if options:
        flag = f"--{min(options).replace('_', '-')}"
        raise UserError(f"{flag} cannot be changed in {what} that goes on: leave it out, or start another one")


# Options --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Foreign:
    """A flag of YOLOv5's script of the same name that has no meaning here.

    Attributes:
        reason: why, or what is given instead; completes a sentence.
        harmless: leaving it away changes no result, so it is accepted.
        values: how many words follow it: 0, 1, or "?" for one or none.
    """

    reason: str
    harmless: bool
    values: int | str = 0


class Options(argparse.Namespace):
    """The options of a command line, and which of them it names.

    Attributes:
        given: the names of those that do not merely have their default; no option itself.
        words: the command line itself.
    """

    __slots__ = ("given", "words")
    given: frozenset[str]
    words: tuple[str, ...]


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are a UserError, and which takes its options as keywords too.

    Unique prefixes are accepted (`--conf 0.4` for `--conf-thres`), as users of YOLOv5 expect.
    """

    def __init__(self, **settings: Any) -> None:
        self.flags: dict[str, argparse.Action] = {}  # every "--flag", aliases included
        self.foreign: dict[str, Foreign] = {}  # in full only, so that they take no prefix away
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        """Add an option as argparse does, and remember its flags."""
        action = super().add_argument(*names, **settings)
        self.flags.update(dict.fromkeys(action.option_strings, action))
        return action

    def ignore(self, *flags: str, reason: str, values: int | str = 0) -> None:
        """Accept flags of YOLOv5 that would change no result here; a line of the log says why."""
        self.foreign.update(dict.fromkeys(flags, Foreign(reason, True, values)))

    def refuse(self, *flags: str, reason: str, values: int | str = 0) -> None:
        """Know flags of YOLOv5 that ask for what there is not; UserError with the reason where one is given."""
        self.foreign.update(dict.fromkeys(flags, Foreign(reason, False, values)))

    def parse_args(self, args: Sequence[str] | None = None) -> Options:  # type: ignore[override]
        """Parse the words of a command line; UserError for the first one that is not known."""
        words = self._without_foreign(sys.argv[1:] if args is None else args)
        options, unknown = self.parse_known_args(words, Options())
        for word in unknown:
            if word.startswith("-"):
                flag = word.split("=")[0]
                self.error(f"there is no option {flag}{nearest_flag(flag, self.flags)}")
        if unknown:
            self.error(f"'{unknown[0]}' belongs to no option; a value follows its flag")
        unset = object()
        named, _ = self.parse_known_args(words, argparse.Namespace(**dict.fromkeys(vars(options), unset)))
        options.words = tuple(sys.argv[1:] if args is None else args)
        options.given = frozenset(name for name, value in vars(named).items() if value is not unset)
        return options

    def _without_foreign(self, words: Sequence[str]) -> list[str]:
        """Return the words without flags that have no meaning here and their values; UserError where one is refused."""
        kept, rest = [], list(words)
        while rest:
            word = rest.pop(0)
            flag, equals, _ = word.partition("=")
            foreign = self.foreign.get(flag)
            if foreign is None:
                kept.append(word)
                continue
            if not foreign.harmless:
                self.error(f"{flag} of YOLOv5 is not there: {foreign.reason}")
            LOGGER.warning(f"{flag} has no effect: {foreign.reason}")
            if rest and not equals and (foreign.values == 1 or (foreign.values == "?" and not rest[0].startswith("-"))):
                rest.pop(0)
        return kept

    def from_keywords(self, **options: object) -> Options:
        """Return the options that the same command line would give: `imgsz=[320, 480]` is `--imgsz 320 480`.

        None stands for the default. Raises UserError for an unknown keyword or a value that the flag refuses.
        """
        words: list[str] = []
        for name, value in options.items():
            spelt = (f"--{name.replace('_', '-')}", f"--{name}")
            action = next((self.flags[flag] for flag in spelt if flag in self.flags), None)
            foreign = next((flag for flag in spelt if flag in self.foreign), None)
            if action is not None:
                words += _as_words(action, value)
            elif foreign is not None:
                words += [] if value is None or value is False else [f"{foreign}={value}"]
            else:
                known = (flag.lstrip("-").replace("-", "_") for flag in self.flags)
                raise UserError(f"there is no option '{name}'{nearest_flag(name, known)}")
        return self.parse_args(words)

    def words_of(self, options: argparse.Namespace, without: Iterable[str] = ()) -> list[str]:
        """Return the words of a command line that gives the same options, but for some of them, by their names."""
        by_name = {action.dest: action for action in self.flags.values()}
        kept = sorted(options.given - {*without})
        return [word for name in kept for word in _as_words(by_name[name], getattr(options, name))]

    def error(self, message: str) -> NoReturn:
        """Raise UserError; argparse would print the usage and leave the process."""
        raise UserError(f"{message} (--help lists the options)")


def nearest_flag(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'X'?)`` for the flag that `name` is a misspelling of, or an empty string.

    Words that are merely alike mean other things (--evolve and --nosave, --save and --nosave, --int4 and --int8), so
    that no part may differ by more than a slip.
    """
    ranked = sorted(known, key=lambda flag: -difflib.SequenceMatcher(None, name, flag).ratio())
    near = next((flag for flag in ranked if _is_misspelt(_parts(name), _parts(flag))), None)
    return f" (did you mean '{near}'?)" if near else ""


def _parts(flag: str) -> list[str]:
    return flag.lower().strip("-_").replace("_", "-").split("-")


def _is_misspelt(name: list[str], flag: list[str]) -> bool:
    """Return whether the parts of a name are slips, longer or shorter forms of those of a flag."""
    joined, whole = "".join(name), "".join(flag)
    if joined == whole:
        return True
    if joined.startswith("no") != whole.startswith("no") or _digits(joined) != _digits(whole):
        return False
    if len(name) != len(flag):
        return _is_slip(joined, whole)
    return all(_is_slip(a, b) or _is_shortened(a, b) for a, b in zip(name, flag, strict=True))


def _digits(word: str) -> str:
    return "".join(filter(str.isdigit, word))


def _is_shortened(a: str, b: str) -> bool:
    short, long = sorted((a, b), key=len)
    return len(short) > 2 and long.startswith(short)


def _is_slip(a: str, b: str) -> bool:
    """Return whether two words differ in one letter, or in one of every four of a longer word."""
    changes = difflib.SequenceMatcher(None, a, b).get_opcodes()
    distance = sum(max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in changes if tag != "equal")
    return distance <= max(1, min(len(a), len(b)) // 4)


def _as_words(action: argparse.Action, value: object) -> list[str]:
    """Return the words of a command line that give an option this value."""
    flag = max(action.option_strings, key=len) if value is not False else action.option_strings[-1]
    if isinstance(action, argparse.BooleanOptionalAction) and isinstance(value, bool):
        return [f for f in action.option_strings if f.startswith("--no-") != value]
    if value is None or (value is False and action.nargs in (0, "?")):
        return []
    if value is True and action.nargs in (0, "?"):
        return [flag]
    if isinstance(value, (list, tuple)):  # none is no way to write an option, but may be its default
        return [] if not value and action.default == [] else [flag, *(_as_word(flag, one) for one in value)]
    return [f"{flag}={_as_word(flag, value)}"]


def _as_word(flag: str, value: object) -> str:
    """Return text, a path, a number or a device as a word; UserError for what a command line cannot hold."""
    if not isinstance(value, (str, os.PathLike, numbers.Number, torch.device)):
        kind = type(value).__name__
        hint = ": models.load takes pictures in memory" if hasattr(value, "__array_interface__") else ""
        raise UserError(f"{flag} takes text, paths and numbers, as on the command line, not {kind}{hint}")
    return str(value)


def fraction(text: str) -> float:
    """An option's value from 0 to 1."""
    return _number(text, float, "a number from 0 to 1", lambda x: 0 <= x <= 1)


def positive_fraction(text: str) -> float:
    """An option's value above 0, at most 1."""
    return _number(text, float, "a number above 0, at most 1", lambda x: 0 < x <= 1)


def positive_float(text: str) -> float:
    """An option's value above 0."""
    return _number(text, float, "a number above 0", lambda x: 0 < x < math.inf)


def positive_int(text: str) -> int:
    """An option's value that counts something: 1, 2, …"""
    return _number(text, int, "a whole number of at least 1", lambda x: 1 <= x < 2**31)


def small_int(text: str) -> int:
    """An option's value that says how often something long is done: 1 to 1000."""
    return _number(text, int, "a whole number from 1 to 1000", lambda x: 1 <= x <= 1000)


def image_side(text: str) -> int:
    """An option's value that is the side of a picture in pixels, 1 to MAX_IMGSZ."""
    return _number(text, int, f"a whole number of pixels from 1 to {MAX_IMGSZ}", lambda x: 1 <= x <= MAX_IMGSZ)


class OneSide(argparse.Action):
    """Takes the side of square pictures, which may be given as a height and a width that are alike."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, _: str | None = None
    ) -> None:
        """Keep the side; UserError where there are others."""
        if len(values) > 2 or len(set(values)) > 1:
            given = " ".join(map(str, values))
            parser.error(f"{self.option_strings[0]} takes one side, as pictures are square here, not {given}")
        setattr(namespace, self.dest, values[0])


class OneOrMore(argparse.Action):
    """Takes one value, which is kept as it is, or several, which become a list; `as_list` returns either as one."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(nargs="+", **settings)

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, _: str | None = None
    ) -> None:
        """Keep them; UserError where one is given twice."""
        if twice := next((value for i, value in enumerate(values) if value in values[:i]), None):
            parser.error(f"{self.option_strings[0]} names {twice} twice")
        setattr(namespace, self.dest, values if len(values) > 1 else values[0])


def as_list(value: Any) -> list[Any]:
    """Return the values of an option that takes one or more."""
    return list(value) if isinstance(value, list | tuple) else [value]


def megapixels(text: str) -> int:
    """An option's value that is a picture's size in million pixels, 1 to MOST_MEGAPIXELS."""
    expected = f"a whole number from 1 to {MOST_MEGAPIXELS}, in million pixels"
    return _number(text, int, expected, lambda x: 1 <= x <= MOST_MEGAPIXELS)


def finite_float(text: str) -> float:
    """An option's value that is any number, but neither nan nor inf."""
    return _number(text, float, "a number", math.isfinite)


def non_negative_int(text: str) -> int:
    """An option's value that numbers something: 0, 1, 2, …"""
    return _number(text, int, "a whole number of at least 0", lambda x: 0 <= x < 2**31)


def _number(text: str, kind: type, expected: str, valid: Callable[[Any], bool]) -> Any:
    """Return `text` as a number for which `valid` holds; nan compares as False, so it never does."""
    try:
        number = kind(text)
    except ValueError:
        number = math.nan
    if valid(number):
        return number
    raise argparse.ArgumentTypeError(f"expected {expected}, not '{shorten(text)}'")


def devices(text: str) -> str:
    """A `--device` of one process each: as `device`, or cpu,cpu for two processes on the CPU, and so on."""
    names = text.strip().lower().split(",")
    return ",".join(names) if set(names) == {"cpu"} else device(text)


def device(text: str) -> str:
    """A `--device` that is there: '' (the first GPU, else the CPU), cpu, mps, or CUDA numbers such as 0 or 0,1."""
    name = text.strip().lower().replace("cuda:", "").replace("cuda", "0")
    if name in ("", "cpu"):
        return name
    if name == "mps":
        if torch.backends.mps.is_available():
            return name
        raise argparse.ArgumentTypeError("this machine has no mps; use cpu")
    numbers = name.split(",")
    if not all(n.isdecimal() for n in numbers) or len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"expected cpu, mps, or CUDA numbers such as 0 or 0,1, not '{text}'")
    count = torch.cuda.device_count()
    if any(int(n) >= count for n in numbers):
        there = f"CUDA devices 0 to {count - 1}" if count else "no CUDA device; use cpu"
        raise argparse.ArgumentTypeError(f"'{text}' is not there: this machine has {there}")
    return name


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_wakeup)
