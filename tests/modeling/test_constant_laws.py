"""The laws of constant mode and of fixed positions hold in every family, and with one of each kind of head."""

import pytest
from families import LAW_CASES, PIXIO_BACKBONE

from modeling import constant_laws
from ttreg_hf import modeling


@pytest.mark.parametrize("law", constant_laws.LAWS, ids=lambda law: law.__name__.removeprefix("law_"))
@pytest.mark.parametrize("case", LAW_CASES, ids=lambda case: case.name)
def test_law_holds(law, case):
    law(modeling, case)


@pytest.mark.parametrize("law", constant_laws.LAWS, ids=lambda law: law.__name__.removeprefix("law_"))
def test_law_holds_for_a_backbone_around_its_trunk(law):
    law(modeling, PIXIO_BACKBONE)
