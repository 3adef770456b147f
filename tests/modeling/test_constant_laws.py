"""The laws of constant mode and of fixed positions hold in every family and every head."""

import pytest
from families import PIXIO_BACKBONE

from modeling import constant_laws
from ttreg_hf import modeling


@pytest.mark.parametrize("law", constant_laws.LAWS, ids=lambda law: law.__name__.removeprefix("law_"))
def test_law_holds(law, every_case):
    law(modeling, every_case)


@pytest.mark.parametrize("law", constant_laws.LAWS, ids=lambda law: law.__name__.removeprefix("law_"))
def test_law_holds_for_a_backbone_around_its_trunk(law):
    law(modeling, PIXIO_BACKBONE)
