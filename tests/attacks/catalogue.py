"""All attacks, in the order of the table."""

from __future__ import annotations

from tests.attacks.classes import class_attacks
from tests.attacks.comparisons import comparison_attacks
from tests.attacks.data_sets import data_set_attacks
from tests.attacks.media import media_attacks
from tests.attacks.weights import weight_attacks
from tests.attacks.yamls import yaml_attacks

ATTACKS = (
    *(*yaml_attacks(), *weight_attacks(), *media_attacks()),
    *(*class_attacks(), *comparison_attacks(), *data_set_attacks()),
)
KINDS = tuple(dict.fromkeys(attack.kind for attack in ATTACKS))
