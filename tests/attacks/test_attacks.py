"""No attack gets through, the table of docs/security.md is that of the catalogue, and what gets through is seen."""

import itertools
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import pytest

from models.errors import UserError
from tests.attacks import worker
from tests.attacks.attack import Attack, End, Outcome, Place
from tests.attacks.catalogue import ATTACKS, KINDS
from utils import cli
from utils.paths import ROOT


def test_the_page_shows_the_table_of_these_attacks():
    lines = (ROOT / "docs/security.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    shown = {kind: [int(number) for number in numbers] for kind, *numbers in rows if numbers[0].isdecimal()}
    counts = Counter(attack.kind for attack in ATTACKS)
    assert {kind: tried for kind, (tried, *_) in shown.items()} == {**counts, "all": len(ATTACKS)}
    for kind, (tried, refused, harmless, *got_through) in shown.items():
        assert tried == refused + harmless and not any(got_through), kind
    assert len(ATTACKS) >= 300 and list(shown) == [*KINDS, "all"]


def test_each_attack_has_a_name():
    assert len({(attack.kind, attack.name) for attack in ATTACKS}) == len(ATTACKS)


def scripts(main):
    return {"script": SimpleNamespace(main=main, make_parser=lambda: cli.Parser(prog="script"))}


@pytest.mark.parametrize(
    ("main", "end", "executed"),
    [
        (lambda _: print("done"), End.HARMLESS, False),
        (lambda _: open("executed", "w").close(), End.HARMLESS, True),  # noqa: PTH123
        (lambda _: open("../outside/secret.txt", "w").close(), End.HARMLESS, True),  # noqa: PTH123
        (lambda _: [].pop(), End.TRACEBACK, False),
        (lambda _: time.sleep(60), End.HANG, False),
    ],
)
def test_what_gets_through_is_seen(main, end, executed, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "SCRIPTS", scripts(main))
    monkeypatch.setattr(worker, "PATIENCE", 2)
    place = Place(tmp_path / "1/in", tmp_path)
    found = worker.run(Attack("kind", "name", lambda _: ["script"]), place)
    assert (End[found["end"]], found["executed"]) == (end, executed)
    assert Outcome(end, executed, (), "").ok == (end is End.HARMLESS and not executed)


def refuse(_):
    raise UserError("no")


def test_a_sentence_is_a_refusal_and_a_broken_attack_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "SCRIPTS", scripts(refuse))
    places = (Place(tmp_path / f"{i}/in", tmp_path) for i in itertools.count())
    found = worker.run(Attack("kind", "name", lambda _: ["script"]), next(places))
    assert found == {"end": "REFUSED", "executed": False, "output": "ERROR: no\n"}
    with pytest.raises(RuntimeError, match="kind: name cannot be prepared"):
        worker.run(Attack("kind", "name", lambda _: [].pop()), next(places))


@pytest.mark.slow
def test_an_attack_of_each_kind_comes_to_nothing(tmp_path):
    options = ["--each", "1", "--processes", "1", "--project", str(tmp_path)]
    command = [sys.executable, "-m", "tests.attacks", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "exp/attacks.md").read_text().count("\n") == len(KINDS) + 3
